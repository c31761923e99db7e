"""Which tokens of a torus attend to each other, and with which distance bias: arrays of N + D
numbers, from which the bias of any block of tokens is made when it is needed.

Tokens are numbered ``u = i D + k``: place i in the sequence, platter k. The logit of a query at
``(i, k)`` and a key at ``(j, l)`` is lowered by ``slope (distance(i - j) + |k - l| / D)``, so the
bias of all pairs is made of one number per offset in the sequence and one per offset in depth.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial, reduce
from operator import and_
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.geometry.torus import circular_hops, platter_distance
from vfejax.types import Array

__all__ = ["Pattern", "Tile", "columns", "rows", "tile", "within"]


@partial(
    jax.tree_util.register_dataclass,
    data_fields=["query_places", "key_places", "slope", "mask"],
    meta_fields=["depth", "circumference", "distance_fn", "causal", "window", "is_counted"],
)
@dataclass(frozen=True)
class Pattern:
    """Who may attend to whom on a torus, and at what bias.

    Args:
        query_places: place of each query in the sequence, integer ``[b | 1, n]``.
        key_places: place of each key, integer ``[b | 1, m]``.
        slope: logits lost per unit of distance, of each head and query platter, floating ``[g, D]``
            and not negative; None for no distance bias.
        mask: True where a query may attend to a key, bool ``[b | 1, g | 1, D | 1, n | 1, m | 1]``
            with the platter of the query on the third axis; None for everywhere.
        depth: number of platters, D.
        circumference: places of the ring, N.
        distance_fn: ``(offset, circumference) -> distance`` along the sequence, such as
            :func:`vfejax.geometry.torus.circular_distance`.
        causal: whether a query reads only keys at its own place and before.
        window: how far a query reads; see :func:`vfejax.attention.toroidal.toroidal_attention`.
            None for as far as there are keys.
        is_counted: whether queries and keys stand at 0, 1, 2, ..., so that a method may leave out
            blocks that no query reads.
    """

    query_places: Array
    key_places: Array
    slope: Array | None
    mask: Array | None
    depth: int
    circumference: int
    distance_fn: Callable[[Array, int], Array]
    causal: bool
    window: int | None
    is_counted: bool


class Tile(NamedTuple):
    """Bias and mask of a block of tokens.

    Attributes:
        bias: what the logits lose, floating ``[b | 1, g, n D, m D]``; None for nothing.
        allowed: True where a query may attend to a key, bool ``[b | 1, g | 1, n D, m D]``; None for
            everywhere.
    """

    bias: Array | None
    allowed: Array | None


def rows(pattern: Pattern, start: Array | int, size: int) -> Pattern:
    """The pattern of the queries at ``start`` to ``start + size - 1`` of the sequence, all platters
    of them.

    Args:
        pattern: of all queries.
        start: first query, may be traced.
        size: number of queries.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(6)[None]
    >>> ring = Pattern(places, places, None, None, 1, 6, circular_distance, True, None, True)
    >>> tile(rows(ring, 2, 2)).allowed.shape
    (1, 1, 2, 6)
    """
    return replace(
        pattern,
        query_places=_cut(pattern.query_places, start, size, axis=1),
        mask=None if pattern.mask is None else _cut(pattern.mask, start, size, axis=3),
        is_counted=False,
    )


def columns(pattern: Pattern, start: Array | int, size: int) -> Pattern:
    """The pattern of the keys at ``start`` to ``start + size - 1`` of the sequence, all platters of
    them.

    Args:
        pattern: of all keys.
        start: first key, may be traced.
        size: number of keys.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(6)[None]
    >>> ring = Pattern(places, places, None, None, 1, 6, circular_distance, True, None, True)
    >>> tile(columns(ring, 2, 2)).allowed.shape
    (1, 1, 6, 2)
    """
    return replace(
        pattern,
        key_places=_cut(pattern.key_places, start, size, axis=1),
        mask=None if pattern.mask is None else _cut(pattern.mask, start, size, axis=4),
        is_counted=False,
    )


def _cut(array: Array, start: Array | int, size: int, axis: int) -> Array:
    """Entries of one axis; an axis that broadcasts stays as it is."""
    if array.shape[axis] == 1:
        return array
    return jax.lax.dynamic_slice_in_dim(array, start, size, axis)


def tile(pattern: Pattern) -> Tile:
    """Bias and mask of all tokens of the pattern: ``n D`` queries by ``m D`` keys.

    Memory is that of the result. A method that works block by block cuts the pattern first, by
    :func:`rows` and :func:`columns`.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(4)[None]
    >>> slope = jnp.full((1, 1), 8.0)
    >>> ring = Pattern(places, places, slope, None, 1, 4, circular_distance, False, None, True)
    >>> tile(ring).bias[0, 0, 0].tolist()
    [0.0, 2.0, 4.0, 2.0]
    """
    offset = pattern.query_places[:, :, None] - pattern.key_places[:, None, :]
    return Tile(_bias(pattern, offset), _allowed(pattern, offset))


def _bias(pattern: Pattern, offset: Array) -> Array | None:
    if pattern.slope is None:
        return None
    depth, slope = pattern.depth, pattern.slope
    along = pattern.distance_fn(offset, pattern.circumference).astype(slope.dtype)
    if depth == 1:
        return slope[None, :, :, None] * along[:, None]
    platters = jnp.arange(depth)
    across = platter_distance(platters[:, None] - platters[None, :], depth).astype(slope.dtype)
    distance = along[:, None, :, None, :, None] + across[None, None, None, :, None, :]
    bias = slope[None, :, None, :, None, None] * distance
    batch, heads, n, _, m, _ = bias.shape
    return bias.reshape(batch, heads, n * depth, m * depth)


def within(pattern: Pattern, offset: Array) -> Array | None:
    """Whether causality and the window let a query read a key at an offset.

    Args:
        pattern: only its options are read.
        offset: place of the query less that of the key, integer, any shape.

    Returns:
        bool, the shape of ``offset``; None where every offset may be read.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(6)[None]
    >>> ring = Pattern(places, places, None, None, 1, 6, circular_distance, True, 2, True)
    >>> within(ring, jnp.array([-1, 0, 1, 2])).tolist()
    [False, True, True, False]
    """
    conditions = []
    if pattern.causal:
        conditions.append(offset >= 0)
    if pattern.window is not None:
        hops = offset if pattern.causal else circular_hops(offset, pattern.circumference)
        limit = pattern.window - 1 if pattern.causal else pattern.window
        conditions.append(hops <= limit)
    return reduce(and_, conditions) if conditions else None


def _allowed(pattern: Pattern, offset: Array) -> Array | None:
    depth, near = pattern.depth, within(pattern, offset)
    conditions = [] if near is None else [near[:, None, None]]
    if pattern.mask is not None:
        conditions.append(pattern.mask)
    if not conditions:
        return None
    joined = reduce(and_, conditions)
    n, m = offset.shape[1:]
    batch, heads = joined.shape[:2]
    # [b, g, D, n, m] to [b, g, n, D, m, D].
    joined = jnp.moveaxis(joined, 2, 3)[..., None]
    return jnp.broadcast_to(joined, (batch, heads, n, depth, m, depth)).reshape(
        batch, heads, n * depth, m * depth
    )

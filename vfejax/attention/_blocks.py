"""Which pairs of blocks of tokens attend to each other, and the mask and bias of each: shared by
the methods that work block by block.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import and_
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.attention.pattern import Pattern, Tile, columns, rows, tile
from vfejax.types import Array

__all__ = ["Plan", "meets", "padded", "plan", "schedule", "tiles"]


class Plan(NamedTuple):
    """Blocks of whole places, and which of them meet.

    Attributes:
        queries: places of a block of queries.
        keys: places of a block of keys.
        num_queries: number of blocks of queries.
        num_keys: number of blocks of keys.
        meets: whether a block of queries reads anything of a block of keys, ``[num_queries,
            num_keys]``.
    """

    queries: int
    keys: int
    num_queries: int
    num_keys: int
    meets: np.ndarray


def plan(pattern: Pattern, query_tokens: int, key_tokens: int) -> Plan:
    """Blocks of at most so many tokens, but at least one place, as even as they can be.

    Args:
        pattern: of all queries and keys.
        query_tokens: the most tokens in a block of queries, over all platters.
        key_tokens: the most tokens in a block of keys.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(6)[None]
    >>> ring = Pattern(places, places, None, None, 1, 6, circular_distance, True, None, True)
    >>> plan(ring, 3, 2).meets.astype(int).tolist()
    [[1, 1, 0], [1, 1, 1]]
    """
    queries, num_queries = _even(pattern.query_places.shape[1], query_tokens // pattern.depth)
    keys, num_keys = _even(pattern.key_places.shape[1], key_tokens // pattern.depth)
    first, first_key = np.arange(num_queries) * queries, np.arange(num_keys) * keys
    met = meets(pattern, (first, first + queries - 1), (first_key, first_key + keys - 1))
    return Plan(queries, keys, num_queries, num_keys, met)


def _even(length: int, most: int) -> tuple[int, int]:
    """Size and number of the blocks that cover a length."""
    num = max(1, -(-length // max(1, most)))
    return max(1, -(-length // num)), num


def meets(
    pattern: Pattern, queries: tuple[np.ndarray, np.ndarray], keys: tuple[np.ndarray, np.ndarray]
) -> np.ndarray:
    """Which blocks of keys hold a key that some query of a block may read, as far as causality and
    the window tell; all of them where places are not counted.

    Args:
        pattern: of all queries and keys.
        queries: first and last place of every block of queries, ``[q]`` each.
        keys: first and last place of every block of keys, ``[k]`` each.

    Returns:
        bool ``[q, k]``.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(6)[None]
    >>> ring = Pattern(places, places, None, None, 1, 6, circular_distance, True, None, True)
    >>> halves = np.array([0, 3]), np.array([2, 5])
    >>> meets(ring, halves, halves).tolist()
    [[True, False], [True, True]]
    """
    least, greatest = queries[0][:, None] - keys[1], queries[1][:, None] - keys[0]
    window = pattern.window
    if not pattern.is_counted or (window is None and not pattern.causal):
        return np.ones(least.shape, bool)
    if window is None:
        return greatest >= 0
    if pattern.causal:
        return (greatest >= 0) & (least < window)
    turns = [turn * pattern.circumference for turn in (-1, 0, 1)]
    return np.any([(greatest >= o - window) & (least <= o + window) for o in turns], axis=0)


def schedule(met: np.ndarray) -> tuple[Array, Array, Array]:
    """Number of every block of queries ``[q]``, the blocks of keys with those that it reads first
    ``[q, k]``, and how many it reads ``[q]``.

    >>> _, order, counts = schedule(np.array([[False, True], [True, True]]))
    >>> order.tolist(), counts.tolist()
    ([[1, 0], [0, 1]], [1, 2])
    """
    order = np.argsort(~met, axis=1, kind="stable")
    return (
        jnp.arange(len(met), dtype=jnp.int32),
        jnp.asarray(order, jnp.int32),
        jnp.asarray(np.sum(met, axis=1), jnp.int32),
    )


def padded(x: Array, axis: int, size: int) -> Array:
    """Zeros, or False, up to ``size`` entries of one axis.

    Args:
        x: any array.
        axis: the one that grows.
        size: entries that it then has.

    >>> padded(jnp.ones(2), 0, 3).tolist()
    [1.0, 1.0, 0.0]
    """
    if x.shape[axis] == size:
        return x
    widths = [(0, size - x.shape[axis] if i == axis else 0) for i in range(x.ndim)]
    return jnp.pad(x, widths)


def tiles(blocks: Plan, pattern: Pattern, real: jnp.dtype | None) -> Callable[[Array, Array], Tile]:
    """``(i, j) -> tile`` of block i of the queries and block j of the keys, with the distance
    itself, in dtype ``real``, in place of a bias; no distance for None.

    Keys behind the last one are not allowed.

    Args:
        blocks: of :func:`plan`.
        pattern: of all queries and keys.
        real: dtype of the distance.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(6)[None]
    >>> ring = Pattern(places, places, None, None, 1, 6, circular_distance, True, None, True)
    >>> tile_fn = tiles(plan(ring, 3, 2), ring, None)
    >>> tile_fn(jnp.asarray(0), jnp.asarray(0)).allowed[0, 0].astype(int).tolist()
    [[1, 0], [1, 1], [1, 1]]
    """
    num_keys = pattern.key_places.shape[1]
    unit = None if real is None else jnp.ones((1, pattern.depth), real)
    pattern = _whole(blocks, replace(pattern, slope=unit))
    cut = None
    if pattern.is_counted:
        cut = _strip(blocks, pattern)
        pattern = replace(pattern, slope=None, causal=False, window=None)

    def find(i: Array, j: Array) -> Tile:
        part = rows(pattern, i * blocks.queries, blocks.queries)
        found = [tile(columns(part, j * blocks.keys, blocks.keys))]
        if cut is not None:
            found.append(cut(i, j))
        conditions = [x.allowed for x in found if x.allowed is not None]
        if blocks.keys * blocks.num_keys > num_keys:
            inside = j * blocks.keys + jnp.arange(blocks.keys, dtype=j.dtype) < num_keys
            conditions.append(jnp.repeat(inside, pattern.depth)[None, None, None, :])
        allowed = reduce(and_, conditions) if conditions else None
        # Without the barrier XLA makes the tile again for every head.
        return jax.lax.optimization_barrier(Tile(found[-1].bias, allowed))

    return find


def _whole(blocks: Plan, pattern: Pattern) -> Pattern:
    """The pattern of whole blocks."""
    n, m = blocks.queries * blocks.num_queries, blocks.keys * blocks.num_keys
    mask = pattern.mask
    for axis, size in ((3, n), (4, m)):
        if mask is not None and mask.shape[axis] > 1:
            mask = padded(mask, axis, size)
    return replace(
        pattern,
        query_places=padded(pattern.query_places, 1, n),
        key_places=padded(pattern.key_places, 1, m),
        mask=mask,
    )


def _strip(blocks: Plan, pattern: Pattern) -> Callable[[Array, Array], Tile]:
    """Tiles of tokens that stand at 0, 1, 2, ...: cuts of one strip, in which a row is the offset
    of a query to the first key of a block.
    """
    before = (blocks.num_keys - 1) * blocks.keys
    offsets = jnp.arange(-before, blocks.num_queries * blocks.queries, dtype=jnp.int32)
    first = jnp.arange(blocks.keys, dtype=jnp.int32)
    strip = tile(replace(pattern, query_places=offsets[None], key_places=first[None], mask=None))
    size = blocks.queries * pattern.depth

    def cut(i: Array, j: Array) -> Tile:
        start = (before + i * blocks.queries - j * blocks.keys) * pattern.depth
        return Tile(
            *(x if x is None else jax.lax.dynamic_slice_in_dim(x, start, size, 2) for x in strip)
        )

    return cut

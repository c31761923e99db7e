"""The last tokens of a stream and the attention to them: the exact part of
:mod:`vfejax.attention.streaming`.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.attention._arguments import check_projections, head_slopes
from vfejax.attention.buffers import held_places, push, put
from vfejax.attention.pattern import Pattern
from vfejax.attention.softmax import Average, combine
from vfejax.attention.tiles import average
from vfejax.types import Array

__all__ = [
    "Reach",
    "Tokens",
    "WindowState",
    "check_chunk",
    "check_reach",
    "empty",
    "flat",
    "heads_first",
    "heads_last",
    "pattern_of",
    "places",
    "read",
    "window_mask",
    "write",
]


class Tokens(NamedTuple):
    """One token or a chunk of each sequence.

    Attributes:
        query: turned queries in the grouped layout, floating ``[b, n, h, c]``.
        key: turned keys, ``[b, n, h, c]``.
        value: values, ``[b, n, h, v]``.
    """

    query: Array
    key: Array
    value: Array


class WindowState(NamedTuple):
    """What a window remembers.

    Attributes:
        ring: keys ``[b, g, w, D, c]`` and values ``[b, g, w, D, v]`` of the last w tokens (see
            :mod:`vfejax.attention.buffers`): heads of a platter first, platters of a token
            together.
        pinned: keys and values of the first s tokens, ``[b, g, s, D, ...]``.
        position: tokens read so far, so the place of the next one, int32 ``[b]``.
    """

    ring: tuple[Array, Array]
    pinned: tuple[Array, Array]
    position: Array


class Reach(NamedTuple):
    """What the queries of a stream read.

    Attributes:
        depth: platters that meet: D in joint attention, 1 in axial attention.
        platters: platters that the heads are dealt out to, D.
        slope: as :func:`vfejax.attention.toroidal.toroidal_attention` takes it.
        circumference: places of the ring, N.
        window: how many of the last keys are read, w.
        sinks: how many of the first keys are read for ever, s.
        distance_fn: distance along the sequence, from offset and circumference.
    """

    depth: int
    platters: int
    slope: Array | float | None
    circumference: int
    window: int
    sinks: int
    distance_fn: Callable[[Array, int], Array]


def check_reach(reach: Reach) -> None:
    """Raise ValueError for numbers that do not fit.

    >>> from vfejax.geometry.torus import circular_distance
    >>> check_reach(Reach(1, 1, None, 8, 9, 0, circular_distance))
    Traceback (most recent call last):
    ValueError: window must be 1 to the circumference 8, got 9
    """
    if reach.circumference < 1:
        raise ValueError(f"circumference must be at least 1, got {reach.circumference}")
    if not 1 <= reach.window <= reach.circumference:
        raise ValueError(
            f"window must be 1 to the circumference {reach.circumference}, got {reach.window}"
        )
    if reach.sinks < 0:
        raise ValueError(f"sinks must not be negative, got {reach.sinks}")


def heads_first(x: Array, depth: int) -> Array:
    """``[b, n, D g, c]`` to ``[b, g, n, D, c]``.

    >>> heads_first(jnp.ones((1, 3, 8, 5)), 2).shape
    (1, 4, 3, 2, 5)
    """
    batch, n, heads, channels = x.shape
    return jnp.moveaxis(x.reshape(batch, n, depth, heads // depth, channels), 3, 1)


def heads_last(x: Array, depth: int) -> Array:
    """``[b, g, n D, ...]`` to ``[b, n, D g, ...]``.

    >>> heads_last(jnp.ones((1, 4, 6, 5)), 2).shape
    (1, 3, 8, 5)
    """
    batch, group, tokens = x.shape[:3]
    x = jnp.moveaxis(x.reshape(batch, group, tokens // depth, depth, *x.shape[3:]), 1, 3)
    return x.reshape(batch, tokens // depth, depth * group, *x.shape[4:])


def pattern_of(
    reach: Reach, query: Array, query_places: Array, key_places: Array, allowed: Array
) -> Pattern:
    """The pattern of queries and keys at the places given.

    Args:
        reach: for the bias.
        query: ``[b, n, h, c]``, for its heads and dtype.
        query_places: integer ``[b, n]``.
        key_places: integer ``[b | 1, m]``.
        allowed: True where a query reads a key, bool ``[b, n, m]``.

    >>> from vfejax.geometry.torus import circular_distance
    >>> here, reach = jnp.arange(2)[None], Reach(1, 1, 3.0, 8, 4, 0, circular_distance)
    >>> pattern_of(reach, jnp.ones((1, 2, 4, 3)), here, here, here[..., None] >= here).slope.shape
    (4, 1)
    """
    slopes = head_slopes(reach.slope, query, reach.platters)
    return Pattern(
        query_places,
        key_places,
        slope=None if slopes is None else slopes.reshape(reach.depth, -1).T,
        mask=allowed[:, None, None],
        depth=reach.depth,
        circumference=reach.circumference,
        distance_fn=reach.distance_fn,
        causal=False,
        window=None,
        is_counted=False,
    )


def flat(x: Array) -> Array:
    """Tokens of all platters on one axis, ``[b, g, n, D, c]`` to ``[b, g, n D, c]``.

    >>> flat(jnp.ones((1, 2, 3, 4, 5))).shape
    (1, 2, 12, 5)
    """
    return x.reshape(*x.shape[:2], x.shape[2] * x.shape[3], x.shape[4])


def _reads(query_places: Array, key_places: Array, window: int, sinks: int) -> Array:
    """Who reads whom, ``[..., n, m]``: the last ``window`` keys, and the first ``sinks``."""
    age = query_places[..., :, None] - key_places[..., None, :]
    return (age >= 0) & ((age < window) | (key_places < sinks)[..., None, :])


def window_mask(n: int, window: int, sinks: int = 0) -> Array:
    """The mask that a window with pinned tokens is equal to: ``j <= i and (i - j < window or j <
    sinks)``.

    Args:
        n: length of the sequence.
        window: how many of the last keys a query reads, including its own.
        sinks: how many of the first keys every query after them reads.

    Returns:
        Bool ``[1, 1, n, n]``, for :func:`vfejax.attention.toroidal.toroidal_attention` with neither
        ``causal`` nor ``window``.

    >>> window_mask(4, 2, 1)[0, 0].astype(int).tolist()
    [[1, 0, 0, 0], [1, 1, 0, 0], [1, 1, 1, 0], [1, 0, 1, 1]]
    """
    order = jnp.arange(n)
    return _reads(order, order, window, sinks)[None, None]


def places(state: WindowState, n: int) -> Array:
    """Places of the next n tokens of each sequence, integer ``[b, n]``: what their queries and keys
    are to be turned by.

    >>> from vfejax.geometry.torus import circular_distance
    >>> reach = Reach(1, 1, None, 8, 4, 0, circular_distance)
    >>> places(empty(reach, Tokens(*(jnp.zeros((2, 1, 4, 8)),) * 3)), 3).tolist()
    [[0, 1, 2], [0, 1, 2]]
    """
    return state.position[:, None] + jnp.arange(n, dtype=state.position.dtype)[None]


def empty(reach: Reach, tokens: Tokens) -> WindowState:
    """A window before the first token.

    Args:
        reach: what its queries read.
        tokens: shapes and dtypes of a chunk of any length.

    >>> from vfejax.geometry.torus import circular_distance
    >>> reach = Reach(2, 2, None, 8, 4, 1, circular_distance)
    >>> empty(reach, Tokens(*(jnp.zeros((1, 1, 6, 8)),) * 3)).ring[0].shape
    (1, 3, 4, 2, 8)
    """
    check_reach(reach)
    check_projections(*tokens, reach.platters)
    head_slopes(reach.slope, tokens.query, reach.platters)
    batch, _, heads, _ = tokens.query.shape

    def slots(number: int) -> tuple[Array, Array]:
        shape = (batch, heads // reach.depth, number, reach.depth)
        key, value = tokens.key, tokens.value
        return (
            jnp.zeros((*shape, key.shape[-1]), key.dtype),
            jnp.zeros((*shape, value.shape[-1]), value.dtype),
        )

    return WindowState(slots(reach.window), slots(reach.sinks), jnp.zeros(batch, jnp.int32))


def check_chunk(reach: Reach, state: WindowState, tokens: Tokens) -> None:
    """Raise ValueError unless a chunk fits what the window remembers.

    Args:
        reach: what its queries read.
        state: of the window.
        tokens: the chunk.

    >>> from vfejax.geometry.torus import circular_distance
    >>> reach = Reach(1, 1, None, 8, 4, 0, circular_distance)
    >>> state = empty(reach, Tokens(*(jnp.zeros((1, 1, 2, 3)),) * 3))
    >>> check_chunk(reach, state, Tokens(*(jnp.zeros((1, 1, 2, 5)),) * 3))
    Traceback (most recent call last):
    ValueError: key must be [1, n, 2, 3] float32 as in the state, got (1, 1, 2, 5) float32
    """
    check_projections(*tokens, reach.platters)
    for name, held, new in zip(("key", "value"), state.ring, tokens[1:], strict=True):
        batch, group, slots, platters, channels = held.shape
        if (slots, platters) != (reach.window, reach.depth):
            raise ValueError(
                f"state must be of a window of {reach.window} with {reach.depth} platters that "
                f"meet, got {slots} with {platters}"
            )
        if (sinks := state.pinned[0].shape[2]) != reach.sinks:
            raise ValueError(f"state must have {reach.sinks} sinks, got one with {sinks}")
        heads = platters * group
        if (new.shape[0], *new.shape[2:]) != (batch, heads, channels) or new.dtype != held.dtype:
            raise ValueError(
                f"{name} must be [{batch}, n, {heads}, {channels}] {held.dtype} as in the state, "
                f"got {new.shape} {new.dtype}"
            )


def read(reach: Reach, state: WindowState, tokens: Tokens) -> Average:
    """What a chunk of queries reads from the window and from its own chunk, undivided.

    Args:
        reach: what its queries read.
        state: the window before the chunk.
        tokens: the chunk.

    >>> from vfejax.geometry.torus import circular_distance
    >>> reach = Reach(1, 1, None, 8, 4, 0, circular_distance)
    >>> token = Tokens(*(jnp.ones((1, 1, 2, 3)),) * 3)
    >>> read(reach, empty(reach, token), token).values.shape
    (1, 2, 1, 3)
    """
    query, key, value = (flat(heads_first(x, reach.depth)) for x in tokens)
    here = places(state, tokens.query.shape[1])
    ring = held_places(state.position, reach.window)
    first = jnp.arange(reach.sinks, dtype=here.dtype)[None]

    def part(keys: Array, values: Array, at: Array, exists: Array) -> Average:
        allowed = _reads(here, at, reach.window, reach.sinks) & exists[:, None]
        return average(query, keys, values, pattern_of(reach, tokens.query, here, at, allowed))

    # What leaves with the first query of the chunk may be a NaN, which its weight 0 does not stop.
    stays = (state.position[:, None] - ring < reach.window)[:, None, :, None, None]
    (keys, values), pinned = state.ring, state.pinned
    values = jnp.where(stays, values, jnp.zeros((), values.dtype))
    # The ring also holds pinned tokens for a while; they are read from their pin.
    recent = part(flat(keys), flat(values), ring, ring >= reach.sinks)
    first_ones = part(flat(pinned[0]), flat(pinned[1]), first, first < state.position[:, None])
    chunk = part(key, value, here, jnp.ones_like(here, bool))
    return combine(combine(first_ones, recent), chunk)


def write(reach: Reach, state: WindowState, tokens: Tokens) -> WindowState:
    """The window after a chunk.

    Args:
        reach: what its queries read.
        state: the window before the chunk.
        tokens: the chunk.

    >>> from vfejax.geometry.torus import circular_distance
    >>> reach = Reach(1, 1, None, 8, 4, 0, circular_distance)
    >>> token = Tokens(*(jnp.ones((1, 1, 2, 3)),) * 3)
    >>> write(reach, empty(reach, token), token).position.tolist()
    [1]
    """
    n = tokens.key.shape[1]
    key, value = (heads_first(x, reach.depth) for x in tokens[1:])
    first = places(state, min(n, reach.sinks))
    pinned_key, pinned_value = state.pinned
    return WindowState(
        push(state.ring, (key, value), state.position),
        (
            put(pinned_key, key[:, :, : first.shape[1]], first),
            put(pinned_value, value[:, :, : first.shape[1]], first),
        ),
        state.position + jnp.asarray(n, state.position.dtype),
    )

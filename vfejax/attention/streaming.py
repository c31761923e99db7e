"""Attention on a torus decoded as a stream: a causal window in constant memory, one token or one
chunk at a time.

A stream is a NamedTuple of two pure functions, ``init(tokens) -> state`` and ``step(state, tokens)
-> (state, answer)``; ``jax.lax.scan`` takes ``step`` as it is. Tokens are a query, a key and a
value. The state is a pytree of arrays whose first axis is that of the sequences. Every sequence
counts its own tokens, so streams that stand at different places are joined into one batch, without
padding, by joining the leaves of their states.

Keys arrive turned by their places, as in :mod:`vfejax.attention.toroidal`. The angle of a key
depends on its own place alone, so it is turned once and never again, and a stream knows nothing of
encodings. :func:`vfejax.attention.windows.places` says where the next tokens stand.

:func:`toroidal_window` and :func:`axial_window` are exact: they answer what
:func:`vfejax.attention.toroidal.toroidal_attention` and ``axial_attention`` answer with
``causal=True`` and ``window=w``, to rounding. Pinned tokens, ``sinks`` of them, stay readable for
ever; the batch form then has the mask :func:`vfejax.attention.windows.window_mask` in place of
causality and window. Pinned tokens keep their places, so their keys need no other angle, and with a
distance around the ring they pass by again and again.

:func:`toroidal_latent` and :func:`axial_latent` read, behind the window, a compressed past of
``horizon`` tokens (:mod:`vfejax.attention.latent`), and say how far the answer may be off.

Cost. A chunk of n tokens takes ``n (w + n)`` products of a query and a key per head of a platter
(``D^2`` times as many in joint attention) and memory for as many logits. Neither depends on the
tokens read before. Counts are int32: a sequence has at most 2^31 - 1 tokens.

NaN. A NaN makes NaN of what its own sequence answers while it stands in the window, or in the
compressed past. A chunk that reads it anywhere is NaN from its first query to its last.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from vfejax.attention import latent
from vfejax.attention.latent import Compression, LatentState
from vfejax.attention.softmax import combine, finish
from vfejax.attention.windows import (
    Reach,
    Tokens,
    WindowState,
    check_chunk,
    check_reach,
    empty,
    heads_last,
    read,
    write,
)
from vfejax.geometry.torus import circular_distance
from vfejax.types import Array, PyTree

__all__ = [
    "Answer",
    "Stream",
    "axial_latent",
    "axial_window",
    "toroidal_latent",
    "toroidal_window",
]


class Answer(NamedTuple):
    """What a chunk of queries reads.

    Attributes:
        values: ``[b, n, h, v]``, in the dtype of the values.
        info: how far they may be off, :class:`vfejax.attention.latent.LatentInfo`; None for an
            exact stream.
    """

    values: Array
    info: Any


class Stream(NamedTuple):
    """A way to decode, as two pure functions.

    Attributes:
        init: ``init(tokens) -> state`` before the first token. ``tokens``, a query, a key and a
            value, give shapes and dtypes: of arrays or of ``jax.ShapeDtypeStruct``, with any number
            of tokens.
        step: ``step(state, tokens) -> (state, answer)``: reads the next n tokens of each sequence,
            query and key ``[b, n, h, c]`` and value ``[b, n, h, v]``. n is 1 for one token, and may
            differ from step to step.
    """

    init: Callable[[tuple[Array, Array, Array]], PyTree]
    step: Callable[[PyTree, tuple[Array, Array, Array]], tuple[PyTree, Answer]]


def toroidal_window(
    *,
    depth: int,
    slope: Array | float | None,
    circumference: int,
    window: int,
    sinks: int = 0,
    distance_fn: Callable[[Array, int], Array] = circular_distance,
) -> Stream:
    """Joint attention to the last ``window`` tokens, on all platters.

    Args:
        depth: number of platters D, a divisor of the number of heads.
        slope: logits lost per unit of distance, not negative: a number, ``[h / depth]`` or ``[h]``;
            None for no distance bias.
        circumference: places of the ring, N.
        window: how many of the last keys a query reads, including its own; 1 to N.
        sinks: how many of the first tokens stay readable for ever.
        distance_fn: distance along the sequence; by default around the ring.

    Raises:
        ValueError: for numbers that do not fit, and in ``init`` and ``step`` for shapes and dtypes,
            naming the argument.

    Source: pinned tokens after Xiao et al., Efficient streaming language models with attention
    sinks (2024), who count places within the cache; here a token keeps its place in the sequence.

    >>> import jax, jax.numpy as jnp
    >>> stream = toroidal_window(depth=2, slope=0.0, circumference=8, window=2)
    >>> zeros, value = jnp.zeros((5, 1, 1, 2, 3)), jnp.arange(5.0).reshape(5, 1, 1, 1, 1)
    >>> tokens = (zeros, zeros, jnp.broadcast_to(value, (5, 1, 1, 2, 1)))
    >>> state = stream.init(jax.tree.map(lambda x: x[0], tokens))
    >>> state, answer = jax.lax.scan(stream.step, state, tokens)
    >>> answer.values[:, 0, 0, 0, 0].tolist()  # means of the last two
    [0.0, 0.5, 1.5, 2.5, 3.5]
    """
    return _exact(Reach(depth, depth, slope, circumference, window, sinks, distance_fn))


def axial_window(
    *,
    depth: int,
    slope: Array | float | None,
    circumference: int,
    window: int,
    sinks: int = 0,
    distance_fn: Callable[[Array, int], Array] = circular_distance,
) -> Stream:
    """Axial attention to the last ``window`` tokens, on the query's own platter.

    Args:
        depth: number of platters D, a divisor of the number of heads.
        slope: logits lost per unit of distance, not negative: a number, ``[h / depth]`` or ``[h]``;
            None for no distance bias.
        circumference: places of the ring, N.
        window: how many of the last keys a query reads, including its own; 1 to N.
        sinks: how many of the first tokens stay readable for ever.
        distance_fn: distance along the sequence; by default around the ring.

    Raises:
        ValueError: for numbers that do not fit, and in ``init`` and ``step`` for shapes and dtypes,
            naming the argument.

    >>> import jax.numpy as jnp
    >>> stream = axial_window(depth=1, slope=None, circumference=8, window=2, sinks=1)
    >>> zeros, value = jnp.zeros((1, 5, 1, 3)), jnp.arange(5.0).reshape(1, 5, 1, 1)
    >>> _, answer = stream.step(stream.init((zeros, zeros, value)), (zeros, zeros, value))
    >>> answer.values[0, :, 0, 0].tolist()  # the first stays: (0 + 2 + 3) / 3 at place 3
    [0.0, 0.5, 1.0, 1.6666666269302368, 2.3333332538604736]
    """
    return _exact(Reach(1, depth, slope, circumference, window, sinks, distance_fn))


def toroidal_latent(
    compression: Compression,
    *,
    depth: int,
    slope: Array | float | None,
    circumference: int,
    window: int,
    sinks: int = 0,
    distance_fn: Callable[[Array, int], Array] = circular_distance,
) -> Stream:
    """Joint attention to the last ``window`` tokens and, behind them, to compressed ones.

    Args:
        compression: the bases, one for each head of a platter ``h / depth``, and how many tokens
            behind the window are read.
        depth: number of platters D, a divisor of the number of heads.
        slope: logits lost per unit of distance, not negative: a number, ``[h / depth]`` or ``[h]``;
            None for no distance bias.
        circumference: places of the ring, N.
        window: how many of the last keys are read as they are; window and horizon together are at
            most N.
        sinks: how many of the first tokens stay readable, as they are, for ever.
        distance_fn: distance along the sequence; by default around the ring.

    Returns:
        A stream whose answers carry a :class:`vfejax.attention.latent.LatentInfo`. With full rank
        it is a window of ``window + horizon``, to rounding.

    Raises:
        ValueError: for numbers that do not fit, and in ``init`` and ``step`` for shapes and dtypes,
            naming the argument.

    >>> import jax.numpy as jnp
    >>> half = Compression(jnp.eye(4)[None, :, :2], jnp.eye(4)[None], horizon=3)
    >>> stream = toroidal_latent(half, depth=1, slope=None, circumference=8, window=2)
    >>> tokens = (jnp.ones((1, 8, 1, 4)),) * 3
    >>> _, answer = stream.step(stream.init(tokens), tokens)
    >>> answer.info.logit_change[0, :, 0].round(3).tolist()  # two channels of four are lost
    [0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]
    """
    reach = Reach(depth, depth, slope, circumference, window, sinks, distance_fn)
    return _compressed(reach, compression)


def axial_latent(
    compression: Compression,
    *,
    depth: int,
    slope: Array | float | None,
    circumference: int,
    window: int,
    sinks: int = 0,
    distance_fn: Callable[[Array, int], Array] = circular_distance,
) -> Stream:
    """Axial attention to the last ``window`` tokens and, behind them, to compressed ones.

    Args:
        compression: the bases, one for each of the h heads, and how many tokens behind the window
            are read.
        depth: number of platters D, a divisor of the number of heads.
        slope: logits lost per unit of distance, not negative: a number, ``[h / depth]`` or ``[h]``;
            None for no distance bias.
        circumference: places of the ring, N.
        window: how many of the last keys are read as they are; window and horizon together are at
            most N.
        sinks: how many of the first tokens stay readable, as they are, for ever.
        distance_fn: distance along the sequence; by default around the ring.

    Returns:
        A stream whose answers carry a :class:`vfejax.attention.latent.LatentInfo`.

    Raises:
        ValueError: for numbers that do not fit, and in ``init`` and ``step`` for shapes and dtypes,
            naming the argument.

    >>> import jax.numpy as jnp
    >>> full = Compression(jnp.eye(4)[None], jnp.eye(4)[None], horizon=3)
    >>> stream = axial_latent(full, depth=1, slope=None, circumference=8, window=2)
    >>> tokens = (jnp.ones((1, 8, 1, 4)),) * 3
    >>> _, answer = stream.step(stream.init(tokens), tokens)
    >>> float(jnp.max(answer.info.total_variation))
    0.0
    """
    reach = Reach(1, depth, slope, circumference, window, sinks, distance_fn)
    return _compressed(reach, compression)


def _exact(reach: Reach) -> Stream:
    check_reach(reach)

    def step(state: WindowState, tokens: tuple[Array, Array, Array]) -> tuple[WindowState, Answer]:
        chunk = Tokens(*tokens)
        check_chunk(reach, state, chunk)
        values = finish(read(reach, state, chunk)).astype(chunk.value.dtype)
        return write(reach, state, chunk), Answer(heads_last(values, reach.depth), None)

    return Stream(lambda tokens: empty(reach, Tokens(*tokens)), step)


def _compressed(reach: Reach, compression: Compression) -> Stream:
    check_reach(reach)
    latent.check_compression(compression, reach)

    def step(state: LatentState, tokens: tuple[Array, Array, Array]) -> tuple[LatentState, Answer]:
        chunk = Tokens(*tokens)
        check_chunk(reach, state.window, chunk)
        latent.check_past(compression, state)
        leaving = latent.leaving(compression, reach, state, chunk)
        behind, info = latent.read(compression, reach, state, chunk, leaving)
        values = finish(combine(read(reach, state.window, chunk), behind))
        values = heads_last(values.astype(chunk.value.dtype), reach.depth)
        return latent.write(reach, state, chunk, leaving), Answer(values, info)

    return Stream(lambda tokens: latent.empty(compression, reach, Tokens(*tokens)), step)

"""Attention block by block, in memory of the size of its inputs: the softmax is summed as keys are
read, and the bias of a block is made where it is needed.

Per block of queries the keys are read in blocks, and their averages joined
(:func:`vfejax.attention.softmax.combine`), so that no more than one block of scores exists at a
time. The forward pass keeps its answer o and the logarithm L of each row's total; from them the
backward pass makes the weights again,

    p = exp(s - L),    dv = p^T do,    ds = p (do v^T - <do, o>),
    dq = ds k / c^(1/2),    dk = ds^T q / c^(1/2),    dslope = - sum ds distance.

Where tokens stand at 0, 1, 2, ..., distance and window depend on the offset of two blocks alone:
they are rows of one strip of ``(n + m) D`` tokens by one block of keys, which is made once; and
blocks of keys that causality or the window hides from all queries of a block are not read.

Cost: two products of ``[n D, c]`` by ``[c, m D]`` per head forward and five backward, over the
blocks that are read; memory ``O((n + m) D (c + block_size))`` per head. There is a first
derivative in reverse mode, and no other: a Hessian or a forward derivative needs
:func:`vfejax.attention.toroidal.dense`.

Source: Rabe and Staats, Self-attention does not need O(n^2) memory (2021); Dao et al.,
FlashAttention (2022) for the backward pass. The strip of the bias is ours.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.attention._blocks import Plan, padded, plan, schedule, tiles
from vfejax.attention.pattern import Pattern, Tile
from vfejax.attention.softmax import Average, combine, finish, partial_average
from vfejax.attention.toroidal import Method
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["Kept", "Sizes", "blockwise", "pull_back"]

_Pair = tuple[Array, Array]


class Sizes(NamedTuple):
    """Tokens of a block: the most queries, and the most keys."""

    queries: int
    keys: int


class Kept(NamedTuple):
    """What a forward pass keeps for :func:`pull_back`.

    Attributes:
        query: ``[b, g, n, c]``.
        key: ``[b, g, m, c]``.
        value: ``[b, g, m, v]``.
        slope: ``[g, D]``, or None.
        pattern: who may attend to whom, without the slope.
        answer: ``[b, g, n, v]``.
        log_sum: logarithm of the sum of exponentials of each row ``[b, g, n, 1]``; any finite
            number for a row without keys.
    """

    query: Array
    key: Array
    value: Array
    slope: Array | None
    pattern: Pattern
    answer: Array
    log_sum: Array


def blockwise(block_size: int = 64, query_block_size: int = 512) -> Method:
    """Attention that reads the keys block by block and never holds all scores.

    Values and first derivatives are those of :func:`vfejax.attention.toroidal.dense`, up to
    rounding. No block has to divide the length. The defaults are the fastest on a CPU; on a GPU
    sizes of 1024 and 1024 take a third of their time. The scores that exist at a time number batch
    x heads x the two sizes.

    Args:
        block_size: tokens in a block of keys, over all platters; at least one place is read.
        query_block_size: tokens in a block of queries.

    Returns:
        A method for :func:`vfejax.attention.toroidal.toroidal_attention`.

    Raises:
        ValueError: for sizes below 1.

    >>> from vfejax.attention.toroidal import dense, toroidal_attention
    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 10, 4, 2))
    >>> options = dict(depth=2, slope=4.0, circumference=12, window=3)
    >>> ours = toroidal_attention(query, key, value, **options, method=blockwise(block_size=4))
    >>> expected = toroidal_attention(query, key, value, **options, method=dense)
    >>> bool(jnp.allclose(ours, expected, atol=1e-5))
    True
    """
    for name, size in {"block_size": block_size, "query_block_size": query_block_size}.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
    sizes = Sizes(query_block_size, block_size)

    def method(query: Array, key: Array, value: Array, pattern: Pattern) -> Array:
        return _attend(sizes, query, key, value, pattern.slope, replace(pattern, slope=None))

    return method


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    sizes: Sizes, query: Array, key: Array, value: Array, slope: Array | None, pattern: Pattern
) -> Array:
    return _forward(sizes, query, key, value, slope, pattern)[0]


def _forward(
    sizes: Sizes, query: Array, key: Array, value: Array, slope: Array | None, pattern: Pattern
) -> tuple[Array, Kept]:
    """The answer, and with it what the backward pass reads."""
    blocks, real = plan(pattern, *sizes), at_least_float32(query.dtype)
    score_fn = _scores(blocks, slope, pattern)
    keys, values = (_split(x, blocks.keys * pattern.depth, blocks.num_keys) for x in (key, value))

    def read(block: tuple[Array, Array, Array, Array]) -> tuple[Array, Array]:
        i, order, count, query = block
        shape = query.shape[:-1]

        def step(turn: Array, average: Average) -> Average:
            j = _at(order, turn)
            logits, (_, allowed) = score_fn(i, j, query, _at(keys, j))
            return combine(average, partial_average(logits, _at(values, j), allowed))

        nothing = Average(
            jnp.full(shape, -jnp.inf, real),
            jnp.zeros(shape, real),
            jnp.zeros((*shape, value.shape[-1]), real),
        )
        average = jax.lax.fori_loop(jnp.zeros_like(count), count, step, nothing)
        empty = average.top == -jnp.inf
        log_sum = jnp.where(empty, 0.0, average.top + jnp.log(average.total))
        return finish(average).astype(value.dtype), log_sum[..., None]

    queries = _split(query, blocks.queries * pattern.depth, blocks.num_queries)
    found = jax.lax.map(read, (*schedule(blocks.meets), queries))
    answer, log_sum = (_join(x, query.shape[2]) for x in found)
    return answer, Kept(query, key, value, slope, pattern, answer, log_sum)


def pull_back(
    sizes: Sizes, kept: Kept, cotangent: Array
) -> tuple[Array, Array, Array, Array | None, None]:
    """Cotangents of query, key, value and slope, from that of the answer, block by block; None for
    the pattern, which has none.

    Args:
        sizes: tokens of a block.
        kept: by the forward pass of :func:`blockwise`, or of another method.
        cotangent: ``[b, g, n, v]``.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(1)[None]
    >>> alone = Pattern(places, places, None, None, 1, 3, circular_distance, True, None, True)
    >>> one = jnp.ones((1, 1, 1, 1))
    >>> kept = Kept(one, one, one, None, alone, answer=one, log_sum=one)
    >>> to_query, _, to_value, _, _ = pull_back(Sizes(1, 1), kept, 2 * one)
    >>> to_query.item(), to_value.item()
    (0.0, 2.0)
    """
    query, key, value, slope, pattern, answer, log_sum = kept
    blocks, real = plan(pattern, *sizes), at_least_float32(query.dtype)
    score_fn = _scores(blocks, slope, pattern)
    keys, values = (_split(x, blocks.keys * pattern.depth, blocks.num_keys) for x in (key, value))
    along = jnp.sum(cotangent.astype(real) * answer.astype(real), axis=-1, keepdims=True)

    def read(sums: _Pair, block: tuple) -> tuple[_Pair, _Pair]:
        i, order, count, *row = block
        step = _step_back(partial(score_fn, i), order, keys, values, *row)
        start = jnp.zeros(row[0].shape, real), jnp.zeros(row[0].shape[:-1], real), *sums
        to_query, to_slope, *sums_then = jax.lax.fori_loop(
            jnp.zeros_like(count), count, step, start
        )
        return (sums_then[0], sums_then[1]), (to_query, to_slope)

    by_row = [
        _split(x, blocks.queries * pattern.depth, blocks.num_queries)
        for x in (query, cotangent, log_sum, along)
    ]
    nothing = [jnp.zeros_like(jnp.swapaxes(x, 3, 4), real) for x in (keys, values)]
    (to_key, to_value), (to_query, to_slope) = jax.lax.scan(
        read, (nothing[0], nothing[1]), (*schedule(blocks.meets), *by_row)
    )
    scale = jnp.asarray(query.shape[-1] ** -0.5, real)
    return (
        (_join(to_query, query.shape[2]) * scale).astype(query.dtype),
        (_join(jnp.swapaxes(to_key, 3, 4), key.shape[2]) * scale).astype(key.dtype),
        _join(jnp.swapaxes(to_value, 3, 4), key.shape[2]).astype(value.dtype),
        None if slope is None else _by_platter(to_slope, slope),
        None,
    )


def _step_back(
    score_fn: Callable[[Array, Array, Array], tuple[Array, Tile]],
    order: Array,
    keys: Array,
    values: Array,
    query: Array,
    cotangent: Array,
    log_sum: Array,
    along: Array,
) -> Callable[[Array, tuple], tuple]:
    """What one block of keys adds to the cotangents: of the queries, of each row's slope, and of
    all keys and values, channels first.
    """
    product = partial(jnp.einsum, preferred_element_type=log_sum.dtype)
    # Products with the short sides in front: the others XLA's CPU multiplies slowly.
    query_t, cotangent_t = jnp.swapaxes(query, 2, 3), jnp.swapaxes(cotangent, 2, 3)

    def step(turn: Array, carry: tuple) -> tuple:
        to_query, to_slope, to_keys, to_values = carry
        j = _at(order, turn)
        key, value = _at(keys, j), _at(values, j)
        logits, (distance, allowed) = score_fn(j, query, key)
        logits = logits if allowed is None else jnp.where(allowed, logits, -jnp.inf)
        weights = jnp.exp(logits - log_sum)
        change = weights * (product("bgnv,bgmv->bgnm", cotangent, value) - along)
        if distance is not None:
            to_slope = to_slope - jnp.sum(change * distance, axis=-1)
        weights, change = weights.astype(value.dtype), change.astype(query.dtype)
        return (
            to_query + product("bgnm,bgmc->bgnc", change, key),
            to_slope,
            _add(to_keys, j, product("bgcn,bgnm->bgcm", query_t, change)),
            _add(to_values, j, product("bgvn,bgnm->bgvm", cotangent_t, weights)),
        )

    return step


_attend.defvjp(_forward, pull_back)


def _by_platter(rows: Array, like: Array) -> Array:
    """One number per token ``[blocks, b, g, tokens]``, summed to one per head and platter."""
    depth = like.shape[1]
    tokens = rows.reshape(*rows.shape[:-1], rows.shape[-1] // depth, depth)
    return jnp.sum(tokens, axis=(0, 1, 3)).astype(like.dtype)


def _at(blocks: Array, index: Array) -> Array:
    return jax.lax.dynamic_index_in_dim(blocks, index, 0, keepdims=False)


def _add(blocks: Array, index: Array, change: Array) -> Array:
    return jax.lax.dynamic_update_index_in_dim(blocks, _at(blocks, index) + change, index, 0)


def _split(x: Array, size: int, num: int) -> Array:
    """``[b, g, tokens, c]`` as blocks ``[num, b, g, size, c]``, zeros behind the last token."""
    x = padded(x, 2, size * num)
    return jnp.moveaxis(x.reshape(*x.shape[:2], num, size, x.shape[-1]), 2, 0)


def _join(blocks: Array, tokens: int) -> Array:
    """Blocks ``[num, b, g, size, c]`` as ``[b, g, tokens, c]``."""
    x = jnp.moveaxis(blocks, 0, 2)
    return x.reshape(*x.shape[:2], -1, x.shape[-1])[:, :, :tokens]


def _scores(
    blocks: Plan, slope: Array | None, pattern: Pattern
) -> Callable[[Array, Array, Array, Array], tuple[Array, Tile]]:
    """``(i, j, queries, keys) -> (logits, tile)`` of two blocks; the tile has distances in place of
    biases, and the logits of what is not allowed are still to be masked.
    """
    tile_fn = tiles(blocks, pattern, None if slope is None else slope.dtype)
    steep = None if slope is None else jnp.tile(slope, (1, blocks.queries))[None, :, :, None]

    def score(i: Array, j: Array, query: Array, key: Array) -> tuple[Array, Tile]:
        real = at_least_float32(query.dtype)
        logits = jnp.einsum("bgnc,bgmc->bgnm", query, key, preferred_element_type=real)
        logits = logits * jnp.asarray(query.shape[-1] ** -0.5, real)
        found = tile_fn(i, j)
        if steep is not None and found.bias is not None:
            logits = logits - (steep * found.bias).astype(real)
        return logits, found

    return score

"""Attention by a kernel for NVIDIA GPUs, written in Pallas and lowered through Triton.

Why Triton: it compiles for every GPU since Ampere and runs in interpret mode on a CPU from jax 0.10
to 0.12, where Mosaic GPU, which is to follow it, needs Hopper; jax deprecates it from 0.11 on and
says so in a DeprecationWarning when the kernel is compiled for a GPU.

The kernel is that of :mod:`vfejax.attention.blockwise`, one program per block of queries: scores,
distances and masks of a block live in registers. It keeps the same numbers, so the backward pass is
that of block-wise attention (:func:`vfejax.attention.blockwise.pull_back`).
"""

from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from vfejax.attention._blocks import meets, padded, schedule
from vfejax.attention.blockwise import Kept, Sizes, pull_back
from vfejax.attention.pattern import Pattern, within
from vfejax.attention.toroidal import Method
from vfejax.geometry.torus import platter_distance
from vfejax.types import Array

__all__ = ["pallas"]

# The smallest side of a product on the tensor cores.
_LEAST = 16
# Tokens in a block of the backward pass, and scores that exist in it at a time: 64 MB in float32,
# of which it holds about four.
_MOST_TOKENS, _MOST_SCORES = 1024, 2**24


class _Options(NamedTuple):
    """Tokens of a block, and whether the kernel is interpreted."""

    queries: int
    keys: int
    interpret: bool


def pallas(block_size: int = 64, query_block_size: int = 64, *, interpret: bool = False) -> Method:
    """Attention by a GPU kernel.

    Values are those of :func:`vfejax.attention.toroidal.dense`, up to rounding, and derivatives
    those of :func:`vfejax.attention.blockwise.blockwise`. Products of float32 have the precision
    that ``jax_default_matmul_precision`` asks for. The distance function of the pattern runs in the
    kernel, so it must not hold arrays. A mask is stored once for all tokens that it distinguishes.

    Args:
        block_size: tokens in a block of keys, a power of two from 16 on.
        query_block_size: tokens in a block of queries, a power of two from 16 on.
        interpret: run the kernel step by step in XLA, on any device, to test it.

    Returns:
        A method for :func:`vfejax.attention.toroidal.toroidal_attention`, in float32 and half
        precision.

    Raises:
        ValueError: for other block sizes; from the method for float64, which tensor cores do not
            multiply.

    >>> from vfejax.attention.toroidal import dense, toroidal_attention
    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 10, 4, 2))
    >>> options = dict(depth=2, slope=4.0, circumference=12, window=3)
    >>> expected = toroidal_attention(query, key, value, **options, method=dense)
    >>> method = pallas(16, 16, interpret=True)
    >>> ours = toroidal_attention(query, key, value, **options, method=method)
    >>> bool(jnp.allclose(ours, expected, atol=1e-5))
    True
    """
    for name, size in {"block_size": block_size, "query_block_size": query_block_size}.items():
        if size < _LEAST or size & (size - 1):
            raise ValueError(f"{name} must be a power of two from {_LEAST} on, got {size}")
    options = _Options(query_block_size, block_size, interpret)

    def method(query: Array, key: Array, value: Array, pattern: Pattern) -> Array:
        if query.dtype == jnp.float64:
            raise ValueError(
                "query must be float32, bfloat16 or float16 for the GPU kernel, got float64; take "
                "the method blockwise()"
            )
        return _attend(options, query, key, value, pattern.slope, replace(pattern, slope=None))

    return method


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attend(
    options: _Options, query: Array, key: Array, value: Array, slope: Array | None, pattern: Pattern
) -> Array:
    return _forward(options, query, key, value, slope, pattern)[0]


def _forward(
    options: _Options, query: Array, key: Array, value: Array, slope: Array | None, pattern: Pattern
) -> tuple[Array, Kept]:
    """The answer of the kernel, and with it what the backward pass reads."""
    batch, heads, tokens, _ = query.shape
    operands = _operands(options, query, key, value, slope, pattern)
    wide = operands["query"][0].shape[2], operands["value"][0].shape[3]
    answers = [
        jax.ShapeDtypeStruct((batch, heads, *wide), value.dtype),
        jax.ShapeDtypeStruct((batch, heads, wide[0], 1), jnp.float32),
    ]

    def spec(x: Array | jax.ShapeDtypeStruct, axes: str) -> pl.BlockSpec:
        """Letters of the grid's axes; q is a block of queries, a dot a whole axis."""
        sizes = {"b": None, "g": None, "i": None, "q": options.queries}
        places = [
            "bg".find(a) if a in "bg" and n > 1 else 2 if a in "iq" else None
            for a, n in zip(axes, x.shape, strict=True)
        ]
        return pl.BlockSpec(
            tuple(sizes.get(a, n) for a, n in zip(axes, x.shape, strict=True)),
            lambda *grid: tuple(0 if place is None else grid[place] for place in places),
        )

    found = pl.pallas_call(
        partial(_kernel, tuple(operands), options.keys, key.shape[2], query.shape[3], pattern),
        out_shape=answers,
        grid=(batch, heads, wide[0] // options.queries),
        in_specs=[spec(*operand) for operand in operands.values()],
        out_specs=[spec(x, "bgq.") for x in answers],
        compiler_params=triton.CompilerParams(num_warps=4, num_stages=2),
        interpret=options.interpret,
        name="toroidal_attention",
    )(*(x for x, _ in operands.values()))
    answer, log_sum = found[0][:, :, :tokens, : value.shape[3]], found[1][:, :, :tokens]
    return answer, Kept(query, key, value, slope, pattern, answer, log_sum)


def _operands(
    options: _Options, query: Array, key: Array, value: Array, slope: Array | None, pattern: Pattern
) -> dict[str, tuple[Array, str]]:
    """What the kernel reads, in whole blocks, and the axes of each (see ``spec`` above)."""
    depth = pattern.depth
    num_queries, num_keys = (
        max(1, pl.cdiv(x.shape[2], size))
        for x, size in ((query, options.queries), (key, options.keys))
    )
    n, m = num_queries * options.queries, num_keys * options.keys
    first, first_key = np.arange(0, n, options.queries), np.arange(0, m, options.keys)
    met = meets(
        pattern,
        (first // depth, (first + options.queries - 1) // depth),
        (first_key // depth, (first_key + options.keys - 1) // depth),
    )
    _, order, counts = schedule(met)
    places = [jnp.repeat(x, depth, axis=1) for x in (pattern.query_places, pattern.key_places)]
    operands = {
        "order": (order, "i."),
        "count": (counts[:, None], "i."),
        "query": (_channels(padded(query, 2, n)), "bgq."),
        "key": (_channels(padded(key, 2, m)), "bg.."),
        "value": (_channels(padded(value, 2, m)), "bg.."),
        "query_places": (padded(places[0], 1, n).astype(jnp.int32), "bq"),
        "key_places": (padded(places[1], 1, m).astype(jnp.int32), "b."),
    }
    if slope is not None:
        by_token = jnp.tile(slope.astype(jnp.float32), (1, -(-n // depth)))[:, :n]
        operands["slope"] = (by_token, "gq")
        platters = jnp.arange(max(n, m), dtype=jnp.int32)[None] % jnp.int32(depth)
        operands["query_platters"] = (platters[:, :n], "bq")
        operands["key_platters"] = (platters[:, :m], "b.")
    if pattern.mask is not None:
        mask = _by_token(pattern.mask, depth, n, m)
        operands["mask"] = (mask, "bgq." if mask.shape[2] > 1 else "bg..")
    return operands


def _channels(x: Array) -> Array:
    """Zeros up to a power of two of channels, what the tensor cores multiply."""
    return padded(x, 3, max(_LEAST, 1 << (x.shape[3] - 1).bit_length()))


def _by_token(mask: Array, depth: int, n: int, m: int) -> Array:
    """The mask by token, ``[b | 1, g | 1, n | 1, m | 1]`` of 0 and 1, not allowed behind the last.

    An axis of size 1 stays: a padding mask remains one row.
    """
    batch, heads, platters, queries, keys = mask.shape
    if platters > 1 or queries > 1:
        mask = jnp.broadcast_to(mask, (batch, heads, depth, queries, keys))
    mask = jnp.moveaxis(mask, 2, 3).reshape(batch, heads, -1, keys)
    if platters > 1 and queries == 1:
        mask = jnp.tile(mask, (1, 1, -(-n // depth), 1))[:, :, :n]
    if mask.shape[2] > 1:
        mask = padded(mask, 2, n)
    if keys > 1:
        mask = padded(jnp.repeat(mask, depth, axis=3), 3, m)
    return mask.astype(jnp.int8)


def _kernel(
    names: tuple[str, ...], size: int, num_keys: int, channels: int, pattern: Pattern, *refs: Any
) -> None:
    """One block of queries: keys are read block by block, and their average kept in registers."""
    answer_ref, log_sum_ref = refs[-2:]
    inputs = dict(zip(names, refs[:-2], strict=True))
    query = inputs["query"][...]
    logits_fn = partial(_logits, inputs, query, size, num_keys, channels**-0.5, pattern)

    def step(turn: Array, carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        top, total, sums = carry
        start = inputs["order"][turn] * size
        logits = logits_fn(start)
        value = inputs["value"][pl.ds(start, size), :]
        highest = jnp.maximum(top, jnp.max(logits, axis=1))
        shift = jnp.where(highest == -jnp.inf, 0.0, highest)
        before, factors = jnp.exp(top - shift), jnp.exp(logits - shift[:, None])
        read = _product(factors.astype(value.dtype), value, 0)
        return (
            highest,
            before * total + jnp.sum(factors, axis=1),
            before[:, None] * sums + read,
        )

    rows = query.shape[0]
    start = (
        jnp.full((rows,), -jnp.inf, jnp.float32),
        jnp.zeros((rows,), jnp.float32),
        jnp.zeros((rows, answer_ref.shape[1]), jnp.float32),
    )
    count = inputs["count"][0]
    top, total, sums = jax.lax.fori_loop(jnp.zeros_like(count), count, step, start)
    empty = top == -jnp.inf
    total = jnp.where(empty, 1.0, total)
    answer_ref[...] = (sums / total[:, None]).astype(answer_ref.dtype)
    log_sum_ref[...] = (jnp.where(empty, 0.0, top) + jnp.log(total))[:, None]


def _product(left: Array, right: Array, axis: int) -> Array:
    """Product over the last axis of the left and an axis of the right, summed in float32."""
    return jax.lax.dot_general(
        left, right, (((1,), (axis,)), ((), ())), preferred_element_type=jnp.float32
    )


def _logits(
    inputs: dict[str, Any],
    query: Array,
    size: int,
    num_keys: int,
    scale: float,
    pattern: Pattern,
    start: Array,
) -> Array:
    """Logits of a block of queries and the keys from ``start`` on; ``-inf`` where not allowed."""
    part = pl.ds(start, size)
    logits = _product(query, inputs["key"][part, :], 1) * jnp.float32(scale)
    offset = inputs["query_places"][...][:, None] - inputs["key_places"][part][None, :]
    if "slope" in inputs:
        distance = pattern.distance_fn(offset, pattern.circumference).astype(jnp.float32)
        if pattern.depth > 1:
            hops = inputs["query_platters"][...][:, None] - inputs["key_platters"][part][None, :]
            distance += platter_distance(hops, pattern.depth).astype(jnp.float32)
        logits -= inputs["slope"][...][:, None] * distance
    allowed = within(pattern, offset)
    conditions = [] if allowed is None else [allowed]
    if num_keys % size:
        token = start + jnp.arange(size, dtype=jnp.int32)
        conditions.append((token < num_keys)[None, :])
    if "mask" in inputs:
        mask = inputs["mask"]
        conditions.append((mask[:, part] if mask.shape[1] > 1 else mask[...]) != 0)
    for condition in conditions:
        logits = jnp.where(condition, logits, -jnp.inf)
    return logits


def _backward(_: _Options, kept: Kept, cotangent: Array) -> tuple:
    # A GPU wants few large products: on an H200, a third of the time of blocks of 64 keys.
    batch, heads = kept.query.shape[:2]
    keys = _MOST_SCORES // max(1, batch * heads * _MOST_TOKENS)
    sizes = Sizes(_MOST_TOKENS, max(64, min(_MOST_TOKENS, keys)))
    return pull_back(sizes, kept, cotangent)


_attend.defvjp(_forward, _backward)

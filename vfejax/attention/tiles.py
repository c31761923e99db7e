"""Attention over one block of keys, from a pattern that was cut to it: what streams and rings of
devices are made of.
"""

from dataclasses import replace
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.attention.pattern import Pattern, tile
from vfejax.attention.softmax import Average, partial_average
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["Gradients", "average", "gradients", "logits"]


class Gradients(NamedTuple):
    """What one block adds to the gradients, summed in at least float32.

    Attributes:
        query: ``[b, g, n, c]``.
        key: ``[b, g, m, c]``.
        value: ``[b, g, m, v]``.
        slope: ``[g, D]``; None for a pattern without a bias.
    """

    query: Array
    key: Array
    value: Array
    slope: Array | None


def logits(query: Array, key: Array, pattern: Pattern) -> tuple[Array, Array | None]:
    """Logits ``<q, k> / c^(1/2) - bias`` of all pairs of the block, and which of them count.

    Args:
        query: ``[b, g, n, c]``.
        key: ``[b, g, m, c]``.
        pattern: of these queries and keys.

    Returns:
        ``[b, g, n, m]`` in at least float32, and a mask that broadcasts to it or None.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(3)[None]
    >>> ring = Pattern(places, places, None, None, 1, 3, circular_distance, True, None, True)
    >>> values, allowed = logits(jnp.ones((1, 1, 3, 4)), jnp.ones((1, 1, 3, 4)), ring)
    >>> values[0, 0, 0].tolist(), allowed[0, 0, 0].tolist()
    ([2.0, 2.0, 2.0], [True, False, False])
    """
    real = at_least_float32(query.dtype)
    scores = jnp.einsum("bgnc,bgmc->bgnm", query, key, preferred_element_type=real)
    scores = scores / jnp.asarray(query.shape[-1] ** 0.5, real)
    bias, allowed = tile(pattern)
    return scores if bias is None else scores - bias.astype(real), allowed


def average(query: Array, key: Array, value: Array, pattern: Pattern) -> Average:
    """Softmax average over the keys of the block, to be joined with those of others by
    :func:`vfejax.attention.softmax.combine`.

    Args:
        query: ``[b, g, n, c]``.
        key: ``[b, g, m, c]``.
        value: ``[b, g, m, v]``, finite also where no query reads.
        pattern: of these queries and keys.

    Returns:
        The average, undivided: ``[b, g, n]`` twice and ``[b, g, n, v]``.

    >>> from vfejax.attention.softmax import finish
    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(3)[None]
    >>> ring = Pattern(places, places, None, None, 1, 3, circular_distance, True, None, True)
    >>> zeros, value = jnp.zeros((1, 1, 3, 2)), jnp.array([[[[2.0], [4.0], [9.0]]]])
    >>> finish(average(zeros, zeros, value, ring))[0, 0, :, 0].tolist()
    [2.0, 3.0, 5.0]
    """
    scores, allowed = logits(query, key, pattern)
    return partial_average(scores, value, allowed)


def gradients(
    projected: tuple[Array, Array, Array],
    pattern: Pattern,
    log_total: Array,
    cotangent: Array,
    inner: Array,
) -> Gradients:
    """What one block of keys adds to the gradients of the attention over all blocks.

    With ``p_ij = exp(l_ij - log_total_i)``, the cotangent ``t_i`` of the answer ``o_i`` and
    ``inner_i = <t_i, o_i>``,

        dl_ij = p_ij (<t_i, v_j> - inner_i),    dv_j = sum_i p_ij t_i,

    so a block is pulled back without the others.

    Args:
        projected: query ``[b, g, n, c]``, key ``[b, g, m, c]`` and value ``[b, g, m, v]``.
        pattern: of these queries and keys.
        log_total: ``log sum_j exp(l_ij)`` over the keys of all blocks, ``[b, g, n]``; any finite
            number for a query without keys.
        cotangent: of the answer, ``[b, g, n, v]``.
        inner: product of the answer with its cotangent, ``[b, g, n]``.

    Source: Dao et al., FlashAttention (2022), algorithm 4.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(1)[None]
    >>> alone = Pattern(places, places, None, None, 1, 3, circular_distance, True, None, True)
    >>> one = jnp.ones((1, 1, 1, 1))
    >>> found = gradients((one, one, one), alone, one[..., 0], 2 * one, 2 * one[..., 0])
    >>> found.query.item(), found.value.item()
    (0.0, 2.0)
    """
    query, key, value = projected
    scores, allowed = logits(query, key, pattern)
    real = scores.dtype
    scores = scores if allowed is None else jnp.where(allowed, scores, -jnp.inf)
    weights = jnp.exp(scores - log_total[..., None])
    by_weight = jnp.einsum("bgnv,bgmv->bgnm", cotangent, value, preferred_element_type=real)
    change = weights * (by_weight - inner[..., None])
    half = change.astype(query.dtype)
    scale = jnp.asarray(query.shape[-1] ** -0.5, real)
    by_query = jnp.einsum("bgnm,bgmc->bgnc", half, key, preferred_element_type=real) * scale
    by_key = jnp.einsum("bgnm,bgnc->bgmc", half, query, preferred_element_type=real) * scale
    by_value = jnp.einsum(
        "bgnm,bgnv->bgmv", weights.astype(value.dtype), cotangent, preferred_element_type=real
    )
    return Gradients(by_query, by_key, by_value, _by_slope(pattern, change))


def _by_slope(pattern: Pattern, change: Array) -> Array | None:
    slope = pattern.slope
    if slope is None:
        return None

    def total(slope: Array) -> Array:
        bias = tile(replace(pattern, slope=slope)).bias
        return jnp.sum(change * bias) if bias is not None else jnp.zeros((), change.dtype)

    return -jax.grad(total)(slope.astype(change.dtype)).astype(slope.dtype)

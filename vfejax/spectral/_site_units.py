"""A unit of energy for every site of a chain, by the sites up to it.

With a power of two r_i for every site, ``D_i = r_i^2 d_i``, ``K_i = r_i^2 r_{i-1}^2 k_i`` and
``g_i = r_i^2 G_i`` the fraction ``G_i = 1 / (D_i - K_i G_{i-1})`` is that of the chain, without
rounding. The size of a pivot is estimated as if nothing cancelled, by its binary exponent

    e_i = max(exponent d_i, exponent k_i - e_{i-1}),

and r_i brings it near 1. Then D and K are of order 1 at most, whatever the sizes of the sites.
Chains of ordinary size have ``r = 1`` throughout, and e is not computed for them.
"""

import math
from functools import reduce
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.spectral._scale import ORDINARY, exponent
from vfejax.spectral._shards import neighbour
from vfejax.spectral.scans import vanishing
from vfejax.types import Array

__all__ = ["shared_unit_roots", "unit_root", "unit_roots"]

_NONE = -(2**20)
"""Exponent of 0."""


class _Range(NamedTuple):
    """Exponents of a floating-point format: the largest number, and the pivots of ordinary sites,
    between which r is 1.
    """

    limit: int
    least: int
    most: int


def _range(dtype: jnp.dtype) -> _Range:
    """Sites count as ordinary while poles stay below rounding, and squares of pivots that follow a
    pole in range: ``(8 K / vanishing)^2`` with ``K <= 2^most``.
    """
    finfo = jnp.finfo(dtype)
    limit = -int(finfo.minexp)
    pole = -round(math.log2(vanishing(dtype)))
    return _Range(limit, finfo.nmant + 5 - pole, limit // 2 - pole - 6)


def _size(x: Array) -> Array:
    """Binary exponent, ``_NONE`` of zeros."""
    biased = exponent(x)
    return jnp.where(biased == 0, _NONE, biased + int(jnp.finfo(x.dtype).minexp) - 1)


def _half(e: Array, bounds: _Range) -> Array:
    """Exponent of r that brings ``2^e`` to 1 or 2."""
    return jnp.clip(-(e >> 1), -(bounds.limit // 2), bounds.limit // 2)


def _sizes(own: Array, factors: tuple[Array, ...]) -> tuple[Array, Array]:
    """Exponents of sites, 0 for those of nothing, and of the product of the factors."""
    coupling = reduce(jnp.add, (_size(factor) for factor in factors))
    nothing = jnp.maximum(own, coupling) <= _NONE // 2
    return jnp.where(nothing, 0, own), coupling


def _halves(e: Array, coupling: Array, bounds: _Range) -> Array:
    """Exponents of r."""
    ordinary = (e >= bounds.least) & (e <= bounds.most) & (coupling <= bounds.most)
    return jnp.where(ordinary, 0, _half(e, bounds))


def _estimates(own: Array, coupling: Array, before: Array, bounds: _Range) -> Array:
    """e of all sites from that before the first."""

    def step(e: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        e = jnp.clip(jnp.maximum(row[0], row[1] - e), -bounds.limit, bounds.limit)
        return e, e

    return jax.lax.scan(step, before, (own, coupling))[1]


def _ordinary(own: Array, coupling: Array, bounds: _Range) -> Array:
    """Whether all e are ordinary for certain, as ``own <= e <= max(own, coupling - least)``."""
    sites = (own >= bounds.least) & (own <= bounds.most)
    return jnp.all(sites & (coupling <= bounds.most + bounds.least))


def _power_of_two(exponent: Array, dtype: jnp.dtype) -> Array:
    finfo = jnp.finfo(dtype)
    bits = jax.lax.convert_element_type(exponent, jnp.dtype(f"int{finfo.bits}"))
    bits = (bits + 1 - int(finfo.minexp)) << finfo.nmant
    return jax.lax.bitcast_convert_type(bits, finfo.dtype)


def unit_root(d: Array, felt: Array) -> Array:
    """r of sites by the larger of ``d`` and of what they feel of the sites before, 1 where that is
    2^-8 to 2^8, or 0; without derivatives.

    Args:
        d: diagonal, ``[...]``.
        felt: ``k_i g_{i-1}``, ``[...]``, of the dtype of d.

    >>> r = unit_root(jnp.asarray([2.0, 0.0]), jnp.asarray([0.0, 2.0**60]))
    >>> (r * 2.0**30).tolist() == [2.0**30, 1.0]
    True
    """
    e = jnp.maximum(_size(d), _size(felt))
    ordinary = (jnp.abs(e) <= ORDINARY) | (e == _NONE)
    return _power_of_two(jnp.where(ordinary, 0, _half(e, _range(d.dtype))), d.dtype)


def unit_roots(d: Array, factors: tuple[Array, ...], first: Array) -> Array:
    """r of chains, without derivatives.

    Args:
        d: diagonal, ``[n, ...]``.
        factors: of the coupling to the site before, each ``[n, ...]``.
        first: what the first site feels of sites before it, ``[...]``, of the dtype of d.

    Returns:
        Powers of two, real ``[n, ...]``.

    >>> d, b = jnp.array([2.0**-80, 0.0]), jnp.full(2, 2.0**-70)
    >>> r = unit_roots(d, (b, b), jnp.zeros(()))  # for pivots of 2^-80 and 2^-60
    >>> r.tolist() == [2.0**40, 2.0**30]
    True
    """
    bounds, own = _range(d.dtype), _size(d)
    own = jnp.concatenate([jnp.maximum(own[:1], _size(first)[None]), own[1:]])
    # What came before is in ``first``.
    factors = tuple(jnp.concatenate([jnp.zeros_like(f[:1]), f[1:]]) for f in factors)
    own, coupling = _sizes(own, factors)

    def found() -> Array:
        # In turn also on an accelerator: the program of a tree would be compiled for all chains.
        return _halves(_estimates(own, coupling, jnp.zeros_like(own[0]), bounds), coupling, bounds)

    halves = jax.lax.cond(_ordinary(own, coupling, bounds), lambda: jnp.zeros_like(own), found)
    return _power_of_two(halves, d.dtype)


def shared_unit_roots(d: Array, factors: tuple[Array, ...], axis_name: str) -> Array:
    """r of chains that devices share, without derivatives: :func:`unit_roots` of whole chains.

    Args:
        d: a shard of the diagonal, ``[l, ...]``.
        factors: shards of the factors of the coupling to the site before, each ``[l, ...]``; one of
            those of the first site of all is 0.
        axis_name: axis of the mesh along the sequence.

    Returns:
        Real ``[l, ...]``.

    >>> both = jax.vmap(lambda d: shared_unit_roots(d, (0 * d,), "sequence"), axis_name="sequence")
    >>> jax.jit(both)(jnp.array([[1.0], [2.0**-40]])).tolist() == [[1.0], [2.0**20]]
    True
    """
    bounds = _range(d.dtype)
    own, coupling = _sizes(_size(d), factors)
    ordinary = jax.lax.pmin(_ordinary(own, coupling, bounds).astype(jnp.int32), axis_name)

    def found() -> Array:
        # In every round one more shard starts from the right exponent.
        def next_start(_: Array, before: Array) -> Array:
            return neighbour(_estimates(own, coupling, before, bounds), axis_name)[0]

        start = 0 * own[0]
        start = jax.lax.fori_loop(0, jax.lax.axis_size(axis_name) - 1, next_start, start)
        return _halves(_estimates(own, coupling, start, bounds), coupling, bounds)

    # A zero of the same kind as what is found: each device's own.
    halves = jax.lax.cond(ordinary > 0, lambda: 0 * own, found)
    return _power_of_two(halves, d.dtype)

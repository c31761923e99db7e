"""The continued fraction ``g_i = 1 / (d_i - k_i g_{i-1})`` in any unit of energy, site by site.

Entry i depends on sites 0..i alone, bit for bit, so that no unit may be taken from a whole chain.
One after the other, the sites are first swept as they are. Where a pivot is too small or too large
for that, NaN takes its place, and stays to the end of its chain, where one look finds it. Then the
chains are swept again, every site in a unit of its own, a power of two, which changes no bit of the
sites before. Chains of ordinary size are swept once, and nothing more is read or written for them.

A coupling is a tuple of factors, ``(k,)`` or ``(b, c)``, whose product is never formed alone: in
other units than 1 it would leave the range of floating-point numbers before the fraction does.
"""

from collections.abc import Callable
from functools import reduce

import jax
import jax.numpy as jnp

from vfejax.spectral._site_units import unit_root, unit_roots
from vfejax.spectral.scans import ASSOCIATIVE, pad_front, pivot_reciprocal, scaled, vanishing
from vfejax.types import Array

__all__ = ["Factors", "felt", "one_by_one", "pivot_reciprocal_in_unit", "tree"]

Factors = tuple[Array, ...]


def felt(factors: Factors, g: Array) -> Array:
    """``b (c g)``, or ``k g``: what a site feels of the one before it.

    >>> print(felt((jnp.asarray(1e-30), jnp.asarray(1e-30)), jnp.asarray(1e30)))
    1e-30
    """
    return reduce(lambda g, factor: scaled(factor, g), reversed(factors), g)


def _twice(r: Array, x: Array) -> Array:
    """``r^2 x``, where ``r^2`` alone might leave the range of numbers."""
    return scaled(r, scaled(r, x))


def pivot_reciprocal_in_unit(d: Array, felt: Array) -> Array:
    """``1 / (d - felt)`` by :func:`vfejax.spectral.scans.pivot_reciprocal`, in a unit of the larger
    of both.

    >>> tiny = jnp.asarray(1e-30)
    >>> print(pivot_reciprocal_in_unit(2 * tiny, tiny))
    1e+30
    """
    r = unit_root(d, felt)
    return _twice(r, pivot_reciprocal(_twice(r, d - felt)))


def _reciprocal_in_range(w: Array) -> Array:
    """``1 / w``, NaN unless the square of w is far from underflow and from overflow."""
    least = 4.0 * vanishing(w.dtype)
    if not jnp.iscomplexobj(w):
        return jnp.where(jnp.abs(w) > least, 1.0 / w, jnp.nan)
    square, most = w.real * w.real + w.imag * w.imag, float(jnp.finfo(w.dtype).max) / 256.0
    scale = jnp.where((square > least**2) & (square < most), 1.0 / square, jnp.nan)
    return jax.lax.complex(w.real * scale, -w.imag * scale)


def _swept(
    reciprocal_fn: Callable[[Array], Array], d: Array, factors: Factors, initial: Array
) -> Array:
    def step(g: Array, row: tuple[Array, Factors]) -> tuple[Array, Array]:
        g = reciprocal_fn(row[0] - felt(row[1], g))
        return g, g

    return jax.lax.scan(step, initial, (d, factors))[1]


def _in_units(r: Array, factors: Factors) -> Factors:
    """Factors of ``K_i = r_i^2 r_{i-1}^2 k_i``; what is before the first site has unit 1."""
    pairs = r * jnp.concatenate([jnp.ones_like(r[:1]), r[:-1]])
    if len(factors) == 1:
        return (_twice(pairs, factors[0]),)
    return tuple(scaled(pairs, factor) for factor in factors)


def _swept_in_units(d: Array, factors: Factors, initial: Array) -> Array:
    """Once for the sizes of the pivots, and once in units of these.

    Sizes read what a site feels, so that XLA may round the pivot of the first sweep in another way.
    That of the second is rounded as every sweep is: the bits of an ordinary site are those that it
    has in a chain of ordinary sites.
    """

    def step(g: Array, row: tuple[Array, Factors]) -> tuple[Array, Array]:
        d, came = row[0], felt(row[1], g)
        g = pivot_reciprocal_in_unit(d, came)
        # NaN and pivots beyond all numbers leave the sizes of what follows as they are.
        return jnp.where(jnp.isnan(g), jnp.zeros_like(g), g), unit_root(d, came)

    r = jax.lax.scan(step, initial, (d, factors))[1]
    g = _swept(pivot_reciprocal, _twice(r, d), _in_units(r, factors), initial)
    return _twice(r, g)


def one_by_one(d: Array, factors: Factors, initial: Array) -> Array:
    """The fraction by one step after the other.

    Args:
        d: diagonal, ``[n, ...]``.
        factors: of the coupling, each ``[n, ...]``, of the dtype of d or its real one; the first
            entries couple to ``initial``.
        initial: g before the first site, ``[...]``, of the dtype of d.

    Returns:
        Shape and dtype of d.

    >>> d = jnp.array([0.0, 0.0, 2e-30])
    >>> print(one_by_one(d, (d + 1e-30, d + 1e-30), jnp.zeros(()))[2])
    5e+29
    """

    def again(state: tuple[Array, Array]) -> tuple[Array, Array]:
        # What is the same in every round XLA computes before the first, also if there is none.
        rows, lost = jax.lax.optimization_barrier(((d, factors, initial), state[0]))
        return ~lost, _swept_in_units(*rows)

    g = _swept(_reciprocal_in_range, d, factors, initial)
    # A loop of at most one round: in place, where a choice between two results copies one.
    return jax.lax.while_loop(lambda state: state[0], again, (jnp.any(jnp.isnan(g[-1])), g))[1]


def tree(d: Array, factors: Factors, initial: Array) -> Array:
    """The fraction by products of 2 x 2 matrices, in units of
    :func:`vfejax.spectral._site_units.unit_roots`.

    Args:
        d, factors, initial: as :func:`one_by_one` takes them.

    >>> g = tree(jnp.full(3, 2e-30), (jnp.full(3, 1e-30),) * 2, jnp.zeros(()))
    >>> [round(x, 3) for x in (g * 1e-30).tolist()]
    [0.5, 0.667, 0.75]
    """
    first = felt(tuple(factor[0] for factor in factors), initial)
    r = unit_roots(d, factors, first)
    one = jnp.ones_like(d[1:])
    coupling = felt(tuple(factor[1:] for factor in _in_units(r, factors)), one)
    diagonal = _twice(r, jnp.concatenate([d[:1] - first[None], d[1:]]))
    return _twice(r, ASSOCIATIVE.moebius(diagonal, pad_front(coupling)))

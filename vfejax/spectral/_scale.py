"""The unit of energy in which a chain is swept: a power of two, so that no digit changes.

``(s T - s z)^{-1} = (T - z)^{-1} / s``, exactly for a power of two s. In a unit of its own a chain
of any size is one of entries of order 1: squares of pivots neither overflow nor underflow, and a
pivot counts as a pole (:func:`vfejax.spectral.scans.pivot_reciprocal`) by its size beside the rest
of its chain.

The size of a chain is that of its largest coupling, or of its smallest ``a_i - z`` where that is
larger: single sites of huge energy, which cut a chain, do not count. A pass over all entries would
cost a sixth of the resolvent, so that 24 sites are read, in three stretches, and all of them only
where these are not of ordinary size.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.types import Array

__all__ = ["Exponents", "exponent", "exponents", "inverse_unit", "inverse_unit_of"]

STRETCH = 8
"""Sites of each of the three stretches that are read, at both ends and in the middle."""

BLOCK = 2048
"""Sites that are read at a time where all are, so that no memory grows with the chain."""

ORDINARY = 8
"""Chains of size ``2^-8 ... 2^8`` keep their unit."""


class Exponents(NamedTuple):
    """Exponents of two of a chain, biased as in its floating-point numbers, 0 for zeros: int32.

    Attributes:
        smallest: of the smallest ``a_i - z``.
        largest: of the largest finite one.
        above: of the largest finite b.
        below: of the largest finite c.
    """

    smallest: Array
    largest: Array
    above: Array
    below: Array


def _layout(dtype: jnp.dtype) -> tuple[int, int, jnp.dtype]:
    """Bits of the mantissa, bias, and integers of the size, of a real dtype."""
    finfo = jnp.finfo(dtype)
    return finfo.nmant, 1 - int(finfo.minexp), jnp.dtype(f"int{finfo.bits}")


def exponent(x: Array) -> Array:
    """Biased exponent of the larger part of x; the largest of all for infinity and NaN.

    >>> exponent(jnp.asarray([1.0, 2.0, 0.0])).tolist()
    [127, 128, 0]
    """
    x = jax.lax.stop_gradient(x)
    if jnp.iscomplexobj(x):
        return jnp.maximum(exponent(x.real), exponent(x.imag))
    mantissa, _, integers = _layout(x.dtype)
    bits = jax.lax.bitcast_convert_type(jnp.abs(x), integers)
    return jax.lax.convert_element_type(bits >> mantissa, jnp.int32)


def _stretches(x: Array, whole: bool) -> Array:
    """The entries that are read, ``[..., lanes, stretch]``; of a short chain some of them twice."""
    n = x.shape[-1]
    if whole:
        return x[None]
    width = min(n, STRETCH)
    return jnp.stack(
        [
            jax.lax.slice_in_dim(x, start, start + width, axis=-1)
            for start in (0, (n - width) // 2, n - width)
        ]
    )


def _largest(exponent: Array, beyond: int) -> Array:
    """The largest but those of infinity and NaN, 0 of none."""
    return jnp.max(jnp.where(exponent >= beyond, 0, exponent), axis=(0, -1), initial=0)


def exponents(a: Array, b: Array, c: Array, z: Array, *, whole: bool = False) -> Exponents:
    """Sizes of the entries of chains, without derivatives.

    Args:
        a: diagonal, real or complex, ``[lanes, n]``.
        b: superdiagonal, real or complex, ``[lanes, n - 1]`` or ``[lanes, n]``.
        c: subdiagonal, likewise.
        z: spectral parameter, complex, ``[lanes]``.
        whole: whether all sites are read.

    Returns:
        :class:`Exponents`, each ``[lanes]``.

    >>> a, b, z = jnp.zeros((1, 2)), jnp.full((1, 1), 4.0), jnp.full(1, 1j)
    >>> [int(x[0]) - 127 for x in exponents(a, b, 0 * b, z)]
    [0, 0, 2, -127]
    """
    a, b, c, z = (jax.lax.stop_gradient(x) for x in (a, b, c, z))
    blocks = -(-a.shape[-1] // BLOCK)
    if not whole or blocks == 1:
        return _exponents(a, b, c, z, whole)

    def block(i: Array | int) -> Exponents:
        """Of a block; the last one begins early enough to be as long as the others."""
        size = min(BLOCK, b.shape[-1], c.shape[-1])
        x, y, w = (jax.lax.dynamic_slice_in_dim(x, i * size, size, -1) for x in (a, b, c))
        return _exponents(x, y, w, z, True)

    def widened(i: Array, found: Exponents) -> Exponents:
        more = block(i)
        largest = (jnp.maximum(x, y) for x, y in zip(found[1:], more[1:], strict=True))
        return Exponents(jnp.minimum(found.smallest, more.smallest), *largest)

    return jax.lax.fori_loop(1, blocks, widened, block(0))


def _exponents(a: Array, b: Array, c: Array, z: Array, whole: bool) -> Exponents:
    beyond = 2 * _layout(z.real.dtype)[1] + 1
    if jnp.iscomplexobj(a):
        d, least = exponent(_stretches(a, whole) - z[None, :, None]), jnp.zeros(z.shape, jnp.int32)
    else:
        d, least = exponent(_stretches(a, whole) - z.real[None, :, None]), exponent(z.imag)
    return Exponents(
        jnp.maximum(least, jnp.min(d, axis=(0, -1), initial=beyond)),
        jnp.maximum(jnp.where(least >= beyond, 0, least), _largest(d, beyond)),
        _largest(exponent(_stretches(b, whole)), beyond),
        _largest(exponent(_stretches(c, whole)), beyond),
    )


def inverse_unit(sizes: Exponents, dtype: jnp.dtype) -> Array:
    """The factor s by which a chain is multiplied, and its resolvent after that.

    Args:
        sizes: of :func:`exponents`.
        dtype: real dtype of the chain.

    Returns:
        A power of two, real, 1 for a chain of ordinary size.

    >>> a, b, z = jnp.zeros((1, 2)), jnp.full((1, 1), 2.0**-60), jnp.full(1, 0j)
    >>> inverse_unit(exponents(a, b, b, z), jnp.float32) == 2.0**52
    Array([ True], dtype=bool)
    """
    mantissa, bias, integers = _layout(dtype)
    smallest, largest, above, below = sizes
    coupling = jnp.where((above == 0) | (below == 0), 0, (above + below) // 2)
    size = jnp.maximum(coupling, jnp.where(smallest > 2 * bias, 0, smallest))
    size = jnp.where(size == 0, largest, size)
    power = jnp.where(size == 0, 0, jnp.clip(0, bias - size - ORDINARY, bias - size + ORDINARY))
    # Where entries differ by more than that, the squares of the largest stay in range.
    room = jnp.maximum(0, bias + bias // 4 - largest)
    power = jnp.clip(jnp.minimum(power, room), 1 - bias, bias - 1)
    bits = jax.lax.convert_element_type(power + bias, integers) << mantissa
    return jax.lax.bitcast_convert_type(bits, dtype)


def inverse_unit_of(a: Array, b: Array, c: Array, z: Array) -> Array:
    """:func:`inverse_unit` of whole chains side by side.

    Args:
        a: diagonal, real or complex, ``[lanes, n]``.
        b: superdiagonal, real or complex, ``[lanes, n - 1]``.
        c: subdiagonal, likewise.
        z: spectral parameter, complex, ``[lanes]``.

    >>> a, z = jnp.ones((1, 2)), jnp.full(1, 2.0 + 0j)
    >>> print(inverse_unit_of(a, a[:, 1:], a[:, 1:], z))
    [1.]
    """
    s = _chosen(lambda whole: inverse_unit(exponents(a, b, c, z, whole=whole), z.real.dtype))
    # Else XLA computes it again for every entry that it multiplies.
    return jax.lax.optimization_barrier(s)


def _chosen(unit_fn: Callable[[bool], Array]) -> Array:
    """The unit by some sites; that by all of them of a chain which some do not find ordinary."""
    some = unit_fn(False)
    ordinary = some == 1
    return jax.lax.cond(
        jnp.all(ordinary), lambda: some, lambda: jnp.where(ordinary, some, unit_fn(True))
    )


def inverse_unit_over(d: Array, b: Array, c: Array, axis_name: str) -> Array:
    """:func:`inverse_unit` of chains that devices share, the same on all of them.

    Args:
        d: a shard of ``a - z``, sites first, complex ``[l, ...]``.
        b: of the superdiagonal, of the same shape and dtype.
        c: of the subdiagonal, likewise.
        axis_name: axis of the mesh along the sequence.

    Returns:
        Real ``[...]``.

    >>> both = jax.vmap(lambda d: inverse_unit_over(d, d, d, "sequence"), axis_name="sequence")
    >>> print(jax.jit(both)(jnp.full((2, 3), 4j)))
    [1. 1.]
    """
    d_lanes, b_lanes, c_lanes = (
        jnp.reshape(jax.lax.stop_gradient(x), (x.shape[0], -1)).T for x in (d, b, c)
    )
    z = jnp.zeros_like(d_lanes[:, 0])

    def unit(whole: bool) -> Array:
        sizes = exponents(d_lanes, b_lanes, c_lanes, z, whole=whole)
        smallest = jax.lax.pmin(sizes.smallest, axis_name)
        largest = (jax.lax.pmax(x, axis_name) for x in sizes[1:])
        return inverse_unit(Exponents(smallest, *largest), d.real.dtype)

    return jnp.reshape(_chosen(unit), d.shape[1:])

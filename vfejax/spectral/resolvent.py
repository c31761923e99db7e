"""Diagonal of the resolvent ``G = (T - z)^{-1}`` of a tridiagonal matrix in O(n), by ratios that
never overflow, with its exact derivatives.

The resolvent is also known as the Green's function, up to its sign. With ``d_i = a_i - z`` and
``k_i = b_i c_i`` (super- times subdiagonal) the left- and right-connected resolvents are continued
fractions,

    gL_i = 1 / (d_i - k_{i-1} gL_{i-1}),   gR_i = 1 / (d_i - k_i gR_{i+1}),
    G_ii = 1 / (d_i - k_{i-1} gL_{i-1} - k_i gR_{i+1}).

The textbook form ``G_ii = theta_i phi_i / theta_N`` by three-term recursions of determinants
overflows complex64 near n = 110 and complex128 near n = 915. The ratios are bounded, ``|g| <= 1 /
Im z`` for real a, ``k >= 0`` and ``Im z > 0``, and accurate to rounding at every n.

A leading minor of ``T - z`` may vanish off the spectrum, as at the centre of the band of a chain
with equal sites. gL then has a pole, and G has none: the recursions pass it, see
:func:`vfejax.spectral.scans.pivot_reciprocal`.

G_ii sees the whole chain, gL_i only the sites up to i: a causal model must use
:func:`left_resolvent_diagonal`.
"""

import math

import jax.numpy as jnp

from vfejax.spectral._arguments import chain_shape, complex_dtype
from vfejax.spectral._diagonal import diagonal_of_chains
from vfejax.spectral._scale import inverse_unit_of
from vfejax.spectral.recurrence import PLATFORM, Scans, fraction_scan, pad_front
from vfejax.types import Array

__all__ = [
    "chains_of",
    "complex_dtype",
    "left_resolvent_diagonal",
    "resolvent_diagonal",
    "shifted_tridiagonal",
    "side_by_side",
    "sites_first",
]


def sites_first(x: Array, batch: tuple[int, ...], dtype: jnp.dtype) -> Array:
    """``x [..., n]`` cast, broadcast to the leading axes ``batch``, and with the sites first.

    Args:
        x: ``[..., n]``.
        batch: leading axes wanted.
        dtype: dtype wanted.

    Returns:
        ``[n, *batch]``.

    >>> sites_first(jnp.ones(4), (3, 2), jnp.dtype("complex64")).shape
    (4, 3, 2)
    """
    return jnp.moveaxis(jnp.broadcast_to(x.astype(dtype), (*batch, x.shape[-1])), -1, 0)


def shifted_tridiagonal(
    diagonal: Array, superdiagonal: Array, subdiagonal: Array, z: Array | complex
) -> tuple[Array, Array]:
    """``d = a - z [n, ...]``, complex, and ``k = b c [n - 1, ...]``, real where both are, broadcast
    and with the sites first.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1.
        superdiagonal: b, ``[..., n - 1]``.
        subdiagonal: c, ``[..., n - 1]``.
        z: a number or ``[...]``.

    Returns:
        d and k.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> d, k = shifted_tridiagonal(jnp.ones((4, 3)), jnp.ones(2), jnp.ones(2), 1j)
    >>> d.shape, k.shape, k.dtype
    ((3, 4), (2, 4), dtype('float32'))
    """
    dtype = complex_dtype(
        diagonal=diagonal, superdiagonal=superdiagonal, subdiagonal=subdiagonal, z=z
    )
    batch = chain_shape(diagonal, superdiagonal, subdiagonal, z)
    real_couplings = not (jnp.iscomplexobj(superdiagonal) or jnp.iscomplexobj(subdiagonal))
    coupling_dtype = jnp.finfo(dtype).dtype if real_couplings else dtype
    a = sites_first(diagonal, batch, dtype)
    b, c = (sites_first(x, batch, coupling_dtype) for x in (superdiagonal, subdiagonal))
    return a - jnp.broadcast_to(jnp.asarray(z, dtype), a.shape), b * c


def side_by_side(
    diagonal: Array, superdiagonal: Array, subdiagonal: Array, z: Array, batch: tuple[int, ...]
) -> tuple[Array, Array, Array, Array]:
    """Chains broadcast to the leading axes ``batch``, which become one, and both off-diagonals in
    their common dtype.

    Args:
        diagonal: a, ``[..., n]``.
        superdiagonal: b, ``[..., n - 1]``.
        subdiagonal: c, ``[..., n - 1]``.
        z: ``[...]``.
        batch: leading axes wanted.

    Returns:
        a ``[lanes, n]``, b and c ``[lanes, n - 1]``, and z ``[lanes]``.

    >>> a, b, c, z = side_by_side(jnp.ones(3), jnp.ones(2), 1j * jnp.ones(2), jnp.ones(4), (2, 4))
    >>> a.shape, b.dtype, z.shape
    ((8, 3), dtype('complex64'), (8,))
    """

    def lanes(x: Array, *like: Array) -> Array:
        x = x.astype(jnp.result_type(x, *like))
        n = x.shape[-1]
        return jnp.reshape(jnp.broadcast_to(x, (*batch, n)), (math.prod(batch), n))

    b, c = lanes(superdiagonal, subdiagonal), lanes(subdiagonal, superdiagonal)
    return lanes(diagonal), b, c, lanes(z[..., None])[:, 0]


def chains_of(
    diagonal: Array, superdiagonal: Array, subdiagonal: Array, z: Array | complex
) -> tuple[tuple[Array, Array, Array, Array], Array, tuple[int, ...]]:
    """Checked chains of :func:`side_by_side`, the power of two by which each is multiplied, and
    their leading axes.

    Args:
        diagonal: a, ``[..., n]``, n >= 1.
        superdiagonal: b, ``[..., n - 1]``.
        subdiagonal: c, ``[..., n - 1]``.
        z: a number or ``[...]``.

    Returns:
        a, b, c and z; real ``[lanes]``; the leading axes.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> chains, s, batch = chains_of(jnp.ones((4, 3)), jnp.ones(2), jnp.ones(2), 1j)
    >>> chains[0].shape, s.shape, batch
    ((4, 3), (4,), (4,))
    """
    dtype = complex_dtype(
        diagonal=diagonal, superdiagonal=superdiagonal, subdiagonal=subdiagonal, z=z
    )
    batch = chain_shape(diagonal, superdiagonal, subdiagonal, z)
    chains = side_by_side(diagonal, superdiagonal, subdiagonal, jnp.asarray(z, dtype), batch)
    return chains, inverse_unit_of(*chains), batch


def left_resolvent_diagonal(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """Left-connected resolvent ``gL_i = [(T_{0..i} - z)^{-1}]_{ii}``: site i with everything after
    it cut off.

    Causal: ``gL_i`` depends on ``a_0 .. a_i`` and ``k_0 .. k_{i-1}`` alone, bit for bit.

    Units: any, also of sites of very different sizes in one chain. A pivot ``a_i - z - k_{i-1}
    gL_{i-1}`` counts as a pole by its size beside the two numbers that it is the difference of.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1. A site that is not finite makes NaN from
            there on.
        superdiagonal: b = T_{i,i+1}, ``[..., n - 1]``. A zero in b or c cuts the chain, as a wall
            does.
        subdiagonal: c = T_{i+1,i}, ``[..., n - 1]``. Leading axes of all arguments broadcast.
        z: spectral parameter, a number or ``[...]``.
        scans: the algorithm, for the gradient too.

    Returns:
        Complex ``[..., n]``, complex64 for float32 and complex128 for float64. Where z is an
        eigenvalue of the chain cut off after site i, gL_i is infinite. It comes out as ``2^40``
        (``2^100`` in double precision) over a power of two of the size of that site, over 1 at a
        first site of 0, and the other entries are right. Derivatives of every order, forward and
        reverse.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> print(left_resolvent_diagonal(jnp.zeros(2), jnp.ones(1), jnp.ones(1), 1j).imag)
    [1.  0.5]
    """
    dtype = complex_dtype(
        diagonal=diagonal, superdiagonal=superdiagonal, subdiagonal=subdiagonal, z=z
    )
    batch = chain_shape(diagonal, superdiagonal, subdiagonal, z)
    a, b, c, z = side_by_side(diagonal, superdiagonal, subdiagonal, jnp.asarray(z, dtype), batch)
    d = a.T.astype(dtype) - z[None]
    left = fraction_scan(d, (pad_front(b.T), pad_front(c.T)), jnp.zeros_like(z), scans)
    return jnp.reshape(left.T, (*batch, diagonal.shape[-1]))


def resolvent_diagonal(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """Diagonal of the resolvent, ``G_ii = [(T - z)^{-1}]_{ii}``, of the tridiagonal T, in O(n) time
    and memory.

    Units: any. A chain is swept in a unit of its own, a power of two that brings its largest
    coupling, or its smallest ``a_i - z`` if that is larger, to 2^-8 ... 2^8; it is taken from 24
    sites, at both ends and in the middle. In that unit pivots below 2^-40 (2^-100 in double
    precision) count as poles: parts of a chain that are that much smaller than the rest are lost.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1. A site that is not finite makes NaN of
            its chain.
        superdiagonal: b = T_{i,i+1}, ``[..., n - 1]``. A zero in b or c cuts the chain, as a wall
            does.
        subdiagonal: c = T_{i+1,i}, ``[..., n - 1]``. Leading axes of all arguments broadcast.
        z: spectral parameter, a number or ``[...]``, off the spectrum (``Im z > 0`` is enough when
            T is symmetric). Leading minors of ``T - z`` may vanish.
        scans: the algorithm, for the gradient too.

    Returns:
        Complex ``[..., n]``, complex64 for float32 and complex128 for float64. For symmetric T and
        Im z > 0, Im G > 0; for Im z >= 0.5 and entries of order 1 the relative error is then below
        1e-12 and 5e-6 at every n (it grows as ``|T - z| / Im z``). At an eigenvalue of T, where G
        is infinite, entries are NaN or of the order of 2^40 (2^100) over the unit. Derivatives are
        exact in all four arguments, forward and reverse, of every order (of the first where a minor
        vanishes), and real for real arguments.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    Source: Economou, Green's Functions in Quantum Physics (2006), section 5.3 and appendix; Usmani,
    Linear Algebra Appl. 212 (1994) 413 for theta and phi. Carrying ratios, and their adjoint, are
    ours.

    >>> a, b = jnp.zeros(2), jnp.ones(1)
    >>> print(resolvent_diagonal(a, b, b, 1j).imag)
    [0.5 0.5]
    """
    chains, s, batch = chains_of(diagonal, superdiagonal, subdiagonal, z)
    g, _ = diagonal_of_chains(*chains, s, scans)
    return jnp.reshape(g, (*batch, diagonal.shape[-1]))

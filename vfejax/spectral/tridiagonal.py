"""Tridiagonal systems ``(T - z) y = x`` in O(n): causal sweep, solve, determinant, density of
states.

Everything rests on ``gL_i``, the reciprocal pivots of the elimination
(:func:`vfejax.spectral.resolvent.left_resolvent_diagonal`), and on one linear recurrence. The solve
and the determinant stay right where a leading minor of ``T - z`` vanishes and elimination without
pivoting divides by zero.
"""

import math
from functools import partial

import jax
import jax.numpy as jnp

from vfejax.numerics import broadcast_named
from vfejax.spectral._arguments import chain_shape, check_arrays, complex_dtype
from vfejax.spectral._diagonal import coefficients
from vfejax.spectral._scale import inverse_unit_of
from vfejax.spectral._solution import solution_of_chains
from vfejax.spectral.recurrence import (
    PLATFORM,
    Scans,
    linear_recurrence,
    moebius_scan,
)
from vfejax.spectral.resolvent import (
    chains_of,
    resolvent_diagonal,
    side_by_side,
)
from vfejax.spectral.scans import infinite_at_poles
from vfejax.spectral.sides import sides
from vfejax.types import Array

__all__ = ["causal_sweep", "determinant", "log_determinant", "resolvent_matvec", "spectral_density"]


def _check_sweep(left: Array, subdiagonal: Array, x: Array) -> tuple[int, ...]:
    check_arrays(left=left, subdiagonal=subdiagonal, x=x)
    n = left.shape[-1] if left.ndim else 0
    if n == 0 or not jnp.iscomplexobj(left):
        raise ValueError(
            f"left must be complex [..., n] with n >= 1, got {left.dtype} {left.shape}"
        )
    if subdiagonal.ndim == 0 or subdiagonal.shape[-1] != n - 1:
        raise ValueError(
            f"subdiagonal must be [..., {n - 1}] for {n} sites, got {subdiagonal.shape}"
        )
    if x.ndim < 2 or x.shape[-2] != n:
        raise ValueError(f"x must be [..., {n}, c], got {x.shape}")
    complex_dtype(left=left, subdiagonal=subdiagonal, x=x)
    return broadcast_named(left=left.shape[:-1], subdiagonal=subdiagonal.shape[:-1], x=x.shape[:-2])


def causal_sweep(left: Array, subdiagonal: Array, x: Array, *, scans: Scans = PLATFORM) -> Array:
    """Forward elimination ``y_i = gL_i (x_i - c_{i-1} y_{i-1})``: the causal half of ``(T - z)^{-1}
    x``, a gated linear recurrence.

    ``y_i`` depends on sites 0..i alone, and is the last entry of the solution of the system cut off
    after site i.

    Args:
        left: gL, complex, ``[..., n]``.
        subdiagonal: c, real or complex, ``[..., n - 1]``.
        x: real or complex, ``[..., n, c]``. Leading axes broadcast; gates are shared by the c
            channels.
        scans: the algorithm.

    Returns:
        Complex ``[..., n, c]``. Time and memory O(n c), forward and backward. Of the order of
        ``2^40`` (``2^100``) where gL has a pole: there the system that is cut off has no solution.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> left = jnp.full(3, 0.5 + 0j)
    >>> print(causal_sweep(left, -jnp.ones(2), jnp.ones((3, 1)))[:, 0].real)
    [0.5   0.75  0.875]
    """
    batch = _check_sweep(left, subdiagonal, x)
    n = left.shape[-1]
    left = jnp.broadcast_to(left, (*batch, n))
    coupling = jnp.broadcast_to(subdiagonal.astype(left.dtype), (*batch, n - 1))
    coupling = jnp.pad(coupling, [(0, 0)] * len(batch) + [(1, 0)])
    x = jnp.broadcast_to(x, (*batch, *x.shape[-2:])).astype(left.dtype)
    gates = (-left * coupling)[..., None]
    return linear_recurrence(gates, left[..., None] * x, axis=-2, scans=scans)


def resolvent_matvec(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    x: Array,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """``(T - z)^{-1} x``: causal sweeps from both ends, which meet at every site.

    Units: any. A chain is swept in a unit of its own, a power of two that brings its largest
    coupling, or its smallest ``a_i - z`` if that is larger, to 2^-8 ... 2^8; it is taken from 24
    sites, at both ends and in the middle. In that unit pivots below 2^-40 (2^-100 in double
    precision) count as poles: parts of a chain that are that much smaller than the rest are lost.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1.
        superdiagonal: b = T_{i,i+1}, ``[..., n - 1]``.
        subdiagonal: c = T_{i+1,i}, ``[..., n - 1]``.
        z: spectral parameter, a number or ``[...]``, off the spectrum. Leading minors of ``T - z``
            may vanish.
        x: real or complex, ``[..., n, c]``: c right-hand sides. Leading axes of all arguments
            broadcast.
        scans: the algorithm, for the gradient too.

    Returns:
        Complex ``[..., n, c]``. Time and memory O(n c). Derivatives of every order, forward and
        reverse: they solve the same equations again, or the transposed ones, and are right where a
        minor vanishes, too.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> a, b, x = jnp.zeros(2), jnp.ones(1), jnp.array([[3.0], [5.0]])
    >>> print(resolvent_matvec(a, b, b, 0.0, x)[:, 0].real)
    [5. 3.]
    """
    dtype = complex_dtype(
        diagonal=diagonal, superdiagonal=superdiagonal, subdiagonal=subdiagonal, z=z, x=x
    )
    batch = chain_shape(diagonal, superdiagonal, subdiagonal, z)
    n = diagonal.shape[-1]
    if jnp.ndim(x) < 2 or x.shape[-2] != n:
        raise ValueError(f"x must be [..., {n}, c], got {jnp.shape(x)}")
    whole = broadcast_named(chain=batch, x=x.shape[:-2])
    # Axes that only x has are channels: each chain is swept once.
    only, shared = whole[: len(whole) - len(batch)], whole[len(whole) - len(batch) :]
    chains = side_by_side(diagonal, superdiagonal, subdiagonal, jnp.asarray(z, dtype), shared)
    channels = x.shape[-1]
    x = jnp.broadcast_to(x.astype(dtype), (*whole, n, channels))
    x = jnp.reshape(x, (math.prod(only), math.prod(shared), n, channels))
    lanes = jnp.reshape(jnp.moveaxis(x, 0, 2), (*x.shape[1:3], x.shape[0] * channels))
    y = solution_of_chains(*chains, inverse_unit_of(*chains), lanes, scans)
    y = jnp.reshape(y, (*x.shape[1:3], x.shape[0], channels))
    return jnp.reshape(jnp.moveaxis(y, 2, 0), (*whole, n, channels))


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def _log_determinant(d: Array, k: Array, scans: Scans) -> Array:
    return _minus_log(moebius_scan(d, k, scans))


def _minus_log(left: Array) -> Array:
    """``-sum_i log gL_i``; minus infinity where the last pivot, and with it the determinant,
    vanishes.
    """
    return -jnp.sum(jnp.log(left.at[-1].set(infinite_at_poles(left[-1]))), axis=0)


@_log_determinant.defjvp
def _log_determinant_jvp(
    scans: Scans, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """``sum_i G_ii dd_i - sum_i gL_i G_{i+1,i+1} dk_i``: no pole of gL is left in it."""
    (d, k), (d_change, k_change) = primals, tangents
    both, diagonal = sides(d, k, scans)
    left = both[:, 0]
    k_part = left[:-1] * diagonal[1:] * k_change.astype(d.dtype)
    return _minus_log(left), jnp.sum(diagonal * d_change, axis=0) - jnp.sum(k_part, axis=0)


def log_determinant(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """``log det(T - z) = -sum_i log gL_i``, phase kept; never overflows.

    The imaginary part is the sum of the pivots' phases, not reduced modulo 2 pi. For symmetric T
    and Im z > 0 every pivot has a phase in (-pi, 0), so that this branch is continuous in T and in
    z, and ``d/dz = -tr G``. Otherwise it may jump by 2 pi where a pivot crosses the negative axis.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1.
        superdiagonal: b = T_{i,i+1}, ``[..., n - 1]``.
        subdiagonal: c = T_{i+1,i}, ``[..., n - 1]``. Leading axes of all arguments broadcast.
        z: spectral parameter, a number or ``[...]``. Leading minors of ``T - z`` may vanish.
        scans: the algorithm, for the gradient too.

    Returns:
        Complex ``[...]``. At an eigenvalue of T minus infinity, or by rounding a large negative
        real part. Derivatives forward and reverse, of every order (of the first where a minor
        vanishes).

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> a, b = jnp.zeros(2), jnp.ones(1)
    >>> f"{log_determinant(a + 3.0, b, b, 0.0).real:.4f}"  # log 8
    '2.0794'
    """
    chains, s, batch = chains_of(diagonal, superdiagonal, subdiagonal, z)
    logarithm = _log_determinant(*coefficients(*chains, s), scans)
    unit = (diagonal.shape[-1] * jnp.log(s)).astype(logarithm.dtype)
    return jnp.reshape(logarithm - unit, batch)


def determinant(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """``det(T - z)``. Grows exponentially with n: use :func:`log_determinant` beyond a hundred
    sites.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1.
        superdiagonal: b = T_{i,i+1}, ``[..., n - 1]``.
        subdiagonal: c = T_{i+1,i}, ``[..., n - 1]``. Leading axes of all arguments broadcast.
        z: spectral parameter, a number or ``[...]``. Leading minors of ``T - z`` may vanish.
        scans: the algorithm, for the gradient too.

    Returns:
        Complex ``[...]``. Derivatives as those of :func:`log_determinant`, off the spectrum.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> a, b = jnp.zeros(2), jnp.ones(1)
    >>> f"{determinant(a, b, b, 0.0).real:.4f}"
    '-1.0000'
    """
    return jnp.exp(log_determinant(diagonal, superdiagonal, subdiagonal, z, scans=scans))


def spectral_density(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """Local density of states ``Im G_ii(z) / pi`` at energy Re z, broadened by a Lorentzian of half
    width Im z.

    Positive for symmetric T and Im z > 0, and integrates to 1 over Re z at every site. The sign is
    plus because ``G = (T - z)^{-1}``; books that write -Im G / pi mean ``(z - T)^{-1}``. Sum over
    sites for the density of the chain.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1.
        superdiagonal: b = T_{i,i+1}, ``[..., n - 1]``.
        subdiagonal: c = T_{i+1,i}, ``[..., n - 1]``. Leading axes of all arguments broadcast.
        z: energy and width, a complex number or ``[...]``, Im z > 0.
        scans: the algorithm, for the gradient too.

    Returns:
        Real ``[..., n]``, per unit of energy.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> f"{spectral_density(jnp.zeros(1), jnp.zeros(0), jnp.zeros(0), 0.5j)[0]:.4f}"
    '0.6366'
    """
    return resolvent_diagonal(diagonal, superdiagonal, subdiagonal, z, scans=scans).imag / math.pi

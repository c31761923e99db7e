"""Tridiagonal systems ``(T - z) y = x`` by elimination in O(n): causal sweep, solve, determinant,
density of states.

Everything rests on ``gL_i``, the reciprocal pivots of the elimination
(:func:`vfejax.spectral.resolvent.left_resolvent_diagonal`), and on one linear recurrence. No
pivoting is done, and none is needed for symmetric T and Im z > 0; in general a vanishing leading
minor of ``T - z`` gives infinities.
"""

import math

import jax.numpy as jnp

from vfejax.spectral.recurrence import PLATFORM, Scans, linear_recurrence
from vfejax.spectral.resolvent import complex_dtype, left_resolvent_diagonal, resolvent_diagonal
from vfejax.types import Array

__all__ = ["causal_sweep", "determinant", "log_determinant", "resolvent_matvec", "spectral_density"]


def _gates(left: Array, coupling: Array, zeros: tuple[int, int]) -> Array:
    """``-gL_i m_i [..., n, 1]``: m couples to the site before (one zero in front) or after (one
    behind).
    """
    coupling = jnp.pad(coupling.astype(left.dtype), [(0, 0)] * (coupling.ndim - 1) + [zeros])
    return (-left * coupling)[..., None]


def _check_sweep(left: Array, subdiagonal: Array, x: Array) -> tuple[int, ...]:
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
    try:
        return jnp.broadcast_shapes(left.shape[:-1], subdiagonal.shape[:-1], x.shape[:-2])
    except ValueError as error:
        raise ValueError(
            f"leading axes must broadcast, got left {left.shape}, subdiagonal {subdiagonal.shape}, x {x.shape}"
        ) from error


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
        Complex ``[..., n, c]``. Time and memory O(n c), forward and backward.

    Raises:
        ValueError: when shapes do not fit or precisions differ.
    """
    batch = _check_sweep(left, subdiagonal, x)
    n = left.shape[-1]
    left = jnp.broadcast_to(left, (*batch, n))
    gates = _gates(left, jnp.broadcast_to(subdiagonal, (*batch, n - 1)), zeros=(1, 0))
    x = jnp.broadcast_to(x, (*batch, *x.shape[-2:])).astype(left.dtype)
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
    """``(T - z)^{-1} x``: causal sweep, then back substitution ``s_i = y_i - gL_i b_i s_{i+1}``.

    Args:
        diagonal, superdiagonal, subdiagonal, z: as in
            :func:`vfejax.spectral.resolvent.resolvent_diagonal`.
        x: real or complex, ``[..., n, c]``: c right-hand sides.
        scans: the algorithm.

    Returns:
        Complex ``[..., n, c]``.
    """
    left = left_resolvent_diagonal(diagonal, superdiagonal, subdiagonal, z, scans=scans)
    y = causal_sweep(left, subdiagonal, x, scans=scans)
    batch, n = y.shape[:-2], y.shape[-2]
    left, above = (
        jnp.broadcast_to(left, (*batch, n)),
        jnp.broadcast_to(superdiagonal, (*batch, n - 1)),
    )
    return linear_recurrence(
        _gates(left, above, zeros=(0, 1)), y, reverse=True, axis=-2, scans=scans
    )


def log_determinant(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """``log det(T - z) = -sum_i log gL_i``, complex ``[...]``, phase kept; never overflows.

    The imaginary part is the sum of the pivots' phases, not reduced modulo 2 pi. For symmetric T
    and Im z > 0 every pivot has a phase in (-pi, 0), so that this branch is continuous in T and in
    z, and ``d/dz = -tr G``. Otherwise it may jump by 2 pi where a pivot crosses the negative axis.
    """
    return -jnp.sum(
        jnp.log(left_resolvent_diagonal(diagonal, superdiagonal, subdiagonal, z, scans=scans)),
        axis=-1,
    )


def determinant(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """``det(T - z)``, complex ``[...]``. Grows exponentially with n: use :func:`log_determinant`
    beyond a hundred sites.
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

    Returns:
        Real ``[..., n]``, per unit of energy.
    """
    return resolvent_diagonal(diagonal, superdiagonal, subdiagonal, z, scans=scans).imag / math.pi

"""Diagonal of the resolvent ``G = (T - z)^{-1}`` of a tridiagonal matrix in O(n), by ratios that
never overflow, with its exact adjoint.

With ``d_i = a_i - z`` and ``k_i = b_i c_i`` (super- times subdiagonal) the left- and
right-connected resolvents are continued fractions,

    gL_i = 1 / (d_i - k_{i-1} gL_{i-1}),   gR_i = 1 / (d_i - k_i gR_{i+1}),   G_ii = 1 / (d_i - k_{i-1} gL_{i-1} - k_i gR_{i+1}).

The textbook form ``G_ii = theta_i phi_i / theta_N`` by three-term recursions of determinants
overflows complex64 near n = 110 and complex128 near n = 915; the ratios are bounded, ``|g| <= 1 /
Im z`` for real a, ``k >= 0`` and ``Im z > 0``, and accurate to rounding at every n.

G_ii sees the whole chain, gL_i only the sites up to i: a causal model must use
:func:`left_resolvent_diagonal`.
"""

from functools import partial

import jax
import jax.numpy as jnp

from vfejax.spectral.recurrence import (
    PLATFORM,
    Scans,
    linear_recurrence,
    moebius_recurrence,
    pad_front,
    real_like,
    reciprocal,
)
from vfejax.types import Array

__all__ = ["complex_dtype", "left_resolvent_diagonal", "resolvent_diagonal", "shifted_tridiagonal"]

_COMPLEX = {
    jnp.dtype(dtype): jnp.dtype(result)
    for result, members in (
        ("complex64", ("float32", "complex64")),
        ("complex128", ("float64", "complex128")),
    )
    for dtype in members
}


def complex_dtype(**arrays: Array) -> jnp.dtype:
    """Complex dtype of the common precision of named arrays: float32 and complex64 to complex64,
    float64 and complex128 to complex128.

    Python numbers take any precision.

    Raises:
        ValueError: when one has another dtype, or two differ in precision.
    """
    found = None
    for name, x in arrays.items():
        if isinstance(x, int | float | complex):
            continue
        if x.dtype not in _COMPLEX:
            raise ValueError(
                f"{name} must be floating or complex of 32 or 64 bits a part, got {x.dtype}"
            )
        dtype = _COMPLEX[x.dtype]
        if found not in (None, dtype):
            raise ValueError(f"{name} must have the precision of {found}, got {x.dtype}")
        found = dtype
    return found


def _batch_shape(
    diagonal: Array, superdiagonal: Array, subdiagonal: Array, z: Array
) -> tuple[int, ...]:
    """Common leading shape of the checked arguments."""
    n = diagonal.shape[-1] if diagonal.ndim else 0
    if n == 0:
        raise ValueError(f"diagonal must be [..., n] with n >= 1, got {diagonal.shape}")
    for name, x in (("superdiagonal", superdiagonal), ("subdiagonal", subdiagonal)):
        if x.ndim == 0 or x.shape[-1] != n - 1:
            raise ValueError(f"{name} must be [..., {n - 1}] for a diagonal of {n}, got {x.shape}")
    try:
        return jnp.broadcast_shapes(
            diagonal.shape[:-1], superdiagonal.shape[:-1], subdiagonal.shape[:-1], z.shape
        )
    except ValueError as error:
        raise ValueError(
            f"leading axes must broadcast, got diagonal {diagonal.shape}, superdiagonal {superdiagonal.shape}, "
            f"subdiagonal {subdiagonal.shape}, z {z.shape}"
        ) from error


def shifted_tridiagonal(
    diagonal: Array, superdiagonal: Array, subdiagonal: Array, z: Array | complex
) -> tuple[Array, Array]:
    """``d = a - z [n, ...]``, complex, and ``k = b c [n - 1, ...]``, real where both are, broadcast
    and with the sequence first.

    Arguments and errors as in :func:`resolvent_diagonal`.
    """
    dtype = complex_dtype(
        diagonal=diagonal, superdiagonal=superdiagonal, subdiagonal=subdiagonal, z=z
    )
    z = jnp.asarray(z, dtype)
    batch = _batch_shape(diagonal, superdiagonal, subdiagonal, z)
    real_couplings = not (jnp.iscomplexobj(superdiagonal) or jnp.iscomplexobj(subdiagonal))
    coupling_dtype = jnp.finfo(dtype).dtype if real_couplings else dtype

    def sites_first(x: Array, dtype: jnp.dtype) -> Array:
        return jnp.moveaxis(jnp.broadcast_to(x.astype(dtype), (*batch, x.shape[-1])), -1, 0)

    a = sites_first(diagonal, dtype)
    k = sites_first(superdiagonal, coupling_dtype) * sites_first(subdiagonal, coupling_dtype)
    return a - jnp.broadcast_to(z, a.shape), k


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

    Causal: ``gL_i`` depends on ``a_0 .. a_i`` and ``k_0 .. k_{i-1}`` alone. Arguments, dtypes,
    errors as in :func:`resolvent_diagonal`.
    """
    d, k = shifted_tridiagonal(diagonal, superdiagonal, subdiagonal, z)
    return jnp.moveaxis(moebius_recurrence(d, k, axis=0, scans=scans), 0, -1)


def _both_ways(x: Array) -> Array:
    """``[n, ...]`` to ``[n, 2, ...]``: the sequence and its reversal, so that one scan does both
    sweeps.
    """
    return jnp.stack([x, x[::-1]], axis=1)


def _sum_both(x: Array) -> Array:
    """``[n, 2, ...]`` to ``[n, ...]``: the reversed half turned back and added."""
    return x[:, 0] + x[::-1, 1]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _two_sided(d: Array, k: Array, scans: Scans) -> Array:
    return _two_sided_forward(d, k, scans)[0]


def _two_sided_forward(d, k, scans):
    k_both = _both_ways(k)
    g = moebius_recurrence(_both_ways(d), k_both, axis=0, scans=scans)
    resolvent = reciprocal(d - _sum_both(pad_front(k_both.astype(g.dtype) * g[:-1])))
    return resolvent, (k, g, resolvent)


def _two_sided_backward(scans, residuals, cotangent):
    """``S^L_j = t_j + k_{j-1} gR_j^2 S^L_{j-1}``, ``S^R_j = t_j + k_j gL_j^2 S^R_{j+1}`` with ``t =
    w G^2``, as one scan; then ``dF/dd = -(S^L + S^R - t)`` and ``dF/dk_i = gR_{i+1} S^L_i + gL_i
    S^R_{i+1}``.
    """
    k, g, resolvent = residuals
    opposite = g[::-1, ::-1][1:]
    t = cotangent * resolvent**2
    gates = pad_front(_both_ways(k).astype(g.dtype) * opposite**2)
    s = linear_recurrence(gates, _both_ways(t), axis=0, scans=scans)
    return t - _sum_both(s), real_like(_sum_both(opposite * s[:-1]), k)


_two_sided.defvjp(_two_sided_forward, _two_sided_backward)


def resolvent_diagonal(
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    *,
    scans: Scans = PLATFORM,
) -> Array:
    """``G_ii = [(T - z)^{-1}]_{ii}`` of the tridiagonal T, in O(n) time and memory, forward and
    backward.

    Args:
        diagonal: a, real or complex, ``[..., n]``, n >= 1.
        superdiagonal: b = T_{i,i+1}, ``[..., n - 1]``. A zero in b or c cuts the chain.
        subdiagonal: c = T_{i+1,i}, ``[..., n - 1]``. Leading axes of all arguments broadcast.
        z: spectral parameter, a number or ``[...]``, off the spectrum (``Im z > 0`` when T is
            symmetric).
        scans: the algorithm, for the gradient too.

    Returns:
        Complex ``[..., n]``, complex64 for float32 and complex128 for float64. For symmetric T and
        Im z > 0, Im G > 0; for Im z >= 0.5 and entries of order 1 the relative error is below 1e-12
        and 5e-6 at every n (it grows as ``|T - z| / Im z``). Gradients are exact in all four
        arguments, and real for real ones.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    Source: Economou, Green's Functions in Quantum Physics (2006), section 5.3 and appendix; Usmani,
    Linear Algebra Appl. 212 (1994) 413 for theta and phi. Carrying ratios, and their adjoint, are
    ours.
    """
    d, k = shifted_tridiagonal(diagonal, superdiagonal, subdiagonal, z)
    return jnp.moveaxis(_two_sided(d, k, scans), 0, -1)

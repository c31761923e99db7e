"""Channels: completely positive maps of density matrices that keep the trace.

Each is linear in rho ``[..., d, d]``, so that :func:`choi_matrix` can hold it to its definition.
Strengths ``[...]`` broadcast with the leading axes of rho and lie in [0, 1]; a value outside is not
refused, and the result then need not be a state.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.numerics import broadcast_named, expand_leading, identity_like, matmul
from vfejax.quantum._arguments import check_square, real_argument
from vfejax.quantum.hermitian import adjoint, real_dtype
from vfejax.types import Array

__all__ = ["amplitude_damping", "apply_kraus", "choi_matrix", "dephase", "depolarize", "mix"]


def _expanded(rho: Array, value: ArrayLike, name: str) -> tuple[Array, Array]:
    """rho and the real ``value`` as ``[..., 1, 1]``, with equally many axes."""
    check_square("rho", rho)
    value = real_argument(name, value, real_dtype(rho))
    rank = len(broadcast_named(rho=rho.shape[:-2], **{name: value.shape}))
    return expand_leading(rho, rank, 2), expand_leading(value, rank)[..., None, None]


def dephase(rho: Array, strength: ArrayLike) -> Array:
    """``(1 - eps) rho + eps diag(rho)``: off-diagonal entries shrink by ``1 - eps``, populations
    stay as they are.

    >>> print(dephase(jnp.full((2, 2), 0.5), 0.2))
    [[0.5 0.4]
     [0.4 0.5]]
    """
    rho, eps = _expanded(rho, strength, "strength")
    keep = 1.0 - eps * (1.0 - jnp.eye(rho.shape[-1], dtype=eps.dtype)[(None,) * (rho.ndim - 2)])
    if not jnp.iscomplexobj(rho):
        return keep * rho
    # A complex product with a real factor does twice the work, and its gradient more.
    return jax.lax.complex(keep * jnp.real(rho), keep * jnp.imag(rho))


def amplitude_damping(rho: Array, strength: ArrayLike) -> Array:
    """Decay of every level k > 0 to level 0 with probability gamma.

    Kraus operators ``diag(1, s, ..., s)``, ``s = sqrt(1 - gamma)``, and ``sqrt(gamma) |0><k|`` for
    each k > 0. At gamma = 1 the coherences with level 0 have an infinite derivative by gamma; the
    convention there is 0, so that the derivative of populations, which is finite, is right.

    Source: Nielsen and Chuang, Quantum Computation and Quantum Information (2000), section 8.3.5,
    for d = 2; every level decays alike here.

    >>> print(amplitude_damping(jnp.full((2, 2), 0.5), 0.36))
    [[0.68 0.4 ]
     [0.4  0.32]]
    """
    rho, gamma = _expanded(rho, strength, "strength")
    ground = jnp.reshape(jnp.arange(rho.shape[-1]) == 0, (1,) * (rho.ndim - 2) + (-1,))
    row, column = ground[..., :, None], ground[..., None, :]
    kept, gone = 1.0 - gamma, gamma == 1.0
    root = jnp.where(gone, 0.0, jnp.sqrt(jnp.where(gone, 1.0, kept)))
    keep = jnp.where(row & column, 1.0, jnp.where(row | column, root, kept))
    trace = jnp.trace(rho, axis1=-2, axis2=-1)[..., None, None]
    gained = jnp.where(row & column, gamma.astype(rho.dtype) * (trace - rho[..., :1, :1]), 0.0)
    return keep.astype(rho.dtype) * rho + gained


def depolarize(rho: Array, strength: ArrayLike) -> Array:
    """``(1 - p) rho + p tr(rho) I / d``: a state becomes the maximally mixed one with probability
    p.

    >>> print(depolarize(jnp.diag(jnp.array([1.0, 0.0])), 0.5).diagonal())
    [0.75 0.25]
    """
    rho, p = _expanded(rho, strength, "strength")
    trace = jnp.trace(rho, axis1=-2, axis2=-1)[..., None, None] / rho.shape[-1]
    p = p.astype(rho.dtype)
    return (1.0 - p) * rho + p * trace * identity_like(rho)


def mix(rho: Array, other: Array, weight: ArrayLike) -> Array:
    """Convex mixture ``(1 - w) rho + w other``; for fixed ``other`` it is the channel that replaces
    rho with probability w.

    Args:
        rho: ``[..., d, d]``.
        other: the same shape and dtype.
        weight: ``[...]``.

    Returns:
        ``[..., d, d]``.

    Raises:
        ValueError: when the arguments do not fit.

    >>> print(mix(jnp.diag(jnp.array([1.0, 0.0])), jnp.eye(2) / 2, 0.5).diagonal())
    [0.75 0.25]
    """
    check_square("rho", rho)
    check_square("other", other)
    if rho.shape != other.shape or rho.dtype != other.dtype:
        raise ValueError(
            f"rho and other must have one shape and dtype, got {rho.shape} {rho.dtype} and "
            f"{other.shape} {other.dtype}"
        )
    rho, w = _expanded(rho, weight, "weight")
    w = w.astype(rho.dtype)
    return (1.0 - w) * rho + w * expand_leading(other, w.ndim - 2, 2)


def apply_kraus(operators: Array, rho: Array) -> Array:
    """``sum_m K_m rho K_m^dag`` for ``operators [m, d, d]`` and ``rho [..., d, d]`` of one
    dtype.

    >>> flip = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
    >>> print(apply_kraus(flip, jnp.diag(jnp.array([1.0, 0.0]))).diagonal())
    [0. 1.]
    """
    check_square("operators", operators)
    check_square("rho", rho)
    if operators.dtype != rho.dtype:
        raise ValueError(f"operators must have the dtype of rho {rho.dtype}, got {operators.dtype}")
    if operators.ndim != 3 or operators.shape[-1] != rho.shape[-1]:
        raise ValueError(
            f"operators must be [m, d = {rho.shape[-1]}, d = {rho.shape[-1]}], "
            f"got {operators.shape}"
        )
    operators = jnp.reshape(operators, (-1, *(1,) * (rho.ndim - 2), *operators.shape[-2:]))
    return jnp.sum(matmul(matmul(operators, rho[None]), adjoint(operators)), axis=0)


def choi_matrix(
    channel_fn: Callable[[Array], Array], dimension: int, dtype: jnp.dtype = jnp.complex64
) -> Array:
    """Choi matrix ``sum_jk |j><k| (x) channel(|j><k|)``, ``[d^2, d^2]``, of a linear map on ``[...,
    d, d]``.

    The map is completely positive where this matrix is positive, and keeps the trace where its
    trace over the second factor is the identity.

    Args:
        channel_fn: the map, of ``[..., d, d]``.
        dimension: d.
        dtype: complex dtype.

    Returns:
        ``[d^2, d^2]``.

    Source: Choi, Linear Algebra Appl. 10 (1975) 285.

    >>> print(choi_matrix(lambda rho: rho, 2).real)
    [[1. 0. 0. 1.]
     [0. 0. 0. 0.]
     [0. 0. 0. 0.]
     [1. 0. 0. 1.]]
    """
    eye = jnp.eye(dimension, dtype=dtype)
    units = eye[:, None, :, None] * eye[None, :, None, :]
    return jnp.reshape(jnp.swapaxes(channel_fn(units), 1, 2), (dimension**2, dimension**2))

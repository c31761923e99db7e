"""Smooth noise: covariance and precision of its derivatives at one time.

Gaussian noise with autocorrelation ``rho(h) = exp(-h^2 / 4 s^2)`` has derivatives of every order,
and their covariance at one time is ``S_ij = (-1)^i rho^(i+j)(0)``. The spectrum of rho is Gaussian
with variance ``1 / 2 s^2``, so the polynomials that are orthonormal under it are Hermite's. Their
coefficients are a triangular root of ``S^{-1}``, in which all numbers are positive: the precision
is formed without an inverse and without cancellation, in every precision of the machine and to any
order.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vfejax.numerics import as_floating, matmul_tn
from vfejax.types import Array

__all__ = [
    "check_order",
    "temporal_covariance",
    "temporal_log_det",
    "temporal_precision",
    "temporal_precision_root",
]


def check_order(order: int) -> None:
    """Refuse a number of derivatives below 1, the value included.

    >>> check_order(1)
    """
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")


def temporal_covariance(order: int, smoothness: ArrayLike) -> Array:
    """Covariance of the derivatives of smooth noise at one time, ``S_ij = (-1)^i rho^(i+j)(0)``
    with ``rho(h) = exp(-h^2 / 4 s^2)``.

    Not 0 where i + j is even: ``S_ij = (-1)^((i-j)/2) (2k)! / k! (2 s)^(-2k)`` with ``k = (i + j) /
    2``. The numbers are made by NumPy in float64; the powers of a traced s are of its own dtype.

    Args:
        order: number of derivatives, the value included.
        smoothness: s > 0, in units of time.

    Returns:
        ``[order, order]``, in units of time^-(i+j).

    Raises:
        ValueError: when the order is below 1, or a concrete smoothness is not above 0.

    Source: Friston, NeuroImage 41 (2008) 747, appendix; Cox and Miller, The Theory of Stochastic
    Processes (1965), section 7.4.

    >>> temporal_covariance(3, 0.5).tolist()
    [[1.0, 0.0, -2.0], [0.0, 2.0, 0.0], [-2.0, 0.0, 12.0]]
    """
    check_order(order)
    i, j = np.indices((order, order))
    values = np.array([math.factorial(2 * k) / math.factorial(k) for k in range(order)])
    signs = np.where((i - j) % 4 == 0, 1.0, -1.0)
    unit = np.where((i + j) % 2 == 0, signs * values[(i + j) // 2], 0.0)
    if isinstance(smoothness, jax.core.Tracer):
        powers = jnp.stack([(2.0 * smoothness) ** k for k in range(2 * order - 1)])
        return jnp.asarray(unit, smoothness.dtype) / powers[i + j]
    _check_smoothness(smoothness)
    scaled = unit / (2.0 * np.asarray(smoothness, np.float64)) ** (i + j)
    return jnp.asarray(scaled, as_floating(smoothness, "smoothness").dtype)


def _check_smoothness(smoothness: ArrayLike) -> None:
    """Refuse what has no derivatives, on concrete numbers; NaN stays NaN."""
    if not isinstance(smoothness, jax.core.Tracer) and np.any(np.asarray(smoothness) <= 0):
        raise ValueError(f"smoothness must be above 0, got {smoothness}: white noise has no path")


def temporal_precision_root(order: int, smoothness: ArrayLike) -> Array:
    """Lower triangular W with ``S^{-1} = W^T W``: coefficients of Hermite polynomials.

    ``W_nk = |He_nk| / sqrt(n!) (sqrt(2) s)^k`` with ``He_n(x) = sum_k He_nk x^k``. All entries are
    at least 0. As s goes to 0 only the first column stays: derivatives of white noise are
    unbounded.

    Args:
        order: number of derivatives, the value included.
        smoothness: s > 0, in units of time.

    Returns:
        ``[order, order]``, column k in units of time^k.

    Raises:
        ValueError: when the order is below 1, or a concrete smoothness is not above 0.

    >>> temporal_precision_root(2, jnp.sqrt(0.5)).round(4).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    check_order(order)
    _check_smoothness(smoothness)
    smoothness = as_floating(smoothness, "smoothness")
    root = np.zeros((order, order))
    for n in range(order):
        for m in range(n // 2 + 1):
            count = math.factorial(m) * math.factorial(n - 2 * m) * 2**m
            root[n, n - 2 * m] = math.sqrt(math.factorial(n)) / count
    width = math.sqrt(2.0) * smoothness
    powers = jnp.stack([width**k for k in range(order)])
    return jnp.asarray(root, smoothness.dtype) * powers[None, :]


def temporal_precision(order: int, smoothness: ArrayLike) -> Array:
    """Inverse of :func:`temporal_covariance`, as a sum of positive numbers.

    Args:
        order: number of derivatives, the value included.
        smoothness: s > 0, in units of time.

    Returns:
        ``[order, order]``, in units of time^(i+j).

    >>> temporal_precision(3, 1.0).round(4).tolist()
    [[1.5, 0.0, 1.0], [0.0, 2.0, 0.0], [1.0, 0.0, 2.0]]
    """
    root = temporal_precision_root(order, smoothness)
    return matmul_tn(root, root)


def temporal_log_det(order: int, smoothness: ArrayLike) -> Array:
    """``log det S^{-1} = sum_n (n log(2 s^2) - log n!)``, in closed form.

    Args:
        order: number of derivatives, the value included.
        smoothness: s > 0, in units of time.

    Returns:
        A scalar.

    >>> round(float(temporal_log_det(2, 0.5)), 4)  # -log 2
    -0.6931
    """
    check_order(order)
    smoothness = as_floating(smoothness, "smoothness")
    constant = sum(math.lgamma(n + 1) for n in range(order))
    return order * (order - 1) // 2 * jnp.log(2.0 * smoothness**2) - constant

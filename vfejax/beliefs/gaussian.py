"""Gaussian beliefs N(mean, L L^T): moments, natural form, divergence, entropy, Fisher information.

The covariance is carried by a lower-triangular factor L with positive diagonal. Entries above the
diagonal are ignored by every function here (``tril`` on entry), so their gradients are exactly 0.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import (
    cholesky,
    log_det_cholesky,
    matvec,
    symmetrize,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array

__all__ = [
    "FisherInformation",
    "Gaussian",
    "covariance",
    "entropy",
    "expected_log_density",
    "fisher_information",
    "from_moments",
    "from_natural",
    "kl_divergence",
    "natural_parameters",
    "precision",
    "push_forward",
    "sample",
]


class Gaussian(NamedTuple):
    """Normal distribution(s): ``mean [..., k]`` and lower-triangular ``chol [..., k, k]`` with
    covariance ``chol chol^T``.
    """

    mean: Array
    chol: Array


class FisherInformation(NamedTuple):
    """Blocks of the Fisher information in (mean, covariance); the two are orthogonal.

    ``mean [..., k, k]`` is the precision; ``cov [..., k, k, k, k]`` is the quadratic form
    ``dSigma_ij cov_ijkl dSigma_kl``.
    """

    mean: Array
    cov: Array


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")


def _check(q: Gaussian, name: str) -> None:
    if q.mean.ndim == 0 or q.chol.shape != (*q.mean.shape, q.mean.shape[-1]):
        raise ValueError(
            f"{name}: mean [..., k] and chol [..., k, k] do not fit: got {q.mean.shape} and {q.chol.shape}"
        )


def from_moments(mean: Array, cov: Array) -> Gaussian:
    """Gaussian with ``mean [..., k]`` and symmetric positive definite ``cov [..., k, k]``.

    Nothing is repaired: where ``cov`` is not positive definite the factor is NaN. Use
    :func:`vfejax.data.population_arrays.from_arrays` for data that must be checked.
    """
    return Gaussian(mean, cholesky(cov))


def covariance(q: Gaussian) -> Array:
    """Covariance ``L L^T``, ``[..., k, k]``."""
    chol = jnp.tril(q.chol)
    return _matmul(chol, transpose(chol))


def precision(q: Gaussian) -> Array:
    """Precision ``(L L^T)^{-1}``, ``[..., k, k]``."""
    inverse = triangular_inverse(jnp.tril(q.chol))
    return _matmul(transpose(inverse), inverse)


def natural_parameters(q: Gaussian) -> tuple[Array, Array]:
    """Information vector ``P mean [..., k]`` and precision ``P [..., k, k]`` with ``P =
    Sigma^{-1}``.

    In this form independent evidence adds.
    """
    matrix = precision(q)
    return matvec(matrix, q.mean), matrix


def from_natural(information: Array, precision_matrix: Array) -> Gaussian:
    """Gaussian from its information vector ``[..., k]`` and precision ``[..., k, k]``."""
    inverse = triangular_inverse(cholesky(precision_matrix))
    cov = _matmul(transpose(inverse), inverse)
    return from_moments(matvec(cov, information), cov)


def kl_divergence(q: Gaussian, p: Gaussian) -> Array:
    """Kullback-Leibler divergence KL(q || p), in nats.

    ``1/2 (|L_p^{-1} L_q|_F^2 + |L_p^{-1} (mu_q - mu_p)|^2 - k) + log det L_p - log det L_q``.

    Args:
        q: mean ``[..., k]``, chol ``[..., k, k]``.
        p: the same shapes.

    Returns:
        ``[...]``, at least 0 up to rounding and 0 only at equality. It is not clamped: a clamp
        would kill the gradient at consensus.

    Raises:
        ValueError: when mean and factor of one argument, or the two arguments, do not fit.
    """
    _check(q, "q")
    _check(p, "p")
    if q.mean.shape != p.mean.shape:
        raise ValueError(
            f"q and p must have the same shapes, got means {q.mean.shape} and {p.mean.shape}"
        )
    chol_q = jnp.tril(q.chol)
    chol_p = jnp.tril(p.chol)
    columns = jnp.concatenate([chol_q, (q.mean - p.mean)[..., None]], axis=-1)
    whitened = _matmul(triangular_inverse(chol_p), columns)
    squares = jnp.sum(whitened * whitened, axis=(-2, -1))
    return 0.5 * (squares - q.mean.shape[-1] + log_det_cholesky(chol_p) - log_det_cholesky(chol_q))


def entropy(q: Gaussian) -> Array:
    """Differential entropy ``k/2 log(2 pi e) + log det L``, in nats, ``[...]``."""
    return 0.5 * (
        q.mean.shape[-1] * math.log(2 * math.pi * math.e) + log_det_cholesky(jnp.tril(q.chol))
    )


def expected_log_density(q: Gaussian, p: Gaussian) -> Array:
    """``E_q[log p(x)] = -KL(q || p) - H(q)``, in nats, ``[...]``."""
    return -kl_divergence(q, p) - entropy(q)


def push_forward(q: Gaussian, operator: Array) -> Gaussian:
    """Image of q under the linear map ``Omega [..., k, k]``: ``N(Omega mu, Omega Sigma Omega^T)``.

    The factor is Cholesky's, so it is lower triangular with positive diagonal again.
    """
    factor = _matmul(operator, jnp.tril(q.chol))
    cov = symmetrize(_matmul(factor, transpose(factor)))
    return from_moments(matvec(operator, q.mean), cov)


def sample(key: Array, q: Gaussian, shape: tuple[int, ...] = ()) -> Array:
    """Independent draws ``[*shape, ..., k]`` from q."""
    noise = jax.random.normal(key, shape + q.mean.shape, q.mean.dtype)
    lead = (1,) * len(shape)
    chol = jnp.reshape(jnp.tril(q.chol), lead + q.chol.shape)
    return jnp.reshape(q.mean, lead + q.mean.shape) + matvec(chol, noise)


def fisher_information(q: Gaussian) -> FisherInformation:
    """Fisher information of the moments: ``P`` for the mean, ``1/2 P (x) P`` for the covariance.

    It is the Hessian of ``KL(q || p)`` in p at p = q. (For a scalar standard deviation s this is
    ``2 / s^2``, the information of s, after the chain rule dSigma = 2 s ds.)

    Source: Amari, Information Geometry (2016), section 1.6.
    """
    matrix = precision(q)
    cov = 0.25 * (
        jnp.einsum("...ik,...jl->...ijkl", matrix, matrix)
        + jnp.einsum("...il,...jk->...ijkl", matrix, matrix)
    )
    return FisherInformation(matrix, cov)

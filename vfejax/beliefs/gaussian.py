"""Gaussian beliefs N(mean, L L^T): moments, natural form, divergence, entropy, Fisher information.

The covariance is carried by a lower-triangular factor L with positive diagonal. Entries above the
diagonal are ignored by every function here (``tril`` on entry), so their gradients are exactly 0.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax import lanes
from vfejax.numerics import (
    as_floating,
    cholesky,
    common_dtype,
    expand_leading,
    log_det_cholesky,
    matmul,
    matmul_nt,
    matmul_tn,
    matvec,
    transpose,
    triangular_inverse,
    triangularize,
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

    >>> q = Gaussian(mean=jnp.zeros(2), chol=jnp.eye(2))
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


def _checked(q: Gaussian, name: str) -> Gaussian:
    """Both arrays floating, of one dtype and fitting shapes; ValueError naming the array else."""
    mean, chol = as_floating(q.mean, f"{name}.mean"), as_floating(q.chol, f"{name}.chol")
    if mean.ndim == 0 or chol.shape != (*mean.shape, mean.shape[-1]):
        raise ValueError(
            f"{name}: mean [..., k] and chol [..., k, k] do not fit: got {mean.shape} and "
            f"{chol.shape}"
        )
    dtype = common_dtype(mean, chol)
    return Gaussian(mean.astype(dtype), chol.astype(dtype))


def from_moments(mean: Array, cov: Array) -> Gaussian:
    """Gaussian with ``mean [..., k]`` and symmetric positive definite ``cov [..., k, k]``.

    Nothing is repaired: where ``cov`` is not positive definite the factor is NaN. Use
    :func:`vfejax.data.population_arrays.from_arrays` for data that must be checked.

    Raises:
        ValueError: when an argument is complex, naming it.

    >>> q = from_moments(jnp.zeros(2), jnp.array([[4.0, 2.0], [2.0, 2.0]]))
    >>> q.chol.tolist()
    [[2.0, 0.0], [1.0, 1.0]]
    """
    return Gaussian(as_floating(mean, "mean"), cholesky(as_floating(cov, "cov")))


def covariance(q: Gaussian) -> Array:
    """Covariance ``L L^T``, ``[..., k, k]``.

    >>> covariance(Gaussian(jnp.zeros(1), jnp.array([[3.0]]))).tolist()
    [[9.0]]
    """
    chol = jnp.tril(as_floating(q.chol, "q.chol"))
    return matmul_nt(chol, chol)


def precision(q: Gaussian) -> Array:
    """Precision ``(L L^T)^{-1}``, ``[..., k, k]``.

    >>> precision(Gaussian(jnp.zeros(1), jnp.array([[2.0]]))).tolist()
    [[0.25]]
    """
    inverse = triangular_inverse(q.chol)
    return matmul_tn(inverse, inverse)


def natural_parameters(q: Gaussian) -> tuple[Array, Array]:
    """Information vector ``P mean [..., k]`` and precision ``P [..., k, k]`` with ``P =
    Sigma^{-1}``.

    In this form independent evidence adds.

    >>> information, matrix = natural_parameters(Gaussian(jnp.ones(1), jnp.array([[2.0]])))
    >>> information.tolist(), matrix.tolist()
    ([0.25], [[0.25]])
    """
    q = _checked(q, "q")
    matrix = precision(q)
    return matvec(matrix, q.mean), matrix


def from_natural(information: Array, precision_matrix: Array) -> Gaussian:
    """Gaussian from its information vector ``[..., k]`` and precision ``[..., k, k]``.

    With the Cholesky factor of the precision in reversed order, ``P = U U^T`` with U upper
    triangular, the factor is ``L = U^{-T}``: one factorisation, and the covariance is never formed.
    What the entries of P have lost already stays lost; where rows with ``P = A^T A`` are at hand,
    ``L = flip(triangular_inverse(triangularize(flip(A))))^T`` keeps more.

    Raises:
        ValueError: when an argument is complex, naming it.

    >>> q = from_natural(jnp.array([0.25]), jnp.array([[0.25]]))
    >>> q.mean.tolist(), q.chol.tolist()
    ([1.0], [[2.0]])
    """
    information = as_floating(information, "information")
    reverse = jnp.flip(as_floating(precision_matrix, "precision_matrix"), (-2, -1))
    chol = jnp.flip(transpose(triangular_inverse(cholesky(reverse))), (-2, -1))
    return Gaussian(matvec(chol, matvec(transpose(chol), information)), chol)


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
        ValueError: when mean and factor of one argument, or the two arguments, do not fit, or an
            array is complex.

    >>> standard = Gaussian(jnp.zeros(2), jnp.eye(2))
    >>> float(kl_divergence(Gaussian(jnp.ones(2), jnp.eye(2)), standard))
    1.0
    """
    q, p = _checked(q, "q"), _checked(p, "p")
    if q.mean.shape != p.mean.shape:
        raise ValueError(
            f"q and p must have the same shapes, got means {q.mean.shape} and {p.mean.shape}"
        )
    dtype = common_dtype(q.mean, p.mean)
    q, p = (Gaussian(x.mean.astype(dtype), jnp.tril(x.chol).astype(dtype)) for x in (q, p))
    # With the stack on the last axis (see vfejax.lanes).
    difference = lanes.stack_last(q.mean - p.mean, core=1)
    q_chol, p_chol = (lanes.tril(lanes.stack_last(x.chol, core=2)) for x in (q, p))
    columns = jnp.concatenate([q_chol, difference[..., :, None, :]], axis=-2)
    whitened = lanes.triangular_solve(p_chol, columns)
    squares = jnp.sum(whitened * whitened, axis=(-3, -2)).reshape(q.mean.shape[:-1])
    return 0.5 * (squares - q.mean.shape[-1] + log_det_cholesky(p.chol) - log_det_cholesky(q.chol))


def entropy(q: Gaussian) -> Array:
    """Differential entropy ``k/2 log(2 pi e) + log det L``, in nats, ``[...]``.

    >>> round(float(entropy(Gaussian(jnp.zeros(1), jnp.eye(1)))), 4)
    1.4189
    """
    q = _checked(q, "q")
    constant = q.mean.shape[-1] * math.log(2 * math.pi * math.e)
    return 0.5 * (constant + log_det_cholesky(jnp.tril(q.chol)))


def expected_log_density(q: Gaussian, p: Gaussian) -> Array:
    """``E_q[log p(x)] = -KL(q || p) - H(q)``, in nats, ``[...]``.

    >>> standard = Gaussian(jnp.zeros(1), jnp.eye(1))
    >>> round(float(expected_log_density(standard, standard)), 4)
    -1.4189
    """
    return -kl_divergence(q, p) - entropy(q)


def push_forward(q: Gaussian, operator: Array) -> Gaussian:
    """Image of q under the linear map ``Omega [..., k, k]``: ``N(Omega mu, Omega Sigma Omega^T)``.

    The factor is triangularised without forming the covariance (see
    :func:`vfejax.numerics.triangular.triangularize`), so small variances keep their digits. It is
    lower triangular with a positive diagonal again.

    Raises:
        ValueError: when ``q`` and ``operator`` do not fit or one is complex.

    >>> q = push_forward(Gaussian(jnp.ones(1), jnp.eye(1)), jnp.array([[-2.0]]))
    >>> q.mean.tolist(), q.chol.tolist()
    ([-2.0], [[2.0]])
    """
    q, operator = _checked(q, "q"), as_floating(operator, "operator")
    k = q.mean.shape[-1]
    if operator.ndim < 2 or operator.shape[-1] != k:
        raise ValueError(f"operator must be [..., l, {k}] to fit q, got shape {operator.shape}")
    factor = matmul(operator, jnp.tril(q.chol))
    return Gaussian(matvec(operator, q.mean), triangularize(transpose(factor)))


def sample(key: Array, q: Gaussian, shape: tuple[int, ...] = ()) -> Array:
    """Independent draws from q.

    Args:
        key: a key of ``jax.random``.
        q: mean ``[..., k]``, chol ``[..., k, k]``.
        shape: leading shape of the draws.

    Returns:
        ``[*shape, ..., k]``.

    >>> sample(jax.random.key(0), Gaussian(jnp.zeros(2), jnp.eye(2)), (5,)).shape
    (5, 2)
    """
    q = _checked(q, "q")
    noise = jax.random.normal(key, (*shape, *q.mean.shape), q.mean.dtype)
    chol = expand_leading(jnp.tril(q.chol), noise.ndim - 1, core=2)
    return expand_leading(q.mean, noise.ndim - 1, core=1) + matvec(chol, noise)


def fisher_information(q: Gaussian) -> FisherInformation:
    """Fisher information of the moments: ``P`` for the mean, ``1/2 P (x) P`` for the covariance.

    It is the Hessian of ``KL(q || p)`` in p at p = q. (For a scalar standard deviation s this is
    ``2 / s^2``, the information of s, after the chain rule dSigma = 2 s ds.)

    Source: Amari, Information Geometry (2016), section 1.6.

    >>> fisher_information(Gaussian(jnp.zeros(1), jnp.array([[2.0]]))).cov.tolist()
    [[[[0.03125]]]]
    """
    matrix = precision(q)
    cov = 0.25 * (
        jnp.einsum("...ik,...jl->...ijkl", matrix, matrix)
        + jnp.einsum("...il,...jk->...ijkl", matrix, matrix)
    )
    return FisherInformation(matrix, cov)

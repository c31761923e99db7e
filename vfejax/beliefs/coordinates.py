"""Unconstrained coordinates of a Gaussian and the Fisher metric in them.

A plain factor L can cross zero on its diagonal, where the energy jumps to infinity. Coordinates
``W`` with ``L = stricttril(W) + diag(exp(diag W))`` cover exactly the positive definite
covariances: every step in them, however long, stays one.
"""

from typing import NamedTuple

import jax.numpy as jnp

from vfejax.beliefs.gaussian import Gaussian
from vfejax.numerics import matvec, transpose, triangular_inverse
from vfejax.types import Array

__all__ = ["GaussianCoordinates", "constrain", "fisher_length", "natural_direction", "unconstrain"]


class GaussianCoordinates(NamedTuple):
    """Twin of :class:`Gaussian`: ``mean [..., k]`` and ``factor [..., k, k]``, free below and on
    the diagonal (log scale).
    """

    mean: Array
    factor: Array


def _with_diagonal(matrix: Array, diagonal: Array) -> Array:
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=bool), matrix.shape)
    return jnp.where(eye, diagonal[..., None, :], jnp.tril(matrix))


def _diagonal(matrix: Array) -> Array:
    return jnp.diagonal(matrix, axis1=-2, axis2=-1)


def constrain(coordinates: GaussianCoordinates) -> Gaussian:
    """The Gaussian at these coordinates: ``L = stricttril(W) + diag(exp(diag W))``."""
    scale = jnp.exp(_diagonal(coordinates.factor))
    return Gaussian(coordinates.mean, _with_diagonal(coordinates.factor, scale))


def unconstrain(q: Gaussian) -> GaussianCoordinates:
    """Coordinates of a Gaussian, inverse of :func:`constrain`; NaN (-inf at 0) where the factor's
    diagonal is not positive.
    """
    return GaussianCoordinates(q.mean, _with_diagonal(q.chol, jnp.log(_diagonal(q.chol))))


def natural_direction(
    coordinates: GaussianCoordinates, gradient: GaussianCoordinates
) -> GaussianCoordinates:
    """Natural gradient: the Fisher-steepest ascent direction, in coordinates.

    The mean moves along ``Sigma g``. For the factor write ``dL = L X`` with X lower triangular: the
    Fisher metric is then diagonal, ``1/2 tr (Sigma^{-1} dSigma)^2 = 2 sum_i X_ii^2 + sum_{i>j}
    X_ij^2``, so ``X = tril(L^T dF/dL)`` with its diagonal halved, and the coordinate direction is
    ``L X`` off the diagonal and ``X_ii`` on it. No factorisation, no inverse.

    Args:
        coordinates: where the metric is taken.
        gradient: derivative of an energy with respect to the coordinates.

    Returns:
        A direction with the shapes of ``coordinates``.
    """
    chol = constrain(coordinates).chol
    scale = _diagonal(chol)
    slope = _with_diagonal(gradient.factor, _diagonal(gradient.factor) / scale)
    body = jnp.matmul(transpose(chol), slope, precision="highest")
    body = _with_diagonal(body, 0.5 * _diagonal(body))
    factor = _with_diagonal(jnp.matmul(chol, body, precision="highest"), _diagonal(body))
    return GaussianCoordinates(matvec(chol, matvec(transpose(chol), gradient.mean)), factor)


def fisher_length(coordinates: GaussianCoordinates, step: GaussianCoordinates) -> Array:
    """Length of a small step in the Fisher metric, ``[...]``: about ``sqrt(2 KL)`` between its two
    ends.

    ``|L^{-1} dmu|^2 + 2 sum_i X_ii^2 + sum_{i>j} X_ij^2`` under the root, with ``X = L^{-1} dL``.
    """
    chol = constrain(coordinates).chol
    inverse = triangular_inverse(chol)
    change = _with_diagonal(step.factor, _diagonal(step.factor) * _diagonal(chol))
    body = jnp.tril(jnp.matmul(inverse, change, precision="highest"))
    shift = matvec(inverse, step.mean)
    squares = jnp.sum(body**2, axis=(-2, -1)) + jnp.sum(_diagonal(body) ** 2, axis=-1)
    return jnp.sqrt(squares + jnp.sum(shift**2, axis=-1))

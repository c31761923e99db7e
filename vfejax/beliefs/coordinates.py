"""Unconstrained coordinates of a Gaussian and the Fisher metric in them.

A plain factor L can cross zero on its diagonal, where the energy jumps to infinity. Coordinates
``W`` with ``L = stricttril(W) + diag(exp(diag W))`` cover exactly the positive definite
covariances: every step in them, however long, stays one.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.beliefs.gaussian import Gaussian
from vfejax.numerics import (
    as_floating,
    diagonal,
    matmul,
    matmul_tn,
    matvec,
    safe_norm,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array

__all__ = ["GaussianCoordinates", "constrain", "fisher_length", "natural_direction", "unconstrain"]


class GaussianCoordinates(NamedTuple):
    """Twin of :class:`Gaussian`: ``mean [..., k]`` and ``factor [..., k, k]``, free below and on
    the diagonal (log scale).
    """

    mean: Array
    factor: Array


def _with_diagonal(matrix: Array, entries: Array) -> Array:
    eye = jnp.broadcast_to(jnp.eye(matrix.shape[-1], dtype=bool), matrix.shape)
    return jnp.where(eye, entries[..., None, :], jnp.tril(matrix))


def constrain(coordinates: GaussianCoordinates) -> Gaussian:
    """The Gaussian at these coordinates: ``L = stricttril(W) + diag(exp(diag W))``.

    >>> constrain(GaussianCoordinates(jnp.zeros(1), jnp.zeros((1, 1)))).chol.tolist()
    [[1.0]]
    """
    scale = jnp.exp(diagonal(coordinates.factor))
    return Gaussian(coordinates.mean, _with_diagonal(coordinates.factor, scale))


def unconstrain(q: Gaussian) -> GaussianCoordinates:
    """Coordinates of a Gaussian, inverse of :func:`constrain`; NaN (-inf at 0) where the factor's
    diagonal is not positive.

    >>> unconstrain(Gaussian(jnp.zeros(1), jnp.eye(1))).factor.tolist()
    [[0.0]]
    """
    mean, chol = as_floating(q.mean, "q.mean"), as_floating(q.chol, "q.chol")
    return GaussianCoordinates(mean, _with_diagonal(chol, jnp.log(diagonal(chol))))


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

    Source: Amari, Neural Computation 10 (1998) 251; the factor's metric worked out here.

    >>> at = unconstrain(Gaussian(jnp.zeros(1), jnp.array([[3.0]])))
    >>> slope = GaussianCoordinates(jnp.ones(1), jnp.ones((1, 1)))
    >>> [round(float(x.sum()), 4) for x in natural_direction(at, slope)]
    [9.0, 0.5]
    """
    chol = constrain(coordinates).chol
    scale = diagonal(chol)
    covector = _with_diagonal(gradient.factor, diagonal(gradient.factor) / scale)
    body = matmul_tn(chol, covector)
    body = _with_diagonal(body, 0.5 * diagonal(body))
    factor = _with_diagonal(matmul(chol, body), diagonal(body))
    return GaussianCoordinates(matvec(chol, matvec(transpose(chol), gradient.mean)), factor)


def fisher_length(coordinates: GaussianCoordinates, step: GaussianCoordinates) -> Array:
    """Length of a small step in the Fisher metric, ``[...]``: about ``sqrt(2 KL)`` between its two
    ends.

    ``|L^{-1} dmu|^2 + 2 sum_i X_ii^2 + sum_{i>j} X_ij^2`` under the root, with ``X = L^{-1} dL``.
    Its gradient at a step of 0 is 0.

    >>> at = unconstrain(Gaussian(jnp.zeros(1), jnp.array([[2.0]])))
    >>> float(fisher_length(at, GaussianCoordinates(jnp.ones(1), jnp.zeros((1, 1)))))
    0.5
    """
    chol = constrain(coordinates).chol
    inverse = triangular_inverse(chol)
    change = _with_diagonal(step.factor, diagonal(step.factor) * diagonal(chol))
    body = jnp.tril(matmul(inverse, change))
    body = _with_diagonal(body, math.sqrt(2.0) * diagonal(body))
    shift = matvec(inverse, step.mean)
    flat = jnp.reshape(body, (*body.shape[:-2], -1))
    return safe_norm(jnp.concatenate([flat, shift], axis=-1))

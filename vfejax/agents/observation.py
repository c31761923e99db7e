"""Linear-Gaussian observations ``o = C x + noise``, ``noise ~ N(0, R)``, several per agent."""

import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.gaussian import Gaussian
from vfejax.numerics import (
    log_det_cholesky,
    matmul,
    matvec,
    transpose,
    triangular_inverse,
    triangularize,
)
from vfejax.types import Array

__all__ = [
    "Observations",
    "expected_negative_log_likelihood",
    "identity_observations",
    "posterior",
    "precision_of_observations",
]


class Observations(NamedTuple):
    """What the agents measured.

    Attributes:
        values: ``[n, m, *grid, o]``, m observations per agent.
        present: ``[n, m, *grid]``, 1 (or True) where there is an observation. Where there is none
            it is 0, and the value must still be finite.
        matrix: C ``[o, k]``.
        noise_chol: lower factor of R ``[o, o]``, shared by all agents.
    """

    values: Array
    present: Array
    matrix: Array
    noise_chol: Array


def identity_observations(values: Array, noise_std: float | Array) -> Observations:
    """Direct observations (C = I) ``[n, m, *grid, k]`` with isotropic noise, all present.

    >>> identity_observations(jnp.ones((4, 2, 3)), 0.5).noise_chol
    Array([[0.5, 0. , 0. ],
           [0. , 0.5, 0. ],
           [0. , 0. , 0.5]], dtype=float32)
    """
    if not jnp.issubdtype(values.dtype, jnp.floating):
        raise ValueError(f"values must be real floating numbers, got {values.dtype}")
    eye = np.eye(values.shape[-1], dtype=values.dtype)  # of NumPy: nothing is compiled for it
    present = np.ones(values.shape[:-1], values.dtype)
    noise_chol = jnp.asarray(noise_std * eye, values.dtype)
    return Observations(values, jnp.asarray(present), jnp.asarray(eye), noise_chol)


def _checked(mean: Array, observations: Observations) -> Observations:
    """The observations, presence as numbers.

    Raises:
        ValueError: naming the array that does not fit agents with these means ``[n, *grid, k]``.
    """
    shape = mean.shape
    values, present, matrix, noise_chol = observations
    dim = matrix.shape[0]
    if matrix.shape != (dim, shape[-1]):
        raise ValueError(f"observation matrix must have shape [o, {shape[-1]}], got {matrix.shape}")
    if values.ndim != len(shape) + 1 or (values.shape[:1] + values.shape[2:]) != (*shape[:-1], dim):
        raise ValueError(
            f"observation values must have shape [n, m, *grid, o] with n, *grid = {shape[:-1]} and "
            f"o = {dim}, got {values.shape}"
        )
    if present.shape != values.shape[:-1]:
        raise ValueError(
            f"present must have shape {values.shape[:-1]} to fit the values, got {present.shape}"
        )
    if noise_chol.shape != (dim, dim):
        raise ValueError(
            f"noise_chol must have shape {(dim, dim)} to fit the matrix, got {noise_chol.shape}"
        )
    if present.dtype == bool:
        observations = observations._replace(present=present.astype(mean.dtype))
    for name, array in observations._asdict().items():
        if jnp.result_type(array) != mean.dtype:
            raise ValueError(
                f"observation {name} must have the agents' dtype {mean.dtype}, got "
                f"{jnp.result_type(array)}"
            )
    return observations


def _whitened_residuals(mean: Array, observations: Observations) -> Array:
    """``W (o - C mu)`` of every observation, ``[n, m, *grid, o]``, with ``W = R_chol^{-1}``.

    The difference is taken before it is whitened: it carries the rounding of the data and no more.
    """
    values, _, matrix, noise_chol = observations
    predicted = jnp.einsum("ok,...k->...o", matrix, mean, precision="highest")
    whitener = triangular_inverse(noise_chol)
    return jnp.einsum("po,...o->...p", whitener, values - predicted[:, None], precision="highest")


def expected_negative_log_likelihood(belief: Gaussian, observations: Observations) -> Array:
    """``E_q[-log p(o | x)]`` of every agent, summed over its observations, in nats.

    With ``W = R_chol^{-1}``, per observation ``1/2 (|W (o - C mu)|^2 + |W C L|_F^2 + log det 2 pi
    R)``.

    Args:
        belief: mean ``[n, *grid, k]``, chol ``[n, *grid, k, k]``.
        observations: values ``[n, m, *grid, o]`` and their model.

    Returns:
        ``[n, *grid]``.

    Raises:
        ValueError: when observations and beliefs do not fit.

    >>> sure = Gaussian(jnp.zeros((1, 1)), jnp.full((1, 1, 1), 1e-6))
    >>> seen = identity_observations(jnp.full((1, 1, 1), 2.0), noise_std=1.0)
    >>> round(float(expected_negative_log_likelihood(sure, seen)[0]), 3)  # (2^2 + log 2 pi) / 2
    2.919
    """
    observations = _checked(belief.mean, observations)
    _, present, matrix, noise_chol = observations
    dim = matrix.shape[0]
    residual = jnp.sum(_whitened_residuals(belief.mean, observations) ** 2, axis=-1)
    whitened_matrix = matmul(triangular_inverse(noise_chol), matrix)
    spread = jnp.einsum(
        "ok,...kl->...ol", whitened_matrix, jnp.tril(belief.chol), precision="highest"
    )
    constant = (
        jnp.sum(spread**2, axis=(-2, -1))
        + dim * math.log(2 * math.pi)
        + log_det_cholesky(noise_chol)
    )
    return 0.5 * jnp.sum(present * (residual + constant[:, None]), axis=1)


def precision_of_observations(mean: Array, observations: Observations) -> Array:
    """``sum C^T R^{-1} C`` over the observations present: what they add to a precision.

    Args:
        mean: of the agents ``[n, *grid, k]``, whose shape and dtype the observations must fit.
        observations: values ``[n, m, *grid, o]`` and their model.

    Returns:
        ``[n, *grid, k, k]``.

    Raises:
        ValueError: when observations and means do not fit.

    >>> seen = identity_observations(jnp.zeros((1, 4, 2)), noise_std=0.5)  # four of each component
    >>> precision_of_observations(jnp.zeros((1, 2)), seen)[0]
    Array([[16.,  0.],
           [ 0., 16.]], dtype=float32)
    """
    _, present, matrix, noise_chol = _checked(mean, observations)
    whitened = matmul(triangular_inverse(noise_chol), matrix)
    one = matmul(transpose(whitened), whitened)
    count = jnp.sum(present, axis=1)
    return count[..., None, None] * jnp.reshape(one, (1,) * count.ndim + one.shape)


def posterior(prior: Gaussian, observations: Observations) -> Gaussian:
    """What each agent would believe alone: the exact Bayesian posterior of its prior and its own
    observations.

    In square-root form. The whitened rows ``B = [L_p^{-1}; sqrt(c) W C]`` of the prior and of the
    mean of c observations have ``B^T B`` equal to the posterior's precision. An orthogonal
    reduction of B gives the factor, and the same reduction of the whitened residuals gives the
    shift of the mean. No precision is formed, so the condition number counts once, and the result
    is good to rounding even where a precise instrument meets a broad prior.

    Args:
        prior: mean ``[n, *grid, k]``, chol ``[n, *grid, k, k]``.
        observations: values ``[n, m, *grid, o]`` and their model.

    Returns:
        The Gaussian that minimises KL(q || p) + E_q[-log p(o | x)], with the shapes of ``prior``.

    Raises:
        ValueError: when observations and priors do not fit.

    Source: Bierman, Factorization Methods for Discrete Sequential Estimation (1977), chapter V
    (square-root information filter).

    >>> prior = Gaussian(jnp.zeros((1, 1)), jnp.full((1, 1, 1), 2.0))
    >>> seen = identity_observations(jnp.full((1, 3, 1), 1.0), noise_std=2.0)
    >>> q = posterior(prior, seen)  # four equal pieces of evidence, three of them at 1
    >>> round(q.mean.item(), 4), round(q.chol.item(), 4)
    (0.75, 1.0)
    """
    observations = _checked(prior.mean, observations)
    _, present, matrix, noise_chol = observations
    residual = _whitened_residuals(prior.mean, observations)
    count = jnp.sum(present, axis=1)
    none = count == 0
    root = jnp.where(none, 0.0, jnp.sqrt(jnp.where(none, 1.0, count)))[..., None]
    shift = jnp.sum(present[..., None] * residual, axis=1) / jnp.where(none[..., None], 1.0, root)

    whitener = triangular_inverse(jnp.tril(prior.chol))
    seen = matmul(triangular_inverse(noise_chol), matrix)
    seen = root[..., None] * jnp.reshape(seen, (1,) * count.ndim + seen.shape)
    # Columns in reverse, so that the factor of B^T B becomes one of the covariance. The last column
    # carries the residuals; a row of its own with a 1 keeps the whole array of full rank.
    rows = jnp.concatenate([whitener, seen, jnp.zeros_like(whitener[..., :1, :])], axis=-2)
    residuals = jnp.concatenate([jnp.zeros_like(prior.mean), shift, jnp.ones_like(root)], axis=-1)
    factor = triangularize(jnp.concatenate([rows[..., ::-1], residuals[..., None]], axis=-1))
    square_root = transpose(factor[..., :-1, :-1])[..., ::-1, ::-1]
    chol = triangular_inverse(square_root)
    return Gaussian(prior.mean + matvec(chol, factor[..., -1, -2::-1]), chol)

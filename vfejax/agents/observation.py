"""Linear-Gaussian observations ``o = C x + noise``, ``noise ~ N(0, R)``, several per agent."""

import math
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.beliefs import gaussian
from vfejax.beliefs.gaussian import Gaussian
from vfejax.numerics import log_det_cholesky, triangular_inverse
from vfejax.types import Array

__all__ = ["Observations", "expected_negative_log_likelihood", "identity_observations", "posterior"]


class Observations(NamedTuple):
    """What the agents measured.

    ``values [n, m, *grid, o]``: m observations per agent; ``present [n, m, *grid]``: 1 where there
    is one, 0 where there is none (then the value must still be finite); ``matrix [o, k]``: C;
    ``noise_chol [o, o]``: lower factor of R, shared by all agents.
    """

    values: Array
    present: Array
    matrix: Array
    noise_chol: Array


def identity_observations(values: Array, noise_std: float | Array) -> Observations:
    """Direct observations (C = I) ``[n, m, *grid, k]`` with isotropic noise, all present."""
    eye = jnp.eye(values.shape[-1], dtype=values.dtype)
    return Observations(values, jnp.ones_like(values[..., 0]), eye, noise_std * eye)


def _check_shapes(shape: tuple[int, ...], observations: Observations) -> None:
    """Raise ValueError, naming the array, unless the observations fit agents whose means have
    ``shape = [n, *grid, k]``.
    """
    values, present, matrix, noise_chol = observations
    dim = matrix.shape[0]
    if matrix.shape != (dim, shape[-1]):
        raise ValueError(f"observation matrix must have shape [o, {shape[-1]}], got {matrix.shape}")
    if values.ndim != len(shape) + 1 or (values.shape[:1] + values.shape[2:]) != (*shape[:-1], dim):
        raise ValueError(
            f"observation values must have shape [n, m, *grid, o] with n, *grid = {shape[:-1]} and o = {dim}, got {values.shape}"
        )
    if present.shape != values.shape[:-1]:
        raise ValueError(
            f"present must have shape {values.shape[:-1]} to fit the values, got {present.shape}"
        )
    if noise_chol.shape != (dim, dim):
        raise ValueError(
            f"noise_chol must have shape {(dim, dim)} to fit the matrix, got {noise_chol.shape}"
        )


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
    """
    _check_shapes(belief.mean.shape, observations)
    values, present, matrix, noise_chol = observations
    dim = matrix.shape[0]
    whitener = triangular_inverse(noise_chol)
    whitened_matrix = jnp.matmul(whitener, matrix, precision="highest")
    predicted = jnp.einsum("ok,...k->...o", whitened_matrix, belief.mean, precision="highest")
    seen = jnp.einsum("po,...o->...p", whitener, values, precision="highest")
    residual = jnp.sum((seen - predicted[:, None]) ** 2, axis=-1)
    spread = jnp.einsum(
        "ok,...kl->...ol", whitened_matrix, jnp.tril(belief.chol), precision="highest"
    )
    constant = (
        jnp.sum(spread**2, axis=(-2, -1))
        + dim * math.log(2 * math.pi)
        + log_det_cholesky(noise_chol)
    )
    return 0.5 * jnp.sum(present * (residual + constant[:, None]), axis=1)


def posterior(prior: Gaussian, observations: Observations) -> Gaussian:
    """What each agent would believe alone: the exact Bayesian posterior of its prior and its own
    observations.

    Args:
        prior: mean ``[n, *grid, k]``, chol ``[n, *grid, k, k]``.
        observations: values ``[n, m, *grid, o]`` and their model.

    Returns:
        The Gaussian that minimises KL(q || p) + E_q[-log p(o | x)], with the shapes of ``prior``.

    Raises:
        ValueError: when observations and priors do not fit.
    """
    _check_shapes(prior.mean.shape, observations)
    values, present, matrix, noise_chol = observations
    whitener = triangular_inverse(noise_chol)
    whitened_matrix = jnp.matmul(whitener, matrix, precision="highest")
    seen = jnp.einsum("po,...o->...p", whitener, values, precision="highest")
    total = jnp.sum(present[..., None] * seen, axis=1)
    count = jnp.sum(present, axis=1)
    information, precision = gaussian.natural_parameters(prior)
    gram = jnp.matmul(whitened_matrix.T, whitened_matrix, precision="highest")
    precision = precision + count[..., None, None] * jnp.reshape(
        gram, (1,) * count.ndim + gram.shape
    )
    information = information + jnp.einsum(
        "ok,...o->...k", whitened_matrix, total, precision="highest"
    )
    return gaussian.from_natural(information, precision)

"""Gaussian beliefs about a path: the mode of the free energy, and its curvature there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from vfejax.inference.generalized_filtering.hierarchical_models import (
    Hyperparameters,
    Model,
    Observation,
    Path,
)
from vfejax.inference.generalized_filtering.path_energy import energy, residuals
from vfejax.numerics import (
    cholesky,
    log_det_cholesky,
    matmul_tn,
    matvec,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array

__all__ = [
    "Expansion",
    "FilterInfo",
    "FilterState",
    "describe",
    "expand",
    "laplace",
    "mode",
    "moments",
    "spd_inverse",
]


class FilterState(NamedTuple):
    """Mode of the path, parameters and hyperparameters."""

    path: Path
    parameters: tuple
    hyper: Hyperparameters


class FilterInfo(NamedTuple):
    """What a step found.

    Attributes:
        energy: F of the path after the step, in nats.
        free_energy: F minus the entropy of the Gaussian about the mode; minus it is the log
            evidence of this observation alone, exact for linear models.
        covariance: of the flat path, ``[n, n]``: the inverse curvature of F.
        gradient_norm: of F at the mode; not 0, for the mode moves.
    """

    energy: Array
    free_energy: Array
    covariance: Array
    gradient_norm: Array


def spd_inverse(matrix: Array) -> Array:
    """Inverse of a symmetric positive definite matrix.

    >>> spd_inverse(jnp.array([[4.0]])).tolist()
    [[0.25]]
    """
    inverse = triangular_inverse(cholesky(matrix))
    return matmul_tn(inverse, inverse)


class Expansion(NamedTuple):
    """F about a path: gradient, curvature, and its cross derivative with what is observed."""

    gradient: Array
    curvature: Array
    cross: Array


def expand(
    model: Model, path: Path, seen: Observation, parameters: tuple, hyper: Hyperparameters
) -> Expansion:
    """Gradient, Gauss-Newton curvature ``R^T R`` and ``R^T R_y`` from one Jacobian.

    Args:
        model: the hierarchy.
        path: where F is expanded.
        seen: the observation.
        parameters: one pytree for each level.
        hyper: logarithms of the weights of precision components.

    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> from vfejax.inference.generalized_filtering import observation, rest, zero_hyperparameters
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> seen, hyper = observation(model, jnp.zeros((2, 4))), zero_hyperparameters(model)
    >>> expansion = expand(model, rest(model), seen, parameters, hyper)
    >>> float(jnp.abs(expansion.gradient).max())
    0.0
    """
    flat, unravel = ravel_pytree(path)
    flat_seen, unravel_seen = ravel_pytree(seen)

    def errors(z: Array) -> Array:
        return residuals(
            model, unravel(z[: flat.size]), unravel_seen(z[flat.size :]), parameters, hyper
        )

    z = jnp.concatenate([flat, flat_seen])
    jacobian = jax.jacfwd(errors)(z)
    both = matmul_tn(jacobian[:, : flat.size], jacobian)
    gradient = matvec(transpose(jacobian[:, : flat.size]), errors(z))
    return Expansion(gradient, both[:, : flat.size], both[:, flat.size :])


def describe(
    model: Model, state: FilterState, seen: Observation, expansion: Expansion
) -> FilterInfo:
    """Energy, free energy and covariance about a path.

    Args:
        model: the hierarchy.
        state: with the path.
        seen: the observation.
        expansion: of F at the path.

    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> from vfejax.inference.generalized_filtering import observation, rest, zero_hyperparameters
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> seen, hyper = observation(model, jnp.zeros((2, 4))), zero_hyperparameters(model)
    >>> expansion = expand(model, rest(model), seen, parameters, hyper)
    >>> describe(model, FilterState(rest(model), parameters, hyper), seen, expansion).energy.shape
    ()
    """
    value = energy(model, state.path, seen, state.parameters, state.hyper)
    factor = cholesky(expansion.curvature)
    inverse = triangular_inverse(factor)
    entropy = 0.5 * (factor.shape[-1] * jnp.log(2 * jnp.pi) - log_det_cholesky(factor))
    return FilterInfo(
        value,
        value - entropy.astype(value.dtype),
        matmul_tn(inverse, inverse),
        jnp.sqrt(jnp.sum(expansion.gradient**2)),
    )


def mode(
    model: Model,
    path: Path,
    seen: Observation,
    parameters: tuple,
    hyper: Hyperparameters,
    num_steps: int = 1,
) -> Path:
    """The path of least F for one observation, by Gauss-Newton steps.

    Args:
        model: the hierarchy.
        path: where to begin.
        seen: the observation.
        parameters: one pytree for each level.
        hyper: logarithms of the weights of precision components.
        num_steps: 1 is exact for linear models. There is no line search.

    Returns:
        The path.

    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> from vfejax.inference.generalized_filtering import observation, rest, zero_hyperparameters
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> seen, hyper = observation(model, jnp.zeros((2, 4))), zero_hyperparameters(model)
    >>> float(mode(model, rest(model), seen, parameters, hyper).states[0].sum())
    0.0
    """
    flat, unravel = ravel_pytree(path)

    def step(z: Array, _: None) -> tuple[Array, None]:
        expansion = expand(model, unravel(z), seen, parameters, hyper)
        return z - matvec(spd_inverse(expansion.curvature), expansion.gradient), None

    flat, _ = jax.lax.scan(step, flat, None, length=num_steps)
    return unravel(flat)


def moments(path: Path, covariance: Array) -> tuple[Path, Path]:
    """Means and standard deviations as two paths.

    Args:
        path: a mode.
        covariance: of the flat path, ``[n, n]``.

    Returns:
        ``path`` and one of the same shapes.

    >>> path = Path((jnp.zeros((1, 1)),), (jnp.zeros((1, 0)),))
    >>> moments(path, jnp.array([[4.0]]))[1].states[0].tolist()
    [[2.0]]
    """
    _, unravel = ravel_pytree(path)
    return path, unravel(jnp.sqrt(jnp.diagonal(covariance)))


def laplace(model: Model, state: FilterState, seen: Observation) -> FilterInfo:
    """Energy and Gaussian about a path that came from elsewhere, such as :func:`mode`.

    Args:
        model: the hierarchy.
        state: with the path.
        seen: the observation.

    Returns:
        The info of a filter.

    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> from vfejax.inference.generalized_filtering import observation, rest, zero_hyperparameters
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> state = FilterState(rest(model), parameters, zero_hyperparameters(model))
    >>> laplace(model, state, observation(model, jnp.zeros((2, 4)))).covariance.shape
    (5, 5)
    """
    expansion = expand(model, state.path, seen, state.parameters, state.hyper)
    return describe(model, state, seen, expansion)

"""Steps of dynamic expectation maximisation: parameters and precisions at given beliefs."""

import math
from collections.abc import Callable
from functools import partial
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
from vfejax.inference.generalized_filtering.path_energy import (
    PredictionErrors,
    log_normalizer,
    prediction_errors,
    residuals,
)
from vfejax.numerics import (
    cast_like,
    cholesky,
    log_det_cholesky,
    matmul,
    matmul_tn,
    matvec,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array, PyTree

__all__ = ["Beliefs", "LearningState", "Prior", "free_energy", "learn"]


_FRACTIONS = (1.0, 0.5, 0.25, 0.1, 0.02, 0.0)


class Prior(NamedTuple):
    """Independent Gaussian priors.

    Attributes:
        parameters: expectation, one pytree for each level.
        parameter_precision: a pytree of the same structure and shapes; parameters that are known
            belong into the functions of the model instead.
        hyper: expectation of the logarithms of precisions.
        hyper_precision: one number for all of them.
    """

    parameters: tuple
    parameter_precision: tuple
    hyper: Hyperparameters
    hyper_precision: float | Array


class LearningState(NamedTuple):
    """Means of parameters and hyperparameters."""

    parameters: tuple
    hyper: Hyperparameters


class Beliefs(NamedTuple):
    """What is fixed while parameters and precisions are learned: observations, modes of the paths
    and factors of their covariances, of all times.
    """

    seen: Observation
    path: Path
    factor: Array


def _spread(function: Callable[[Array], PyTree], point: Array, factor: Array) -> PyTree:
    """``function`` at a point and, below it, its slope along each column of ``factor``: a set of
    errors whose squares sum to the expected square.
    """
    value, push = jax.linearize(function, point)
    slopes = jax.vmap(push)(transpose(factor))
    return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), value, slopes)


def _expected_errors(
    model: Model, beliefs: Beliefs, parameters: tuple, hyper: Hyperparameters
) -> Array:
    """Errors of all times, flat, with those of the uncertainty of the paths."""

    def one(now: Observation, path: Path, factor: Array) -> Array:
        flat, unravel = ravel_pytree(path)

        def errors(z: Array) -> Array:
            return residuals(model, unravel(z), now, parameters, hyper)

        return _spread(errors, flat, factor)

    return jnp.ravel(jax.vmap(one)(*beliefs))


def _scatter(
    model: Model, beliefs: Beliefs, parameters: tuple, parameter_factor: Array
) -> PredictionErrors:
    """Expected squares ``[k, k]`` of every kind of error, summed over times and derivatives."""
    flat_parameters, unravel_parameters = ravel_pytree(parameters)

    def one(now: Observation, path: Path, factor: Array) -> PredictionErrors:
        flat, unravel = ravel_pytree(path)

        def errors(z: Array) -> PredictionErrors:
            theta = unravel_parameters(z[flat.size :])
            return prediction_errors(model, unravel(z[: flat.size]), now, theta)

        both = jnp.concatenate([flat, flat_parameters])
        zeros = jnp.zeros((flat.size, flat_parameters.size), flat.dtype)
        joint = jnp.block([[factor, zeros], [zeros.T, parameter_factor]])
        return _spread(errors, both, joint)

    def square(errors: Array) -> Array:
        rows = jnp.reshape(errors, (math.prod(errors.shape[:-1]), errors.shape[-1]))
        return matmul_tn(rows, rows)

    return jax.tree.map(square, jax.vmap(one)(*beliefs))


def _least(function: Callable[[Array], Array], point: Array, step: Array) -> Array:
    """The point of least ``function`` on the way from ``point`` along ``step``; itself included."""
    fractions = jnp.asarray(_FRACTIONS, point.dtype)
    points = point[None, :] + fractions[:, None] * step[None, :]
    values = jax.lax.map(function, points)
    return points[jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))]


def _entropies(beliefs: Beliefs) -> Array:
    """Of the beliefs about the paths, summed over times."""
    size = beliefs.factor.shape[0] * beliefs.factor.shape[1]
    return 0.5 * (jnp.sum(log_det_cholesky(beliefs.factor)) + size * math.log(2 * math.pi * math.e))


def _complexity(prior: Prior, parameters: tuple, factor: Array) -> Array:
    """``KL(q(theta) || p(theta))`` for a covariance ``L L^T`` with triangular L."""
    center, weights = (ravel_pytree(x)[0] for x in (prior.parameters, prior.parameter_precision))
    away = ravel_pytree(parameters)[0] - center
    squares = jnp.sum(weights * (away**2 + jnp.sum(factor**2, axis=1)))
    volume = jnp.sum(jnp.log(weights)) + 2.0 * jnp.sum(jnp.log(jnp.diagonal(factor)))
    return 0.5 * (squares - volume - away.shape[0])


def _inverse_factor(matrix: Array) -> Array:
    """L with ``L L^T = matrix^{-1}``; upper triangular."""
    return transpose(triangular_inverse(cholesky(matrix)))


def _parameter_errors(
    model: Model, prior: Prior, beliefs: Beliefs, state: LearningState
) -> Callable[[Array], Array]:
    """Errors of the paths and of the prior, as a function of the flat parameters."""
    _, unravel = ravel_pytree(state.parameters)
    center, weights = (ravel_pytree(x)[0] for x in (prior.parameters, prior.parameter_precision))

    def errors(z: Array) -> Array:
        seen = _expected_errors(model, beliefs, unravel(z), state.hyper)
        return jnp.concatenate([seen, jnp.sqrt(weights) * (z - center)])

    return errors


def _posterior_factor(errors: Callable[[Array], Array], point: Array) -> tuple[Array, Array]:
    """L with ``L L^T`` the covariance of the parameters, and the Jacobian that it comes from."""
    jacobian = jax.jacfwd(errors)(point)
    return _inverse_factor(matmul_tn(jacobian, jacobian)), jacobian


def _parameter_step(
    model: Model, prior: Prior, beliefs: Beliefs, state: LearningState
) -> tuple[tuple, Array, Array]:
    """New parameters, the factor of their covariance, and F without entropies before and after."""
    flat, unravel = ravel_pytree(state.parameters)
    errors = _parameter_errors(model, prior, beliefs, state)

    def value(z: Array) -> Array:
        return 0.5 * jnp.sum(errors(z) ** 2)

    factor, jacobian = _posterior_factor(errors, flat)
    gradient = matvec(transpose(jacobian), errors(flat))
    new = _least(value, flat, -matvec(factor, matvec(transpose(factor), gradient)))
    return unravel(new), _posterior_factor(errors, new)[0], jnp.stack([value(flat), value(new)])


def _hyper_value(
    model: Model, prior: Prior, scatter: PredictionErrors, num: int, hyper: Hyperparameters
) -> Array:
    """The part of F that depends on precisions: squares, normaliser and prior."""
    total = -num * log_normalizer(model, hyper)
    for kind, components, weights in (
        (scatter.output, [x.output_precision for x in model.levels], hyper.output),
        (scatter.state, [x.state_precision for x in model.levels], hyper.state),
    ):
        for square, component, weight in zip(kind, components, weights, strict=True):
            traces = jnp.sum(jnp.asarray(component, square.dtype) * square[None], axis=(1, 2))
            total = total + 0.5 * jnp.sum(jnp.exp(weight) * traces)
    top = jnp.sum(jnp.asarray(model.cause_precision, total.dtype) * scatter.cause)
    away = ravel_pytree(hyper)[0] - ravel_pytree(prior.hyper)[0]
    precision = cast_like(prior.hyper_precision, away)
    return total + 0.5 * top + 0.5 * precision * jnp.sum(away**2)


def _precision_step(
    value: Callable[[Array], Array], hyper: Hyperparameters
) -> tuple[Hyperparameters, Array]:
    """New hyperparameters, and the value before and after."""
    flat, unravel = ravel_pytree(hyper)
    step = -matmul(_inverse_of(jax.hessian(value)(flat)), jax.grad(value)(flat)[:, None])[:, 0]
    new = _least(value, flat, step)
    return unravel(new), jnp.stack([value(flat), value(new)])


def _inverse_of(matrix: Array) -> Array:
    factor = _inverse_factor(matrix)
    return matmul(factor, transpose(factor))


def _precision_value(
    model: Model, prior: Prior, beliefs: Beliefs, parameters: tuple, factor: Array
) -> Callable[[Hyperparameters], Array]:
    scatter = _scatter(model, beliefs, parameters, factor)
    return partial(_hyper_value, model, prior, scatter, beliefs.seen.sensed.shape[0])


def learn(
    model: Model, prior: Prior, beliefs: Beliefs, state: LearningState
) -> tuple[LearningState, Array, Array, Array]:
    """The E-step and the M-step at given beliefs about the paths.

    Args:
        model: the hierarchy.
        prior: of parameters and hyperparameters.
        beliefs: about the paths of all times.
        state: before the steps.

    Returns:
        The state after them, F, how far each of them lowered its part of F ``[2]``, and the
        covariance of the flat parameters.

    >>> from vfejax.inference.generalized_filtering import observation, rest, zero_hyperparameters
    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> model, parameters = convolution_model(order=2, cause_order=1, output_precision=1.0)
    >>> state = LearningState(parameters, zero_hyperparameters(model))
    >>> prior = Prior(parameters, jax.tree.map(jnp.ones_like, parameters), state.hyper, 1.0)
    >>> path = jax.tree.map(lambda x: x[None], rest(model))
    >>> beliefs = Beliefs(observation(model, jnp.ones((1, 2, 4))), path, jnp.eye(5)[None])
    >>> before = jax.jit(lambda b: free_energy(model, prior, b, state))(beliefs)
    >>> bool(jax.jit(lambda b: learn(model, prior, b, state)[1])(beliefs) <= before)
    True
    """
    parameters, factor, squares = _parameter_step(model, prior, beliefs, state)
    value = _precision_value(model, prior, beliefs, parameters, factor)
    _, unravel = ravel_pytree(state.hyper)
    hyper, values = _precision_step(lambda z: value(unravel(z)), state.hyper)
    drops = jnp.stack([squares[0] - squares[1], values[0] - values[1]])
    total = values[1] + _complexity(prior, parameters, factor) - _entropies(beliefs)
    return LearningState(parameters, hyper), total, drops, matmul(factor, transpose(factor))


def free_energy(model: Model, prior: Prior, beliefs: Beliefs, state: LearningState) -> Array:
    """F of a state and of beliefs about the paths, in nats.

    Args:
        model: the hierarchy.
        prior: of parameters and hyperparameters.
        beliefs: about the paths of all times.
        state: parameters and hyperparameters.

    >>> from vfejax.inference.generalized_filtering import observation, rest, zero_hyperparameters
    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> model, parameters = convolution_model(order=2, cause_order=1, output_precision=1.0)
    >>> state = LearningState(parameters, zero_hyperparameters(model))
    >>> prior = Prior(parameters, jax.tree.map(jnp.ones_like, parameters), state.hyper, 1.0)
    >>> path = jax.tree.map(lambda x: x[None], rest(model))
    >>> beliefs = Beliefs(observation(model, jnp.ones((1, 2, 4))), path, jnp.eye(5)[None])
    >>> jax.jit(lambda b: free_energy(model, prior, b, state))(beliefs).shape
    ()
    """
    errors = _parameter_errors(model, prior, beliefs, state)
    factor, _ = _posterior_factor(errors, ravel_pytree(state.parameters)[0])
    value = _precision_value(model, prior, beliefs, state.parameters, factor)(state.hyper)
    return value + _complexity(prior, state.parameters, factor) - _entropies(beliefs)

"""Dynamic expectation maximisation: states, parameters and precisions of a series, by turns.

The belief is a product ``q(u_1) ... q(u_T) q(theta)``, Gaussian, with a point for the
hyperparameters. All three kinds of step descend one free energy,

    F = sum_t E_q[F_t(u_t, theta, lambda)] - log p(theta) - log p(lambda) - entropies     [nats],

whose expectations are those of the errors linearised at the means:

- D: paths of states and causes, by a function that is passed: :func:`by_filter` (online, as the
  name has it) or :func:`by_mode` (each time on its own; for linear models F then never rises);
- E: parameters, by a Gauss-Newton step. The uncertainty of the paths enters as further errors;
- M: logarithms of precisions, by a Newton step on the scatter of all errors.

E and M steps are shortened until F does not rise.

Source: Friston, Trujillo-Barreto and Daunizeau, NeuroImage 41 (2008) 849. Theirs ascends in E and M
by Ozaki's step; ours takes the limit of a long one and checks that F falls.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree

from vfejax.inference.generalized_filtering import (
    Filter,
    FilterState,
    filter_series,
    laplace,
    mode,
)
from vfejax.inference.hierarchical_models import (
    Hyperparameters,
    Model,
    Observation,
    Path,
    PredictionErrors,
    log_normalizer,
    prediction_errors,
    residuals,
    rest,
)
from vfejax.numerics import (
    cholesky,
    log_det_cholesky,
    matmul,
    matmul_tn,
    matvec,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array, PyTree

__all__ = [
    "Learner",
    "LearningInfo",
    "LearningState",
    "PerceiveFn",
    "Prior",
    "by_filter",
    "by_mode",
    "dynamic_expectation_maximization",
]

PerceiveFn = Callable[[tuple, Hyperparameters, Observation], tuple[Path, Array]]
"""The D-step: from parameters, hyperparameters and a series to modes and their covariances."""

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


class LearningInfo(NamedTuple):
    """What one round found.

    Attributes:
        free_energy: after the round, in nats, up to constants of the prior of hyperparameters.
        drops: how far the E-step and the M-step lowered the part of it that they change, ``[2]``.
        path: modes of all times.
        covariance: of the flat paths, ``[t, n, n]``.
        parameter_covariance: of the flat parameters, ``[p, p]``.
    """

    free_energy: Array
    drops: Array
    path: Path
    covariance: Array
    parameter_covariance: Array


class Learner(NamedTuple):
    """A method of learning as two pure functions.

    Attributes:
        init: ``init() -> LearningState``, the expectations of the prior.
        step: ``step(state, series of observations) -> (LearningState, LearningInfo)``, one round.
    """

    init: Callable[[], LearningState]
    step: Callable[[LearningState, Observation], tuple[LearningState, LearningInfo]]


def by_filter(run: Filter) -> PerceiveFn:
    """The D-step that filters the series.

    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> from vfejax.inference.generalized_filtering import generalized_filter
    >>> model, _ = convolution_model()
    >>> perceive = by_filter(generalized_filter(model, 1.0))
    """

    def perceive(
        parameters: tuple, hyper: Hyperparameters, seen: Observation
    ) -> tuple[Path, Array]:
        _, path, info = filter_series(run, run.init(parameters, hyper), seen)
        return path, info.covariance

    return perceive


def by_mode(model: Model, num_steps: int = 1) -> PerceiveFn:
    """The D-step that finds the least F at each time.

    Args:
        model: the hierarchy.
        num_steps: of Gauss and Newton; 1 is exact for linear models.

    Returns:
        The step.

    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> perceive = by_mode(convolution_model()[0])
    """

    def perceive(
        parameters: tuple, hyper: Hyperparameters, seen: Observation
    ) -> tuple[Path, Array]:
        def one(now: Observation) -> tuple[Path, Array]:
            start = rest(model, now.sensed.dtype)
            path = mode(model, start, now, parameters, hyper, num_steps)
            return path, laplace(model, FilterState(path, parameters, hyper), now).covariance

        return jax.vmap(one)(seen)

    return perceive


class _Beliefs(NamedTuple):
    """What is fixed while parameters and precisions are learned."""

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
    model: Model, beliefs: _Beliefs, parameters: tuple, hyper: Hyperparameters
) -> Array:
    """Errors of all times, flat, with those of the uncertainty of the paths."""

    def one(now: Observation, path: Path, factor: Array) -> Array:
        flat, unravel = ravel_pytree(path)

        def errors(z: Array) -> Array:
            return residuals(model, unravel(z), now, parameters, hyper)

        return _spread(errors, flat, factor)

    return jnp.ravel(jax.vmap(one)(*beliefs))


def _scatter(
    model: Model, beliefs: _Beliefs, parameters: tuple, parameter_factor: Array
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


def _entropies(beliefs: _Beliefs) -> Array:
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


def _parameter_step(
    model: Model, prior: Prior, beliefs: _Beliefs, state: LearningState
) -> tuple[tuple, Array, Array]:
    """New parameters, the factor of their covariance, and F without entropies before and after."""
    flat, unravel = ravel_pytree(state.parameters)
    center, weights = (ravel_pytree(x)[0] for x in (prior.parameters, prior.parameter_precision))

    def errors(z: Array) -> Array:
        seen = _expected_errors(model, beliefs, unravel(z), state.hyper)
        return jnp.concatenate([seen, jnp.sqrt(weights) * (z - center)])

    def value(z: Array) -> Array:
        return 0.5 * jnp.sum(errors(z) ** 2)

    def curvature(z: Array) -> tuple[Array, Array]:
        jacobian = jax.jacfwd(errors)(z)
        return jacobian, matmul_tn(jacobian, jacobian)

    jacobian, matrix = curvature(flat)
    factor = _inverse_factor(matrix)
    gradient = matvec(transpose(jacobian), errors(flat))
    new = _least(value, flat, -matvec(factor, matvec(transpose(factor), gradient)))
    return unravel(new), _inverse_factor(curvature(new)[1]), jnp.stack([value(flat), value(new)])


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
    return total + 0.5 * top + 0.5 * prior.hyper_precision * jnp.sum(away**2)


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


def dynamic_expectation_maximization(
    model: Model, prior: Prior, perceive_fn: PerceiveFn
) -> Learner:
    """States, causes, parameters and precisions of a series.

    Args:
        model: the hierarchy.
        prior: of parameters and hyperparameters; also where learning starts.
        perceive_fn: the D-step, :func:`by_filter` or :func:`by_mode`.

    Returns:
        ``init`` and ``step``; repeat ``step`` until the free energy stays.

    Source: Friston, Trujillo-Barreto and Daunizeau, NeuroImage 41 (2008) 849, section "Dynamic
    expectation maximisation".

    >>> from vfejax.inference.hierarchical_models import observation, zero_hyperparameters
    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> model, parameters = convolution_model(order=2, cause_order=1)
    >>> ones = jax.tree.map(jnp.ones_like, parameters)
    >>> prior = Prior(parameters, ones, zero_hyperparameters(model), 1.0)
    >>> learn = dynamic_expectation_maximization(model, prior, by_mode(model))
    >>> learn.init().hyper.state[0].tolist()
    [0.0]
    """

    def init() -> LearningState:
        return LearningState(prior.parameters, prior.hyper)

    def step(state: LearningState, seen: Observation) -> tuple[LearningState, LearningInfo]:
        path, covariance = perceive_fn(state.parameters, state.hyper, seen)
        beliefs = _Beliefs(seen, path, jax.vmap(cholesky)(covariance))
        num = seen.sensed.shape[0]
        parameters, factor, squares = _parameter_step(model, prior, beliefs, state)
        scatter = _scatter(model, beliefs, parameters, factor)
        _, unravel = ravel_pytree(state.hyper)

        def value(z: Array) -> Array:
            return _hyper_value(model, prior, scatter, num, unravel(z))

        hyper, values = _precision_step(value, state.hyper)
        drops = jnp.stack([squares[0] - squares[1], values[0] - values[1]])
        free_energy = values[1] + _complexity(prior, parameters, factor) - _entropies(beliefs)
        covariance_of_parameters = matmul(factor, transpose(factor))
        info = LearningInfo(free_energy, drops, path, covariance, covariance_of_parameters)
        return LearningState(parameters, hyper), info

    return Learner(init, step)


def _half_log_determinant(factor: Array) -> Array:
    """``log det L`` of a triangular factor."""
    return jnp.sum(jnp.log(jnp.diagonal(factor)))

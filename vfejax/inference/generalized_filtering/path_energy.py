"""The free energy of a path under a hierarchical dynamic model, in generalised coordinates.

In generalised coordinates the prediction errors are ``e_y = y~ - g~``, ``e_x = D x~ - f~``, ``e_v =
v~ - g~``, and their precision is ``S^{-1} (x) Pi``. The free energy of a path is

    F = 1/2 sum e~^T (S^{-1} (x) Pi) e~ - 1/2 log|S^{-1} (x) Pi / 2 pi|     [nats].

It is written as half the square of one vector, :func:`residuals`; gradient and Gauss-Newton
curvature of F come from its Jacobian.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.generalized_filtering.generalized_coordinates import (
    resize,
    shift,
)
from vfejax.inference.generalized_filtering.hierarchical_models import (
    Hyperparameters,
    Model,
    Observation,
    Path,
    motion_order,
)
from vfejax.inference.generalized_filtering.smooth_noise import (
    temporal_log_det,
    temporal_precision_root,
)
from vfejax.numerics import cholesky, log_det_cholesky, matmul, triangular_inverse
from vfejax.types import Array, PyTree

__all__ = ["PredictionErrors", "energy", "log_normalizer", "prediction_errors", "residuals"]


def _precision_factor(components: Array | np.ndarray, weights: Array) -> Array:
    """Cholesky factor of ``sum_c exp(lambda_c) Q_c``."""
    components = jnp.asarray(components, weights.dtype)
    return cholesky(jnp.sum(jnp.exp(weights)[:, None, None] * components, axis=0))


class PredictionErrors(NamedTuple):
    """Errors whose derivatives are independent: ``W e~`` with ``W^T W = S^{-1}``.

    ``output[i] [., o_i]`` and ``state[i] [., n_i]`` of level i, and ``cause [cause_order, m]`` of
    the prior.
    """

    output: tuple[Array, ...]
    state: tuple[Array, ...]
    cause: Array


def _temporal_roots(model: Model, dtype: jax.typing.DTypeLike) -> tuple[Array, Array, Array, Array]:
    """Roots of the temporal precision of observations, motion, causes between levels and prior."""
    smoothness = jnp.asarray(model.smoothness, dtype)
    slow = (
        smoothness if model.cause_smoothness is None else jnp.asarray(model.cause_smoothness, dtype)
    )
    if model.sensed_covariance is None:
        sensed = temporal_precision_root(model.order, smoothness)
    else:
        sensed = triangular_inverse(cholesky(jnp.asarray(model.sensed_covariance, dtype)))
    return (
        sensed,
        temporal_precision_root(max(motion_order(model), 1), smoothness),
        temporal_precision_root(model.cause_order, smoothness),
        temporal_precision_root(model.cause_order, slow),
    )


def _sized(
    function: Callable[..., Array], parameters: PyTree, size: int, name: str
) -> Callable[[Array, Array], Array]:
    """The function with its parameters; what it returns must be ``[size]``, as nothing is stretched
    to fit.
    """

    def value(states: Array, causes: Array) -> Array:
        found = function(states, causes, parameters)
        if getattr(found, "shape", None) != (size,):
            got = found.shape if hasattr(found, "shape") else type(found).__name__
            raise ValueError(f"{name} must return an array of shape ({size},), got {got}")
        return found

    return value


def prediction_errors(
    model: Model, path: Path, seen: Observation, parameters: tuple
) -> PredictionErrors:
    """All prediction errors, independent from derivative to derivative.

    Args:
        model: the hierarchy.
        path: generalised states and causes.
        seen: the observation.
        parameters: one pytree for each level.

    Returns:
        The errors.

    Raises:
        ValueError: when a function of the model returns another shape than it should.

    >>> from vfejax.inference.generalized_filtering import observation, rest, zero_hyperparameters
    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> seen = observation(model, jnp.ones((2, 4)))
    >>> prediction_errors(model, rest(model), seen, parameters).output[0].shape
    (2, 4)
    """
    row_root, motion_root, between, top = _temporal_roots(model, path.states[0].dtype)
    outputs, states, below, num = [], [], seen.sensed, motion_order(model)
    levels = zip(model.levels, path.states, path.causes, parameters, strict=True)
    for i, (level, x, v, theta) in enumerate(levels):
        drive = resize(v, model.order)
        observe = _sized(level.output_fn, theta, below.shape[1], f"levels[{i}].output_fn")
        predicted = model.derivatives_fn(observe, x, drive)
        outputs.append(matmul(row_root, below - predicted[: below.shape[0]]))
        if num and x.shape[1]:
            move = _sized(level.motion_fn, theta, x.shape[1], f"levels[{i}].motion_fn")
            flow = model.derivatives_fn(move, x, drive)
            states.append(matmul(motion_root, (shift(x) - flow)[:num]))
        else:
            states.append(jnp.zeros((num, x.shape[1]), x.dtype))
        below, row_root = v, between
    return PredictionErrors(tuple(outputs), tuple(states), matmul(top, below - seen.prior))


def residuals(
    model: Model, path: Path, seen: Observation, parameters: tuple, hyper: Hyperparameters
) -> Array:
    """All prediction errors, each in units of its standard deviation: half their square is the part
    of F that depends on the path.

    Args:
        model: the hierarchy.
        path: generalised states and causes.
        seen: the observation.
        parameters: one pytree for each level.
        hyper: logarithms of the weights of precision components.

    Returns:
        ``[r]``.

    >>> from vfejax.inference.generalized_filtering import observation, rest, zero_hyperparameters
    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> seen = observation(model, jnp.zeros((2, 4)))
    >>> float(jnp.sum(residuals(model, rest(model), seen, parameters, zero_hyperparameters(model))))
    0.0
    """
    errors = prediction_errors(model, path, seen, parameters)
    white = []
    for i, level in enumerate(model.levels):
        outputs = _precision_factor(level.output_precision, hyper.output[i])
        states = _precision_factor(level.state_precision, hyper.state[i])
        white += [matmul(errors.output[i], outputs), matmul(errors.state[i], states)]
    factor = cholesky(jnp.asarray(model.cause_precision, errors.cause.dtype))
    white.append(matmul(errors.cause, factor))
    return jnp.concatenate([jnp.ravel(block) for block in white])


def log_normalizer(model: Model, hyper: Hyperparameters) -> Array:
    """``1/2 log|S^{-1} (x) Pi / 2 pi|`` summed over all noise, in nats.

    Args:
        model: the hierarchy.
        hyper: logarithms of the weights of precision components.

    Returns:
        A scalar.

    >>> from vfejax.inference.generalized_filtering import zero_hyperparameters
    >>> model = Model((), jnp.eye(1), order=1, cause_order=1, smoothness=1.0)
    >>> round(float(log_normalizer(model, zero_hyperparameters(model))), 4)  # -1/2 log 2 pi
    -0.9189
    """
    dtype = hyper.output[0].dtype if hyper.output else jnp.result_type(float)
    smoothness = jnp.asarray(model.smoothness, dtype)

    def part(order: int, factor: Array, s: Array) -> Array:
        k = factor.shape[-1]
        if not order or not k:
            return jnp.zeros((), dtype)
        temporal = k * temporal_log_det(order, s)
        return 0.5 * (temporal + order * (log_det_cholesky(factor) - k * math.log(2 * math.pi)))

    slow = jnp.asarray(
        model.smoothness if model.cause_smoothness is None else model.cause_smoothness, dtype
    )
    total = part(model.cause_order, cholesky(jnp.asarray(model.cause_precision, dtype)), slow)
    if model.sensed_covariance is not None:
        factor = cholesky(jnp.asarray(model.sensed_covariance, dtype))
        change = -log_det_cholesky(factor) - temporal_log_det(model.order, smoothness)
        total = total + 0.5 * model.levels[0].output_precision.shape[-1] * change
    for i, level in enumerate(model.levels):
        outputs = _precision_factor(level.output_precision, hyper.output[i])
        states = _precision_factor(level.state_precision, hyper.state[i])
        total = total + part(model.cause_order if i else model.order, outputs, smoothness)
        total = total + part(motion_order(model), states, smoothness)
    return total


def energy(
    model: Model, path: Path, seen: Observation, parameters: tuple, hyper: Hyperparameters
) -> Array:
    """F of a path: minus its log joint density with the observation.

    The density of the values of the states is flat, since nothing but their motion is predicted.

    Args:
        model: the hierarchy.
        path: generalised states and causes.
        seen: the observation.
        parameters: one pytree for each level.
        hyper: logarithms of the weights of precision components.

    Returns:
        A scalar, in nats.

    >>> from vfejax.inference.generalized_filtering import observation, rest, zero_hyperparameters
    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> seen = observation(model, jnp.zeros((2, 4)))
    >>> hyper = zero_hyperparameters(model)
    >>> path = rest(model)
    >>> bool(energy(model, path, seen, parameters, hyper) == -log_normalizer(model, hyper))
    True
    """
    errors = residuals(model, path, seen, parameters, hyper)
    return 0.5 * jnp.sum(errors**2) - log_normalizer(model, hyper)

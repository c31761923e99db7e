"""Generalised filtering: the path that explains an observation moves on and down its free energy.

The mode follows ``d mu~/dt = D mu~ - rate M dF/dmu~``: it moves as it believes that it moves, and
is corrected by prediction errors. F is that of :mod:`vfejax.inference.hierarchical_models`; steps
are Ozaki's (:mod:`vfejax.inference.local_linearization`), exact for linear models. While a step
runs the observation moves along its own Taylor series and ends at the newest one.

The metric M is a function that is passed:

- :func:`identity_metric`: M = 1, the recognition dynamics of Friston et al. (2008). Its speed
  depends on the units of every coordinate, and stiffness on precisions; float64 is advised.
- :func:`natural_metric`: M is the inverse curvature of F, so that errors shrink at ``rate`` per
  unit of time, whatever the units. It is well conditioned in float32.

With a high rate, the mode is that of the newest generalised observation alone (:func:`mode`); with
a low one, the filter remembers what it believed ``1 / rate`` ago.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from vfejax.inference.generalized_coordinates import shift, temporal_covariance
from vfejax.inference.hierarchical_models import (
    Hyperparameters,
    Model,
    Observation,
    Path,
    energy,
    residuals,
    rest,
)
from vfejax.inference.local_linearization import ozaki_step
from vfejax.numerics import (
    cholesky,
    identity_like,
    log_det_cholesky,
    matmul,
    matmul_tn,
    matvec,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array

__all__ = [
    "Filter",
    "FilterInfo",
    "FilterState",
    "MetricFn",
    "filter_online",
    "filter_series",
    "generalized_filter",
    "identity_metric",
    "laplace",
    "mode",
    "moments",
    "natural_metric",
    "temporal_covariance",
]

MetricFn = Callable[[Array], Array]
"""From the curvature of F ``[n, n]`` to the matrix ``[n, n]`` that its gradient is multiplied
by."""


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


class Filter(NamedTuple):
    """A filter as two pure functions.

    Attributes:
        init: ``init(parameters, hyper, path=None) -> FilterState``.
        step: ``step(state, observation) -> (FilterState, FilterInfo)``.
    """

    init: Callable[..., FilterState]
    step: Callable[[FilterState, Observation], tuple[FilterState, FilterInfo]]


def identity_metric(curvature: Array) -> Array:
    """1: plain gradient flow.

    >>> identity_metric(jnp.array([[4.0]])).tolist()
    [[1.0]]
    """
    return identity_like(curvature)


def natural_metric(curvature: Array) -> Array:
    """``H^{-1}``: the flow of Newton's method.

    >>> natural_metric(jnp.array([[4.0]])).tolist()
    [[0.25]]
    """
    return _inverse(curvature)


def _inverse(matrix: Array) -> Array:
    inverse = triangular_inverse(cholesky(matrix))
    return matmul_tn(inverse, inverse)


class _Expansion(NamedTuple):
    """F about a path: gradient, curvature, and its cross derivative with what is observed."""

    gradient: Array
    curvature: Array
    cross: Array


def _expand(
    model: Model, path: Path, seen: Observation, parameters: tuple, hyper: Hyperparameters
) -> _Expansion:
    """Gradient, Gauss-Newton curvature ``R^T R`` and ``R^T R_y`` from one Jacobian."""
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
    return _Expansion(gradient, both[:, : flat.size], both[:, flat.size :])


def _shifted(seen: Observation) -> Observation:
    return jax.tree.map(shift, seen)


def _rewound(seen: Observation, dt: Array) -> Observation:
    """``exp(-D dt) y~``: the Taylor series of the newest observation, one step before."""

    def leaf(path: Array) -> Array:
        total, term = path, path
        for k in range(1, path.shape[0]):
            term = shift(term) * (-dt / k)
            total = total + term
        return total

    return jax.tree.map(leaf, seen)


def _shift_matrix(path: Path) -> Array:
    """D as a matrix on the flat path."""
    leaves = jax.tree.leaves(path)
    size = sum(leaf.size for leaf in leaves)
    matrix, start = np.zeros((size, size)), 0
    for rows, columns in (leaf.shape for leaf in leaves):
        here = np.arange(start, start + (rows - 1) * columns)
        matrix[here, here + columns] = 1.0
        start += rows * columns
    return jnp.asarray(matrix, leaves[0].dtype)


def _info(model: Model, state: FilterState, seen: Observation, expansion: _Expansion) -> FilterInfo:
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


def generalized_filter(
    model: Model,
    dt: float,
    *,
    rate: ArrayLike = 1.0,
    metric_fn: MetricFn = identity_metric,
    num_steps: int = 1,
) -> Filter:
    """Filter of states and causes with given parameters.

    Args:
        model: the hierarchy.
        dt: time between observations.
        rate: of the correction by errors; per unit of time with :func:`natural_metric`.
        metric_fn: from the curvature of F to the metric of its descent.
        num_steps: steps per observation; 1 is exact for linear models.

    Returns:
        ``init`` and ``step``.

    Raises:
        ValueError: by ``step``, when the shapes of the observation do not fit the model.

    Source: Friston et al., NeuroImage 41 (2008) 849, equations (14) and (52); ours differs by the
    metric and by the motion of the observation within a step.

    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> from vfejax.inference.hierarchical_models import observation, zero_hyperparameters
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> run = generalized_filter(model, 1.0, metric_fn=natural_metric)
    >>> state = run.init(parameters, zero_hyperparameters(model))
    >>> state, info = run.step(state, observation(model, jnp.zeros((2, 4))))
    >>> float(info.gradient_norm)
    0.0
    """

    def init(parameters: tuple, hyper: Hyperparameters, path: Path | None = None) -> FilterState:
        dtype = hyper.output[0].dtype
        return FilterState(rest(model, dtype) if path is None else path, parameters, hyper)

    def substep(state: FilterState, seen: Observation, time: Array) -> FilterState:
        flat, unravel = ravel_pytree(state.path)
        expansion = _expand(model, state.path, seen, state.parameters, state.hyper)
        descent = jnp.asarray(rate, flat.dtype) * metric_fn(expansion.curvature)
        motion = _shift_matrix(state.path)
        flow = matvec(motion, flat) - matvec(descent, expansion.gradient)
        columns, moving = [flow], seen
        for _ in range(1, model.order):
            moving = _shifted(moving)
            force = matvec(expansion.cross, ravel_pytree(moving)[0])
            columns.append(-matvec(descent, force))
        jacobian = motion - matmul(descent, expansion.curvature)
        moved = ozaki_step(jacobian, jnp.stack(columns, axis=-1), time)
        return state._replace(path=unravel(flat + moved))

    def step(state: FilterState, seen: Observation) -> tuple[FilterState, FilterInfo]:
        length = jnp.asarray(dt / num_steps, state.path.states[0].dtype)
        for k in reversed(range(num_steps)):
            state = substep(state, _rewound(seen, (k + 1) * length), length)
        expansion = _expand(model, state.path, seen, state.parameters, state.hyper)
        return state, _info(model, state, seen, expansion)

    return Filter(init, step)


def filter_series(
    run: Filter, state: FilterState, seen: Observation
) -> tuple[FilterState, Path, FilterInfo]:
    """A whole series, by a sequential scan.

    Args:
        run: the filter.
        state: before the first observation.
        seen: observations with a leading axis of time.

    Returns:
        Last state, paths and infos of all times.

    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> from vfejax.inference.hierarchical_models import observation, zero_hyperparameters
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> run = generalized_filter(model, 1.0, metric_fn=natural_metric)
    >>> state = run.init(parameters, zero_hyperparameters(model))
    >>> _, path, _ = filter_series(run, state, observation(model, jnp.ones((3, 2, 4))))
    >>> path.states[0].shape
    (3, 2, 2)
    """

    def step(carry: FilterState, now: Observation) -> tuple[FilterState, tuple[Path, FilterInfo]]:
        carry, info = run.step(carry, now)
        return carry, (carry.path, info)

    state, (path, info) = jax.lax.scan(step, state, seen)
    return state, path, info


def filter_online(
    step: Callable[[FilterState, Observation], tuple[FilterState, FilterInfo]],
    state: FilterState,
    seen: Iterable[Observation],
) -> Iterator[tuple[FilterState, FilterInfo]]:
    """State and info after each observation of an iterator, in memory that does not grow.

    Args:
        step: of a filter, compiled by ``jax.jit`` or not.
        state: before the first observation.
        seen: observations as they come.

    Yields:
        ``(state, info)``.

    >>> next(filter_online(lambda state, seen: (state + seen, None), 1, iter([2])))
    (3, None)
    """
    for now in seen:
        state, info = step(state, now)
        yield state, info


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
    >>> from vfejax.inference.hierarchical_models import observation, zero_hyperparameters
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> seen, hyper = observation(model, jnp.zeros((2, 4))), zero_hyperparameters(model)
    >>> float(mode(model, rest(model), seen, parameters, hyper).states[0].sum())
    0.0
    """
    flat, unravel = ravel_pytree(path)

    def step(z: Array, _: None) -> tuple[Array, None]:
        expansion = _expand(model, unravel(z), seen, parameters, hyper)
        return z - matvec(_inverse(expansion.curvature), expansion.gradient), None

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
    >>> from vfejax.inference.hierarchical_models import observation, zero_hyperparameters
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> state = FilterState(rest(model), parameters, zero_hyperparameters(model))
    >>> laplace(model, state, observation(model, jnp.zeros((2, 4)))).covariance.shape
    (5, 5)
    """
    expansion = _expand(model, state.path, seen, state.parameters, state.hyper)
    return _info(model, state, seen, expansion)

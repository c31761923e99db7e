"""Generalised filtering: the path that explains an observation moves on and down its free energy.

The mode follows ``d mu~/dt = D mu~ - rate M dF/dmu~``: it moves as it believes that it moves, and
is corrected by prediction errors. F is that of
:mod:`vfejax.inference.generalized_filtering.path_energy`; steps are Ozaki's
(:mod:`vfejax.inference.generalized_filtering.local_linearization`), exact for linear models. While
a step runs the observation moves along its own Taylor series and ends at the newest one.

The metric M is a function that is passed:

- :func:`identity_metric`: M = 1, the recognition dynamics of Friston et al. (2008). Its speed
  depends on the units of every coordinate, and stiffness on precisions; float64 is advised.
- :func:`natural_metric`: M is the inverse curvature of F, so that errors shrink at ``rate`` per
  unit of time, whatever the units. It is well conditioned in float32 for linear models.
- :func:`damped_metric`: M is the inverse of the curvature plus a precision. It serves nonlinear
  models, whose curvature can be singular: where an output ``sin(angle)`` turns, at 90 degrees, it
  says nothing of the angle. There the natural flow leaves for any number in float64, and for NaN
  in float32, which takes the curvature for indefinite.

A path that leaves for large numbers or NaN has, most often, noise of the wrong smoothness. The k-th
derivative of smooth noise has a standard deviation of order ``s^-k``. That of the polynomial
through samples with white noise is of order ``dt^-k``, hundreds of times as much at order 4, and
the path follows it. ``Model.sensed_covariance`` says what the noise is, with
:func:`vfejax.inference.generalized_filtering.embedded_samples.embedded_covariance`. The energy
tells: ``FilterInfo.energy`` plus
:func:`vfejax.inference.generalized_filtering.path_energy.log_normalizer` is about a nat for each
number observed where the noise is right, and thousands in all where it is wrong.

With a high rate, the mode is that of the newest generalised observation alone
(:func:`vfejax.inference.generalized_filtering.path_beliefs.mode`); with a low one, the filter
remembers what it believed ``1 / rate`` ago.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from vfejax.inference.generalized_filtering.generalized_coordinates import (
    advance,
    shift,
    shift_matrix,
)
from vfejax.inference.generalized_filtering.hierarchical_models import (
    Hyperparameters,
    Model,
    Observation,
    Path,
    rest,
)
from vfejax.inference.generalized_filtering.local_linearization import ozaki_step
from vfejax.inference.generalized_filtering.path_beliefs import (
    FilterInfo,
    FilterState,
    describe,
    expand,
    spd_inverse,
)
from vfejax.numerics import (
    cast_like,
    identity_like,
    matmul,
    matvec,
)
from vfejax.types import Array

__all__ = [
    "Filter",
    "MetricFn",
    "damped_metric",
    "filter_online",
    "filter_series",
    "generalized_filter",
    "identity_metric",
    "natural_metric",
]

MetricFn = Callable[[Array], Array]
"""From the curvature of F ``[n, n]`` to the matrix ``[n, n]`` that its gradient is multiplied
by."""


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
    return spd_inverse(curvature)


def damped_metric(precision: ArrayLike) -> MetricFn:
    """``(H + P)^{-1}``: the flow of Newton's method, but where the curvature H is below P.

    Along an eigenvector of H with eigenvalue h, for P of one number p, errors shrink at ``rate h /
    (h + p)``: as with :func:`natural_metric` where much is known, and slowly where the observation
    says little, so that the filter remembers. Even where H is singular the correction is at most
    ``rate |e| / 2 sqrt(p)`` for errors e in units of their standard deviations.

    Args:
        precision: the diagonal of P, above 0: a number or ``[n]`` for the flat path, in 1 over the
            squared units of its coordinates. In float32 above about ``1e-6`` times the largest
            eigenvalue of H.

    Returns:
        The metric.

    Raises:
        ValueError: when a concrete precision is not above 0.

    Source: Levenberg, Quarterly of Applied Mathematics 2 (1944) 164.

    >>> damped_metric(4.0)(jnp.array([[12.0, 0.0], [0.0, 0.0]])).tolist()
    [[0.0625, 0.0], [0.0, 0.25]]
    """
    if not isinstance(precision, jax.core.Tracer) and np.any(np.asarray(precision) <= 0):
        raise ValueError(
            f"precision must be above 0, got {precision}; natural_metric is the metric without it"
        )

    def metric(curvature: Array) -> Array:
        diagonal = jnp.broadcast_to(cast_like(precision, curvature), curvature.shape[:1])
        return spd_inverse(curvature + jnp.diag(diagonal))

    return metric


def _check_parameters(model: Model, parameters: tuple) -> None:
    entries = len(parameters) if isinstance(parameters, tuple | list) else None
    if entries != len(model.levels):
        got = type(parameters).__name__ if entries is None else f"{entries} entries"
        raise ValueError(
            f"parameters must be a tuple of {len(model.levels)}, one entry for each level (None "
            f"where its functions need none), got {got}"
        )


def generalized_filter(
    model: Model,
    dt: Array | float,
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
        ValueError: when ``dt`` is not above 0 or ``num_steps`` below 1; by ``init``, when the model
            does not fit together or there is not one entry of parameters for each level; by
            ``step``, when an observation or what a function returns does not fit the model.

    Source: Friston et al., NeuroImage 41 (2008) 849, equations (14) and (52); ours differs by the
    metric and by the motion of the observation within a step.

    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> from vfejax.inference.generalized_filtering import observation, zero_hyperparameters
    >>> model, parameters = convolution_model(order=2, cause_order=1, smoothness=0.5)
    >>> run = generalized_filter(model, 1.0, metric_fn=natural_metric)
    >>> state = run.init(parameters, zero_hyperparameters(model))
    >>> state, info = run.step(state, observation(model, jnp.zeros((2, 4))))
    >>> float(info.gradient_norm)
    0.0
    """
    if not isinstance(dt, jax.core.Tracer) and dt <= 0:
        raise ValueError(f"dt must be above 0, in units of time, got {dt}")
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")

    def init(parameters: tuple, hyper: Hyperparameters, path: Path | None = None) -> FilterState:
        _check_parameters(model, parameters)
        dtype = hyper.output[0].dtype
        return FilterState(rest(model, dtype) if path is None else path, parameters, hyper)

    def substep(state: FilterState, seen: Observation, time: Array) -> FilterState:
        flat, unravel = ravel_pytree(state.path)
        expansion = expand(model, state.path, seen, state.parameters, state.hyper)
        descent = jnp.asarray(rate, flat.dtype) * metric_fn(expansion.curvature)
        motion = shift_matrix(jax.tree.leaves(state.path))
        flow = matvec(motion, flat) - matvec(descent, expansion.gradient)
        columns, moving = [flow], seen
        for _ in range(1, model.order):
            moving = jax.tree.map(shift, moving)
            force = matvec(expansion.cross, ravel_pytree(moving)[0])
            columns.append(-matvec(descent, force))
        jacobian = motion - matmul(descent, expansion.curvature)
        moved = ozaki_step(jacobian, jnp.stack(columns, axis=-1), time)
        return state._replace(path=unravel(flat + moved))

    def step(state: FilterState, seen: Observation) -> tuple[FilterState, FilterInfo]:
        length = jnp.asarray(dt / num_steps, state.path.states[0].dtype)
        for k in reversed(range(num_steps)):
            before = jax.tree.map(lambda y, time=-(k + 1) * length: advance(y, time), seen)
            state = substep(state, before, length)
        expansion = expand(model, state.path, seen, state.parameters, state.hyper)
        return state, describe(model, state, seen, expansion)

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
    >>> from vfejax.inference.generalized_filtering import observation, zero_hyperparameters
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

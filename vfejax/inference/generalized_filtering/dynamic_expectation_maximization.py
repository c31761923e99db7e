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

from collections.abc import Callable
from typing import NamedTuple

import jax

from vfejax.inference.generalized_filtering._learning_steps import (
    Beliefs,
    LearningState,
    Prior,
    free_energy,
    learn,
)
from vfejax.inference.generalized_filtering.filters import Filter, filter_series
from vfejax.inference.generalized_filtering.hierarchical_models import (
    Hyperparameters,
    Model,
    Observation,
    Path,
    rest,
)
from vfejax.inference.generalized_filtering.path_beliefs import FilterState, laplace, mode
from vfejax.numerics import (
    cholesky,
)
from vfejax.types import Array

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
        free_energy: ``free_energy(state, series of observations)``, F of the paths that belong to
            a state, in nats.
    """

    init: Callable[[], LearningState]
    step: Callable[[LearningState, Observation], tuple[LearningState, LearningInfo]]
    free_energy: Callable[[LearningState, Observation], Array]


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


def dynamic_expectation_maximization(
    model: Model, prior: Prior, perceive_fn: PerceiveFn
) -> Learner:
    """States, causes, parameters and precisions of a series.

    Args:
        model: the hierarchy.
        prior: of parameters and hyperparameters; also where learning starts.
        perceive_fn: the D-step, :func:`by_filter` or :func:`by_mode`.

    Returns:
        ``init``, ``step`` and ``free_energy``; repeat ``step`` until the free energy stays.

    Source: Friston, Trujillo-Barreto and Daunizeau, NeuroImage 41 (2008) 849, section "Dynamic
    expectation maximisation".

    >>> from vfejax.inference.generalized_filtering import zero_hyperparameters
    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> model, parameters = convolution_model(order=2, cause_order=1)
    >>> ones = jax.tree.map(jax.numpy.ones_like, parameters)
    >>> prior = Prior(parameters, ones, zero_hyperparameters(model), 1.0)
    >>> learner = dynamic_expectation_maximization(model, prior, by_mode(model))
    >>> learner.init().hyper.state[0].tolist()
    [0.0]
    """

    def init() -> LearningState:
        return LearningState(prior.parameters, prior.hyper)

    def believed(state: LearningState, seen: Observation) -> tuple[Beliefs, Array]:
        path, covariance = perceive_fn(state.parameters, state.hyper, seen)
        return Beliefs(seen, path, jax.vmap(cholesky)(covariance)), covariance

    def step(state: LearningState, seen: Observation) -> tuple[LearningState, LearningInfo]:
        beliefs, covariance = believed(state, seen)
        state, value, drops, spread = learn(model, prior, beliefs, state)
        return state, LearningInfo(value, drops, beliefs.path, covariance, spread)

    def value(state: LearningState, seen: Observation) -> Array:
        return free_energy(model, prior, believed(state, seen)[0], state)

    return Learner(init, step, value)

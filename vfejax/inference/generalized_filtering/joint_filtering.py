"""Generalised filtering without the mean field: parameters and precisions move with the states.

Parameters theta and logarithms of precisions lambda are slow states with a motion of their own,

    theta'' = -rate dF/dtheta - friction theta',    lambda'' the same,

so that they average what single observations say over ``friction / rate``. F is the free energy of
one observation under a Gaussian about the joint mode of path and parameters,

    F = 1/2 |errors|^2 - log normaliser - log p(theta) - log p(lambda) + 1/2 log|curvature|
    [nats].

The curvature is joint: uncertainty about states counts in what parameters and precisions learn, and
there is no product of beliefs as in
:mod:`vfejax.inference.generalized_filtering.dynamic_expectation_maximization`. Its dependence on
the path is left out of the motion of the path; for linear models with known parameters there is
none.

Source: Friston, Stephan, Li and Daunizeau, Math. Probl. Eng. 2010, 621670, equations (12) to (19).
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from jax.typing import ArrayLike

from vfejax.inference.generalized_filtering.dynamic_expectation_maximization import Prior
from vfejax.inference.generalized_filtering.filters import Filter
from vfejax.inference.generalized_filtering.hierarchical_models import (
    Hyperparameters,
    Model,
    Observation,
    Path,
)
from vfejax.inference.generalized_filtering.local_linearization import ozaki_step
from vfejax.inference.generalized_filtering.path_beliefs import FilterInfo, FilterState
from vfejax.inference.generalized_filtering.path_energy import log_normalizer, residuals
from vfejax.numerics import cast_like, cholesky, log_det_cholesky, matmul_tn
from vfejax.types import Array

__all__ = ["JointFilter", "JointInfo", "JointState", "joint_filter", "laplace_energy"]


class JointState(NamedTuple):
    """Mode of the path, parameters and hyperparameters, and the velocity of the flat pair."""

    path: Path
    parameters: tuple
    hyper: Hyperparameters
    velocity: Array


class JointInfo(NamedTuple):
    """What a step found.

    Attributes:
        filter: the info of the filter of states and causes.
        free_energy: F with the joint curvature, before the parameters moved, in nats.
        gradient: of F by the flat pair of parameters and hyperparameters.
    """

    filter: FilterInfo
    free_energy: Array
    gradient: Array


class JointFilter(NamedTuple):
    """A filter as two pure functions.

    Attributes:
        init: ``init(path=None) -> JointState``, at the expectations of the prior.
        step: ``step(state, observation) -> (JointState, JointInfo)``.
    """

    init: Callable[..., JointState]
    step: Callable[[JointState, Observation], tuple[JointState, JointInfo]]


def laplace_energy(
    model: Model,
    prior: Prior,
    path: Path,
    seen: Observation,
    parameters: tuple,
    hyper: Hyperparameters,
) -> Array:
    """F of one observation with the joint curvature of path and parameters, up to constants.

    Args:
        model: the hierarchy.
        prior: of parameters and hyperparameters.
        path: generalised states and causes.
        seen: the observation.
        parameters: one pytree for each level.
        hyper: logarithms of the weights of precision components.

    Returns:
        A scalar, in nats.

    >>> from vfejax.inference.generalized_filtering import observation, rest, zero_hyperparameters
    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> model, parameters = convolution_model(order=2, cause_order=1)
    >>> hyper = zero_hyperparameters(model)
    >>> prior = Prior(parameters, jax.tree.map(jnp.ones_like, parameters), hyper, 1.0)
    >>> seen = observation(model, jnp.zeros((2, 4)))
    >>> laplace_energy(model, prior, rest(model), seen, parameters, hyper).shape
    ()
    """
    flat, unravel = ravel_pytree((path, parameters))
    center, weights = (ravel_pytree(x)[0] for x in (prior.parameters, prior.parameter_precision))
    num = center.shape[0]

    def errors(z: Array) -> Array:
        here, theta = unravel(z)
        away = jnp.sqrt(weights) * (z[flat.size - num :] - center)
        return jnp.concatenate([residuals(model, here, seen, theta, hyper), away])

    jacobian = jax.jacfwd(errors)(flat)
    curvature = log_det_cholesky(cholesky(matmul_tn(jacobian, jacobian)))
    moved = ravel_pytree(hyper)[0] - ravel_pytree(prior.hyper)[0]
    precision = cast_like(prior.hyper_precision, moved)
    squares = jnp.sum(errors(flat) ** 2) + precision * jnp.sum(moved**2)
    return 0.5 * (squares + curvature) - log_normalizer(model, hyper)


def joint_filter(
    model: Model,
    prior: Prior,
    filter_fn: Filter,
    dt: float,
    *,
    rate: ArrayLike = 1.0,
    friction: ArrayLike = 1.0,
) -> JointFilter:
    """States, causes, parameters and precisions together, online.

    A step moves the path by ``filter_fn`` at the parameters of the moment. It then moves the
    parameters by Ozaki's step of their damped motion, with the Jacobian of its linear part; the
    curvature of F by them is left to the next step, so ``rate dt`` should stay below the inverse of
    that curvature.

    Args:
        model: the hierarchy.
        prior: of parameters and hyperparameters. It counts once per unit of time and not once per
            series, as F is that of a moment.
        filter_fn: of the same model,
            :func:`vfejax.inference.generalized_filtering.generalized_filter`.
        dt: time between observations.
        rate: of the acceleration by the gradient of F.
        friction: of the velocity, per unit of time: the precision of the prior on motion.

    Returns:
        ``init`` and ``step``.

    >>> from vfejax.inference.generalized_filtering import generalized_filter
    >>> from vfejax.inference.generalized_filtering import observation, zero_hyperparameters
    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> model, parameters = convolution_model(order=2, cause_order=1)
    >>> ones = jax.tree.map(jnp.ones_like, parameters)
    >>> prior = Prior(parameters, ones, zero_hyperparameters(model), 1.0)
    >>> run = joint_filter(model, prior, generalized_filter(model, 1.0), 1.0)
    >>> run.init().velocity.shape  # 4 + 2 + 8 parameters, 2 precisions
    (16,)
    """

    def init(path: Path | None = None) -> JointState:
        state = filter_fn.init(prior.parameters, prior.hyper, path)
        velocity = jnp.zeros_like(ravel_pytree((state.parameters, state.hyper))[0])
        return JointState(*state, velocity)

    def step(state: JointState, seen: Observation) -> tuple[JointState, JointInfo]:
        moved, info = filter_fn.step(FilterState(*state[:3]), seen)
        flat, unravel = ravel_pytree((state.parameters, state.hyper))

        def energy(z: Array) -> Array:
            return laplace_energy(model, prior, moved.path, seen, *unravel(z))

        value, gradient = jax.value_and_grad(energy)(flat)
        zero, eye = (
            jnp.zeros((flat.size, flat.size), flat.dtype),
            jnp.eye(flat.size, dtype=flat.dtype),
        )
        jacobian = jnp.block([[zero, eye], [zero, -jnp.asarray(friction, flat.dtype) * eye]])
        push = -jnp.asarray(rate, flat.dtype) * gradient
        pull = jnp.asarray(friction, flat.dtype) * state.velocity
        change = ozaki_step(jacobian, jnp.concatenate([state.velocity, push - pull]), dt)
        parameters, hyper = unravel(flat + change[: flat.size])
        velocity = state.velocity + change[flat.size :]
        return JointState(moved.path, parameters, hyper, velocity), JointInfo(info, value, gradient)

    return JointFilter(init, step)

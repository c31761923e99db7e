"""Predictions of the states of a model after the last observation, from its flow and smooth noise.

States move by ``dx/dt = f(x, v) + w``. The flow is linearised about its own mean, ``A = df/dx``,
``B = df/dv``. A force with autocorrelation ``R(h)`` that is independent of the states at the start
adds ``Q(t)`` to their covariance, exactly for linear f:

    dQ/dt = A Q + Q A^T + M + M^T,    dM/dt = exp(A t) R(t),    Q(0) = M(0) = 0.

``R(h) = Sigma_w rho_w(h) + B Sigma_v B^T rho_v(h)``. The causes are expected to return to their
prior as it says, ``E v(h) = rho_v(h) v(0)``.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.inference.generalized_filtering.hierarchical_models import Hyperparameters, Model
from vfejax.inference.generalized_filtering.local_linearization import (
    exponential_minus_one,
    ozaki_step,
)
from vfejax.inference.generalized_filtering.path_beliefs import spd_inverse
from vfejax.numerics import matmul, matmul_nt, transpose
from vfejax.types import Array, PyTree

__all__ = ["Ahead", "predict"]


class Ahead(NamedTuple):
    """States after 1, 2, ... steps: ``x = mean + transition (x_0 - E x_0) + noise``.

    Attributes:
        mean: ``[h, n]``.
        transition: ``[h, n, n]``.
        noise: covariance of the noise, ``[h, n, n]``.
    """

    mean: Array
    transition: Array
    noise: Array


class _Carry(NamedTuple):
    time: Array
    mean: Array
    transition: Array
    noise: Array
    memory: Array  # M


def _covariances(model: Model, hyper: Hyperparameters, dtype: jnp.dtype) -> tuple[Array, Array]:
    """``Sigma_w`` of the noise of the states, and ``Sigma_v`` of the causes."""
    weights = jnp.exp(hyper.state[0])[:, None, None]
    precision = jnp.sum(weights * jnp.asarray(model.levels[0].state_precision, dtype), axis=0)
    return spd_inverse(precision), spd_inverse(jnp.asarray(model.cause_precision, dtype))


def _flow(
    model: Model, causes: Array, theta: PyTree, hyper: Hyperparameters, dtype: jnp.dtype
) -> Callable[[Array, Array], tuple[Array, Array, Array]]:
    """From states and a time to the flow, its Jacobian, and the autocorrelation of the force."""
    level = model.levels[0]
    state_cov, cause_cov = _covariances(model, hyper, dtype)
    slow = model.smoothness if model.cause_smoothness is None else model.cause_smoothness

    def kernel(smoothness: ArrayLike, time: Array) -> Array:
        return jnp.exp(-(time**2) / (4.0 * jnp.asarray(smoothness, dtype) ** 2))

    def flow(x: Array, time: Array) -> tuple[Array, Array, Array]:
        v = causes * kernel(slow, time)
        value = level.motion_fn(x, v, theta)
        by_state, by_cause = jax.jacfwd(level.motion_fn, (0, 1))(x, v, theta)
        driven = matmul_nt(matmul(by_cause, cause_cov), by_cause)
        force = state_cov * kernel(model.smoothness, time) + driven * kernel(slow, time)
        return value, by_state, force

    return flow


def predict(
    model: Model,
    states: Array,
    causes: Array,
    parameters: tuple,
    hyper: Hyperparameters,
    dt: float,
    num_steps: int,
    num_substeps: int = 16,
) -> Ahead:
    """The states of a model of one level, ``num_steps`` times ``dt`` ahead.

    Args:
        model: a hierarchy of one level.
        states: expected values now, ``[n]``.
        causes: expected values now, ``[m]``.
        parameters: one pytree, in a tuple.
        hyper: logarithms of the weights of precision components.
        dt: length of a step.
        num_steps: how many.
        num_substeps: of each; the error of the noise is of their second order.

    Returns:
        Mean, transition and noise after every step.

    Raises:
        ValueError: when the model has not one level.

    >>> from vfejax.inference.generalized_filtering import zero_hyperparameters
    >>> from vfejax.problems.linear_convolution import convolution_model
    >>> model, parameters = convolution_model()
    >>> hyper = zero_hyperparameters(model)
    >>> predict(model, jnp.ones(2), jnp.zeros(1), parameters, hyper, 1.0, 3).mean.shape
    (3, 2)
    """
    if len(model.levels) != 1:
        raise ValueError(f"model must have one level, got {len(model.levels)}")
    dtype = states.dtype
    flow = _flow(model, causes, parameters[0], hyper, dtype)
    length = jnp.asarray(dt / num_substeps, dtype)

    def substep(carry: _Carry, _: None) -> tuple[_Carry, None]:
        # The middle of the substep, so that causes that change are met in the mean.
        value, jacobian, __ = flow(carry.mean, carry.time + 0.5 * length)
        step = exponential_minus_one(length * jacobian) + jnp.eye(len(states), dtype=dtype)
        begin = matmul(carry.transition, flow(carry.mean, carry.time)[2])
        mean = carry.mean + ozaki_step(jacobian, value, length)
        transition = matmul(step, carry.transition)
        end = matmul(transition, flow(mean, carry.time + length)[2])
        memory = carry.memory + 0.5 * length * (begin + end)
        before, after = (x + transpose(x) for x in (carry.memory, memory))
        moved = matmul_nt(matmul(step, carry.noise + 0.5 * length * before), step)
        noise = moved + 0.5 * length * after
        return _Carry(carry.time + length, mean, transition, noise, memory), None

    def step(carry: _Carry, _: None) -> tuple[_Carry, Ahead]:
        carry = jax.lax.scan(substep, carry, None, length=num_substeps)[0]
        return carry, Ahead(carry.mean, carry.transition, carry.noise)

    zeros = jnp.zeros((len(states), len(states)), dtype)
    start = _Carry(jnp.zeros((), dtype), states, jnp.eye(len(states), dtype=dtype), zeros, zeros)
    return jax.lax.scan(step, start, None, length=num_steps)[1]

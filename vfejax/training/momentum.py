"""Momentum methods as integrators of a Hamiltonian flow with friction.

A loss is a potential energy, the weights are positions, and momentum decays by a factor per update:

    dx/dt = grad T(p),    dp/dt = -grad f(x) - friction p

Leapfrog momentum and its relativistic form are conformally symplectic: an update multiplies the
symplectic form of weights and velocity by the momentum factor, exactly and for every loss, as the
flow itself does. Nesterov's method is not.

All of them take the gradient half a step ahead of the weights that an update arrives at. The
parameters that optax carries are therefore the points at which gradients are taken;
:func:`eval_params` gives the weights to evaluate and to keep.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
import optax.contrib

from vfejax.numerics import at_least_float32, cast_like
from vfejax.types import Array, PyTree

__all__ = ["VelocityState", "eval_params", "leapfrog", "nesterov", "relativistic"]

_Rate = float | Array | Callable[[Array], Array]


class VelocityState(NamedTuple):
    """What the next update needs.

    Attributes:
        step: updates done.
        velocity: of the weights, in weights per update; a tree like the parameters.
        momentum: share of the velocity that an update keeps.
        delta: inverse square of the largest move of half an update.
    """

    step: Array
    velocity: PyTree
    momentum: Array
    delta: Array


_AHEAD = (VelocityState, optax.contrib.ScheduleFreeState)


def leapfrog(
    learning_rate: _Rate, *, momentum: float | Array = 0.9
) -> optax.GradientTransformation:
    """Leapfrog with friction: gradient descent with momentum, where every drift is symmetric about
    its kick.

        v <- mu v - epsilon grad f(y),    y <- y + (1 + mu) v

    Args:
        learning_rate: epsilon, or a function from the number of the update. In the time of the
            flow an update takes h with ``epsilon = h^2 / 2``, and the friction is ``-log(mu) / h``.
        momentum: mu, at least 0 and below 1.

    Returns:
        An optax transformation whose parameters are y; the weights are ``y - mu v``, of
        :func:`eval_params`.

    Raises:
        ValueError: for a momentum out of range.

    Source: Franca, Sulam, Robinson, Vidal, J. Stat. Mech. (2020) 124008, algorithm 1 at c =
    infinity.

    >>> optimizer = leapfrog(0.1, momentum=0.5)
    >>> updates, state = optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 3), round(float(eval_params(updates, state)[0]), 3)
    (-0.15, -0.1)
    """
    return relativistic(learning_rate, momentum=momentum, delta=0.0)


def nesterov(
    learning_rate: _Rate, *, momentum: float | Array = 0.9
) -> optax.GradientTransformation:
    """Nesterov's accelerated gradient, which is not conformally symplectic: its updates also shrink
    volumes by ``1 - epsilon f''``, a friction that the loss itself adds.

        v <- mu v - epsilon grad f(y),    y <- y - mu v_old + (1 + mu) v

    At a constant rate its parameters are those of ``optax.sgd(epsilon, mu, nesterov=True)``.

    Args:
        learning_rate: epsilon, or a function from the number of the update.
        momentum: mu, at least 0 and below 1.

    Returns:
        An optax transformation whose parameters are y; the weights are ``y - mu v``, of
        :func:`eval_params`.

    Raises:
        ValueError: for a momentum out of range.

    Source: Franca, Sulam, Robinson, Vidal, J. Stat. Mech. (2020) 124008, the limit alpha = 0, c =
    infinity of algorithm 1.

    >>> optimizer = nesterov(0.1, momentum=0.5)
    >>> updates, state = optimizer.update(jnp.ones(1), optimizer.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 3), round(float(eval_params(updates, state)[0]), 3)
    (-0.15, -0.1)
    """
    return relativistic(learning_rate, momentum=momentum, delta=0.0, alpha=0.0)


def relativistic(
    learning_rate: _Rate,
    *,
    momentum: float | Array = 0.9,
    delta: float | Array = 1.0,
    alpha: float | Array = 1.0,
) -> optax.GradientTransformation:
    """Relativistic gradient descent: leapfrog with friction whose speed has a limit.

        d(v) = v / sqrt(1 + delta |v|^2)
        v <- mu v - epsilon grad f(y),    y <- y - (1 - alpha) d(mu v_old) + d(v) + d(mu v)

    No update moves all weights together by more than ``2 / sqrt(delta)``, whatever the gradient is;
    ``|v|^2`` is over the whole tree. With ``alpha = 1`` it is conformally symplectic, with less it
    is not.

    Args:
        learning_rate: epsilon, or a function from the number of the update.
        momentum: mu, at least 0 and below 1. It and delta follow a schedule by
            ``optax.inject_hyperparams``.
        delta: inverse square of the speed limit, at least 0 and finite; with 0 there is no limit.
        alpha: 1 for leapfrog, 0 for Nesterov's extrapolation, or between them.

    Returns:
        An optax transformation whose parameters are y; the weights are ``y - d(mu v)``, of
        :func:`eval_params`. Sums over the tree are in float32 at least.

    Raises:
        ValueError: for a momentum, delta or alpha out of range.

    Source: Franca, Sulam, Robinson, Vidal, J. Stat. Mech. (2020) 124008, algorithm 1. The state is
    the velocity after the kick, and the first half of a drift is done with the update before it, so
    that the gradient is taken at the parameters themselves.

    >>> optimizer = relativistic(0.1, momentum=0.0, delta=4.0)
    >>> updates, _ = optimizer.update(jnp.full(1, 1e6), optimizer.init(jnp.zeros(1)))
    >>> round(float(updates[0]), 3)  # the limit, 1 / sqrt(4)
    -0.5
    """
    _check("momentum", momentum, "at least 0 and below 1", lambda x: 0 <= x < 1)
    _check("delta", delta, "at least 0 and finite", lambda x: 0 <= x < float("inf"))
    _check("alpha", alpha, "between 0 and 1", lambda x: 0 <= x <= 1)

    def options() -> tuple[Array, Array]:
        return jnp.asarray(momentum, float), jnp.asarray(delta, float)

    def init(params: PyTree) -> VelocityState:
        still = jax.tree.map(jnp.zeros_like, params)
        return VelocityState(jnp.zeros((), jnp.int32), still, *options())

    def update(
        gradient: PyTree, state: VelocityState, params: PyTree | None = None
    ) -> tuple[PyTree, VelocityState]:
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate

        def kick(v: Array, g: Array) -> Array:
            return cast_like(state.momentum, v) * v - cast_like(rate, v) * g.astype(v.dtype)

        velocity = jax.tree.map(kick, state.velocity, gradient)
        # The kick ends the half step that the state's momentum began; the next may have another.
        after = VelocityState(optax.safe_increment(state.step), velocity, *options())
        whole, half, before = _drift(velocity, 1.0, delta), _lead(after), _lead(state)

        def move(d: Array, h: Array, b: Array) -> Array:
            return d + h - cast_like(1.0 - jnp.asarray(alpha, float), b) * b

        return jax.tree.map(move, whole, half, before), after

    return optax.GradientTransformation(init, update)


def eval_params(params: PyTree, state: PyTree) -> PyTree:
    """The weights of an optimiser whose gradients are taken ahead of them.

    Args:
        params: where the next gradient is taken.
        state: of the optimiser, however it is chained with others.

    Returns:
        ``y - d(mu v)`` where the state holds a :class:`VelocityState`, the average
        ``(y - (1 - b) z) / b`` where it is that of ``optax.contrib.schedule_free``, else ``params``
        themselves.

    Raises:
        ValueError: for a state that holds more than one of them.

    >>> params = {"x": jnp.ones(2)}
    >>> eval_params(params, optax.adam(0.1).init(params)) is params
    True
    """
    leaves = jax.tree.leaves(state, is_leaf=lambda node: isinstance(node, _AHEAD))
    states = [node for node in leaves if isinstance(node, _AHEAD)]
    if not states:
        return params
    if len(states) > 1:
        raise ValueError(f"state must hold one velocity or average, got {len(states)}")
    if isinstance(states[0], VelocityState):
        lead = _lead(states[0])
    else:
        lead = _lead_of_average(params, states[0])

    def behind(y: Array, b: Array) -> Array:
        return y if isinstance(b, optax.MaskedNode) else y - b.astype(y.dtype)

    return jax.tree.map(behind, params, lead)


def _lead_of_average(params: PyTree, state: optax.contrib.ScheduleFreeState) -> PyTree:
    """How far the parameters ``y = b x + (1 - b) z`` are ahead of the average x."""

    def lead(y: Array, z: Array) -> Array:
        return z if isinstance(z, optax.MaskedNode) else (1 / state.b1 - 1) * (z - y)

    return jax.tree.map(lead, params, state.z)


def _lead(state: VelocityState) -> PyTree:
    """How far the parameters are ahead of the weights."""
    return _drift(state.velocity, state.momentum, state.delta)


def _drift(velocity: PyTree, share: float | Array, delta: float | Array) -> PyTree:
    """``c v / sqrt(1 + delta |c v|^2)`` for the share c of the velocity; no square overflows."""
    wide = jnp.result_type(float)
    delta = jnp.asarray(delta, float)
    moved = [
        cast_like(share, v).astype(at_least_float32(v.dtype)) * v.astype(at_least_float32(v.dtype))
        for v in jax.tree.leaves(velocity)
    ]
    sizes = [jnp.max(jnp.abs(x), initial=0.0).astype(wide) for x in moved]
    # The unit of length in which the sum of squares is of order 1: 1 but for speeds at the limit.
    largest = jnp.max(jnp.stack(sizes)) if sizes else jnp.zeros((), wide)
    unit = jax.lax.stop_gradient(jnp.maximum(1.0, jnp.sqrt(delta) * largest))

    def square(x: Array) -> Array:
        x = x / cast_like(unit, x)
        return jnp.sum(cast_like(delta, x) * x * x)

    total = sum(square(x).astype(wide) for x in moved)
    scale = jnp.asarray(share, float) / (unit * jnp.sqrt(1.0 / unit**2 + total))
    return jax.tree.map(lambda v: cast_like(scale, v) * v, velocity)


def _check(name: str, value: float | Array, needs: str, holds: Callable[[float], bool]) -> None:
    """Refuse a number out of range; one that is traced is the caller's own affair."""
    if not isinstance(value, jax.core.Tracer) and not holds(float(value)):
        raise ValueError(f"{name} must be {needs}, got {value}")

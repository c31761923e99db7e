"""Langevin dynamics: descent with the noise that makes ``exp(-F / T)`` its stationary distribution.

T is a temperature in nats: at T = 1 the stationary density is ``exp(-F)``. The density is with
respect to the plain measure of the coordinates; a density over what they parametrise differs by the
Jacobian of that map.

Two schemes. :func:`overdamped` is Euler and Maruyama's method, of weak order 1: for a quadratic
energy of curvature h its variance is ``T / h`` times ``1 / (1 - mobility dt h / 2)``.
:func:`underdamped` is the splitting BAOAB, of weak order 2: for a quadratic energy the variance of
the position is ``T / h`` exactly, at every stable step size.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from vfejax.dynamics.gradient_flow import broadcast_prefix, scale_by_tree
from vfejax.dynamics.hamiltonian import (
    HamiltonianInfo,
    HamiltonianState,
    drift,
    energies,
    force_and_value,
    kick,
    rest,
)
from vfejax.numerics import cast_like, floating_tree
from vfejax.types import Array, EnergyFn, Integrator, PyTree

__all__ = ["LangevinInfo", "LangevinState", "overdamped", "underdamped"]


class LangevinState(NamedTuple):
    """Position and the force ``-grad F`` there (carried: one gradient per step)."""

    position: PyTree
    force: PyTree


class LangevinInfo(NamedTuple):
    """Energy at the new position (nats) and what the energy returned besides."""

    energy: Array
    aux: Any


def _noise(key: Array | None, like: PyTree) -> PyTree:
    """Independent standard normal numbers in the shapes and dtypes of a tree."""
    if key is None:
        raise ValueError(
            "a Langevin step needs a key: step(state, key), or rollout(integrator, state, "
            "num_steps, key)"
        )
    leaves, structure = jax.tree.flatten(like)
    keys = jax.random.split(key, max(len(leaves), 1))
    draws = [jax.random.normal(k, x.shape, x.dtype) for k, x in zip(keys, leaves, strict=False)]
    return jax.tree.unflatten(structure, draws)


def overdamped(
    energy_fn: EnergyFn,
    step_size: float | Array,
    temperature: float | Array = 1.0,
    mobility: PyTree = 1.0,
    *,
    has_aux: bool = False,
    retract: Callable[[PyTree, PyTree], PyTree] = optax.apply_updates,
) -> Integrator:
    """Euler and Maruyama: ``x <- x - dt u grad F(x) + sqrt(2 dt u T) xi``, xi standard normal.

    Args:
        energy_fn: F in nats: position to scalar, or to ``(scalar, aux)`` with ``has_aux``.
        step_size: dt.
        temperature: T >= 0 in nats; at 0 this is gradient descent.
        mobility: u >= 0, a scalar or a tree prefix of the position. Leaves of mobility 0 never
            move. The stationary distribution does not depend on it.
        has_aux: whether ``energy_fn`` returns something besides the energy.
        retract: ``(position, step) -> position``; by default their sum.

    Returns:
        ``init(position) -> LangevinState`` and ``step(state, key) -> (LangevinState,
        LangevinInfo)``.

    Raises:
        ValueError: when a step gets no key, or a leaf of the position is complex.

    Source: Kloeden and Platen, Numerical Solution of Stochastic Differential Equations (1992),
    section 10.2.

    >>> flow = overdamped(lambda x: 0.5 * jnp.sum(x**2), 0.1)
    >>> state, info = flow.step(flow.init(jnp.zeros(3)), jax.random.key(0))
    >>> state.position.shape
    (3,)
    """
    evaluate = force_and_value(energy_fn, has_aux)

    def init(position: PyTree) -> LangevinState:
        position = floating_tree(position, "position")
        return LangevinState(position, evaluate(position)[0])

    def step(state: LangevinState, key: Array | None = None) -> tuple[LangevinState, LangevinInfo]:
        noise = _noise(key, state.position)

        def leaf(gradient: Array, xi: Array, u: float | Array) -> Array:
            time = cast_like(step_size, xi) * cast_like(u, xi)
            return gradient + jnp.sqrt(2.0 * cast_like(temperature, xi) * time) * xi

        times = jax.tree.map(
            lambda x, u: cast_like(step_size, x) * cast_like(u, x),
            state.position,
            broadcast_prefix(mobility, state.position),
        )
        descent = scale_by_tree(times)
        gradient = jax.tree.map(jnp.negative, state.force)
        change, _ = descent.update(gradient, descent.init(state.position), state.position)
        change = jax.tree.map(leaf, change, noise, broadcast_prefix(mobility, noise))
        position = retract(state.position, change)
        force, (energy, aux) = evaluate(position)
        return LangevinState(position, force), LangevinInfo(energy, aux)

    return Integrator(init, step)


def underdamped(
    energy_fn: EnergyFn,
    step_size: float | Array,
    temperature: float | Array = 1.0,
    mass: PyTree = 1.0,
    friction: float | Array = 1.0,
    *,
    has_aux: bool = False,
) -> Integrator:
    """BAOAB: half a kick, half a drift, noise and friction on the momentum, and back.

    The middle step is exact: ``p <- exp(-c dt) p + sqrt((1 - exp(-2 c dt)) m T) xi``. Without
    friction this is Stoermer-Verlet in position form between kicks, and the temperature does not
    matter. One gradient per step.

    Args:
        energy_fn: F in nats: position to scalar, or to ``(scalar, aux)`` with ``has_aux``.
        step_size: dt.
        temperature: T >= 0 in nats.
        mass: a scalar or a tree prefix of the position; leaves of infinite mass never move.
        friction: c >= 0 per unit of time.
        has_aux: whether ``energy_fn`` returns something besides the energy.

    Returns:
        ``init(position, momentum=None) -> HamiltonianState`` (at rest by default) and ``step(state,
        key) -> (HamiltonianState, HamiltonianInfo)``.

    Raises:
        ValueError: when a step gets no key, or a leaf of the position is complex.

    Source: Leimkuhler and Matthews, Applied Mathematics Research eXpress (2013) 34.

    >>> flow = underdamped(lambda x: 0.5 * jnp.sum(x**2), 0.1)
    >>> state, info = flow.step(flow.init(jnp.zeros(3)), jax.random.key(0))
    >>> state.momentum.shape
    (3,)
    """
    evaluate = force_and_value(energy_fn, has_aux)

    def init(position: PyTree, momentum: PyTree | None = None) -> HamiltonianState:
        return rest(position, momentum, evaluate)

    def thermostat(momentum: PyTree, key: Array | None) -> PyTree:
        def leaf(p: Array, xi: Array, m: float | Array) -> Array:
            angle = cast_like(friction, p) * cast_like(step_size, p)
            m = cast_like(m, p)
            heat = jnp.where(jnp.isposinf(m), 0.0, m) * cast_like(temperature, p)
            return jnp.exp(-angle) * p + jnp.sqrt(-jnp.expm1(-2.0 * angle) * heat) * xi

        noise = _noise(key, momentum)
        return jax.tree.map(leaf, momentum, noise, broadcast_prefix(mass, momentum))

    def step(
        state: HamiltonianState, key: Array | None = None
    ) -> tuple[HamiltonianState, HamiltonianInfo]:
        half = 0.5 * jnp.asarray(step_size, float)
        momentum = kick(state.momentum, state.force, half, mass)
        position = drift(state.position, momentum, half, mass)
        momentum = thermostat(momentum, key)
        position = drift(position, momentum, half, mass)
        force, (potential, aux) = evaluate(position)
        momentum = kick(momentum, force, half, mass)
        state = HamiltonianState(position, momentum, force)
        return state, energies(momentum, mass, potential, aux)

    return Integrator(init, step)

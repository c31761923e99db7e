"""Hamiltonian flow ``H(x, p) = F(x) + sum p^2 / (2 m)`` by symplectic splittings, with conformal
friction.

All schemes are palindromes of two substeps, kick and drift: reversible to rounding, and symplectic
because each substep is. With friction c the momentum also shrinks by ``exp(-c dt)``, split evenly
around each substep; the flow is then conformally symplectic: the symplectic form, too, decays by
exactly ``exp(-c dt)`` per step.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.dynamics.gradient_flow import broadcast_prefix
from vfejax.numerics import cast_like, floating_tree, tree_dot
from vfejax.types import Array, EnergyFn, Integrator, PyTree

__all__ = [
    "HamiltonianInfo",
    "HamiltonianState",
    "drift",
    "energies",
    "force_and_value",
    "kick",
    "kinetic_energy",
    "rest",
    "symplectic",
    "velocity",
    "velocity_verlet",
    "yoshida4",
]


class HamiltonianState(NamedTuple):
    """Position, momentum and the force ``-grad F`` at the position (carried: one gradient per
    substep).
    """

    position: PyTree
    momentum: PyTree
    force: PyTree


class HamiltonianInfo(NamedTuple):
    """Energies after the step, in nats, and what the energy function returned besides."""

    potential: Array
    kinetic: Array
    total: Array
    aux: Any


def _moving(x: Array, mass: float | Array) -> Array:
    """0 where the mass is infinite, whatever x is there, else x."""
    frozen = jnp.isposinf(cast_like(mass, x))
    return jnp.where(jnp.broadcast_to(frozen, x.shape), 0.0, x)


def velocity(momentum: PyTree, mass: PyTree = 1.0) -> PyTree:
    """``p / m``, exactly 0 where the mass is infinite.

    >>> velocity(jnp.array([3.0, jnp.nan]), jnp.array([2.0, jnp.inf])).tolist()
    [1.5, 0.0]
    """

    def leaf(p: Array, m: float | Array) -> Array:
        return _moving(p, m) / cast_like(m, p)

    return jax.tree.map(leaf, momentum, broadcast_prefix(mass, momentum))


def kinetic_energy(momentum: PyTree, mass: PyTree = 1.0) -> Array:
    """``sum p^2 / (2 m)``; ``mass`` is a scalar or a tree prefix of the momentum. Infinite mass
    contributes 0.

    >>> float(kinetic_energy({"a": jnp.array([2.0]), "b": jnp.ones(1)}, {"a": 1.0, "b": jnp.inf}))
    2.0
    """
    moving = jax.tree.map(_moving, momentum, broadcast_prefix(mass, momentum))
    return 0.5 * tree_dot(moving, velocity(momentum, mass))


def kick(momentum: PyTree, force: PyTree, time: float | Array, mass: PyTree = 1.0) -> PyTree:
    """``p + time * force``, except where the mass is infinite: there nothing moves.

    Args:
        momentum: of a state.
        force: ``-grad F``, of the same shapes.
        time: how long the force acts.
        mass: a scalar or a tree prefix of the momentum.

    Returns:
        The new momentum.

    >>> kick(jnp.zeros(2), jnp.array([2.0, jnp.inf]), 0.5, jnp.array([1.0, jnp.inf])).tolist()
    [1.0, 0.0]
    """

    def leaf(p: Array, f: Array, m: float | Array) -> Array:
        return p + cast_like(time, p) * _moving(f, m)

    return jax.tree.map(leaf, momentum, force, broadcast_prefix(mass, momentum))


def drift(position: PyTree, momentum: PyTree, time: float | Array, mass: PyTree = 1.0) -> PyTree:
    """``x + time * p / m``.

    Args:
        position: of a state.
        momentum: of the same shapes.
        time: how long it drifts.
        mass: a scalar or a tree prefix of the position.

    Returns:
        The new position.

    >>> drift(jnp.zeros(1), jnp.ones(1), 0.5).tolist()
    [0.5]
    """
    return jax.tree.map(lambda x, v: x + cast_like(time, x) * v, position, velocity(momentum, mass))


def symplectic(
    energy_fn: EnergyFn,
    step_size: float | Array,
    weights: Sequence[float],
    *,
    mass: PyTree = 1.0,
    friction: float | Array = 0.0,
    has_aux: bool = False,
) -> Integrator:
    """Symmetric composition of Stoermer-Verlet steps of lengths ``weights * step_size``.

    Args:
        energy_fn: potential F: position to scalar, or to ``(scalar, aux)`` with ``has_aux``.
        step_size: dt, in units of time (mass has units nats time^2 / position^2).
        weights: palindromic sequence that sums to 1; ``(1,)`` is Stoermer-Verlet itself.
        mass: a scalar or a tree prefix of the position; leaves of infinite mass never move,
            whatever their force.
        friction: rate c >= 0 per unit of time.
        has_aux: whether ``energy_fn`` returns something besides the energy.

    Returns:
        ``init(position, momentum=None) -> HamiltonianState`` (at rest by default) and ``step(state,
        key=None) -> (HamiltonianState, HamiltonianInfo)``; the key is ignored.

    Raises:
        ValueError: when a leaf of the position is complex, naming it.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration (2006), sections I.1.4 and II.4;
    friction as in McLachlan and Perlmutter, J. Geom. Phys. 39 (2001) 276.

    >>> flow = symplectic(lambda x: 0.5 * jnp.sum(x**2), 0.1, (1.0,))
    >>> state, info = flow.step(flow.init(jnp.ones(1)))
    >>> round(float(state.position[0]), 4), round(float(info.total), 4)
    (0.995, 0.5)
    """
    evaluate = force_and_value(energy_fn, has_aux)

    def init(position: PyTree, momentum: PyTree | None = None) -> HamiltonianState:
        return rest(position, momentum, evaluate)

    def substep(
        state: HamiltonianState, weight: Array
    ) -> tuple[HamiltonianState, tuple[Array, Any]]:
        time = weight * cast_like(step_size, weight)

        def decay(momentum: PyTree) -> PyTree:
            factor = jnp.exp(-0.5 * cast_like(friction, time) * time)
            return jax.tree.map(lambda p: p * factor.astype(p.dtype), momentum)

        momentum = kick(decay(state.momentum), state.force, 0.5 * time, mass)
        position = drift(state.position, momentum, time, mass)
        force, value = evaluate(position)
        momentum = decay(kick(momentum, force, 0.5 * time, mass))
        return HamiltonianState(position, momentum, force), value

    def step(
        state: HamiltonianState, key: Array | None = None
    ) -> tuple[HamiltonianState, HamiltonianInfo]:
        state, values = jax.lax.scan(substep, state, jnp.asarray(weights, float))
        potential, aux = jax.tree.map(lambda v: v[-1], values)
        return state, energies(state.momentum, mass, potential, aux)

    return Integrator(init, step)


def force_and_value(
    energy_fn: EnergyFn, has_aux: bool
) -> Callable[[PyTree], tuple[PyTree, tuple[Array, Any]]]:
    """``position -> (-grad F, (F, aux))``.

    >>> force, (energy, aux) = force_and_value(lambda x: jnp.sum(x**2), False)(jnp.ones(1))
    >>> force.tolist(), float(energy), aux
    ([-2.0], 1.0, None)
    """
    value_and_grad = jax.value_and_grad(energy_fn, has_aux=has_aux)

    def evaluate(position: PyTree) -> tuple[PyTree, tuple[Array, Any]]:
        value, gradient = value_and_grad(position)
        return jax.tree.map(jnp.negative, gradient), (value if has_aux else (value, None))

    return evaluate


def rest(
    position: PyTree,
    momentum: PyTree | None,
    evaluate: Callable[[PyTree], tuple[PyTree, tuple[Array, Any]]],
) -> HamiltonianState:
    """First state of a flow with momenta.

    Args:
        position: where it starts; integers become floating.
        momentum: of the same shapes; at rest when None.
        evaluate: from :func:`force_and_value`.

    Returns:
        The state, with the force at the position.

    Raises:
        ValueError: when a leaf is complex, or the momentum has other shapes, naming the leaf.

    >>> rest(jnp.ones(1), None, force_and_value(lambda x: jnp.sum(x**2), False)).force.tolist()
    [-2.0]
    """
    position = floating_tree(position, "position")
    still = jax.tree.map(jnp.zeros_like, position)
    if momentum is not None:
        momentum = floating_tree(momentum, "momentum")
        _check_momentum(position, momentum)
        still = jax.tree.map(lambda x, p: p.astype(x.dtype), position, momentum)
    return HamiltonianState(position, still, evaluate(position)[0])


def _check_momentum(position: PyTree, momentum: PyTree) -> None:
    wanted, found = (
        {jax.tree_util.keystr(path): x.shape for path, x in jax.tree_util.tree_leaves_with_path(z)}
        for z in (position, momentum)
    )
    if wanted != found:
        raise ValueError(f"momentum must have the shapes of position, {wanted}, got {found}")


def energies(momentum: PyTree, mass: PyTree, potential: Array, aux: Any) -> HamiltonianInfo:
    """Info of a state from its momentum and its potential energy.

    Args:
        momentum: of the state.
        mass: a scalar or a tree prefix of it.
        potential: energy at the position, in nats.
        aux: what the energy function returned besides.

    Returns:
        Kinetic and total energy beside the potential one.

    >>> float(energies(jnp.array([2.0]), 1.0, jnp.array(1.0), None).total)
    3.0
    """
    kinetic = kinetic_energy(momentum, mass).astype(potential.dtype)
    return HamiltonianInfo(potential, kinetic, potential + kinetic, aux)


def velocity_verlet(
    energy_fn: EnergyFn,
    step_size: float | Array,
    mass: PyTree = 1.0,
    friction: float | Array = 0.0,
    *,
    has_aux: bool = False,
) -> Integrator:
    """Stoermer-Verlet in velocity form: second order, one gradient per step.

    Args:
        energy_fn: potential F: position to scalar, or to ``(scalar, aux)`` with ``has_aux``.
        step_size: dt, in units of time (mass has units nats time^2 / position^2).
        mass: a scalar or a tree prefix of the position; leaves of infinite mass never move.
        friction: rate c >= 0 per unit of time; momentum shrinks by ``exp(-c dt)`` per step.
        has_aux: whether ``energy_fn`` returns something besides the energy.

    Returns:
        ``init(position, momentum=None) -> HamiltonianState`` (at rest by default) and ``step(state,
        key=None) -> (HamiltonianState, HamiltonianInfo)``; the key is ignored.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration (2006), section I.1.4.

    >>> flow = velocity_verlet(lambda x: 0.5 * jnp.sum(x**2), 0.1)
    >>> state, info = flow.step(flow.init(jnp.ones(1)))
    >>> round(float(state.momentum[0]), 3)  # -sin 0.1
    -0.1
    """
    return symplectic(energy_fn, step_size, (1.0,), mass=mass, friction=friction, has_aux=has_aux)


def yoshida4(
    energy_fn: EnergyFn,
    step_size: float | Array,
    mass: PyTree = 1.0,
    friction: float | Array = 0.0,
    *,
    has_aux: bool = False,
) -> Integrator:
    """Yoshida's triple jump: fourth order, three gradients per step.

    Weights ``(w, 1 - 2 w, w)`` with ``w = 1 / (2 - 2^(1/3))``; the middle one is negative.

    Args:
        energy_fn: potential F: position to scalar, or to ``(scalar, aux)`` with ``has_aux``.
        step_size: dt, in units of time (mass has units nats time^2 / position^2).
        mass: a scalar or a tree prefix of the position; leaves of infinite mass never move.
        friction: rate c >= 0 per unit of time; momentum shrinks by ``exp(-c dt)`` per step.
        has_aux: whether ``energy_fn`` returns something besides the energy.

    Returns:
        ``init(position, momentum=None) -> HamiltonianState`` (at rest by default) and ``step(state,
        key=None) -> (HamiltonianState, HamiltonianInfo)``; the key is ignored.

    Source: Yoshida, Phys. Lett. A 150 (1990) 262.

    >>> flow = yoshida4(lambda x: 0.5 * jnp.sum(x**2), 0.1)
    >>> state, info = flow.step(flow.init(jnp.ones(1)))
    >>> round(float(state.position[0]), 4)  # cos 0.1
    0.995
    """
    outer = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
    weights = (outer, 1.0 - 2.0 * outer, outer)
    return symplectic(energy_fn, step_size, weights, mass=mass, friction=friction, has_aux=has_aux)

"""Hamiltonian flow ``H(x, p) = F(x) + sum p^2 / (2 m)`` by symplectic splittings, with conformal
friction.

All schemes are palindromes of two substeps, kick and drift: reversible to rounding, and symplectic
because each substep is. With friction c the momentum also shrinks by ``exp(-c dt)``, split evenly
around each substep; the flow is then conformally symplectic: the symplectic form, too, decays by
exactly ``exp(-c dt)`` per step.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.dynamics.gradient_flow import broadcast_prefix
from vfejax.types import Array, EnergyFn, Integrator, PyTree

__all__ = [
    "HamiltonianInfo",
    "HamiltonianState",
    "kinetic_energy",
    "symplectic",
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


def kinetic_energy(momentum: PyTree, mass: PyTree = 1.0) -> Array:
    """``sum p^2 / (2 m)``; ``mass`` is a scalar or a tree prefix of the momentum. Infinite mass
    contributes 0.
    """
    terms = jax.tree.map(
        lambda p, m: jnp.sum(p * p / (2.0 * m)), momentum, broadcast_prefix(mass, momentum)
    )
    return jax.tree.reduce(jnp.add, terms)


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
        mass: a scalar or a tree prefix of the position; an infinite mass freezes its leaves.
        friction: rate c >= 0 per unit of time.
        has_aux: whether ``energy_fn`` returns something besides the energy.

    Returns:
        ``init(position, momentum=None) -> HamiltonianState`` (at rest by default) and
        ``step(state) -> (HamiltonianState, HamiltonianInfo)``.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration (2006), sections I.1.4 and II.4;
    friction as in McLachlan and Perlmutter, J. Geom. Phys. 39 (2001) 276.
    """
    value_and_grad = jax.value_and_grad(energy_fn, has_aux=has_aux)

    def evaluate(position: PyTree) -> tuple[PyTree, tuple[Array, Any]]:
        value, gradient = value_and_grad(position)
        return jax.tree.map(jnp.negative, gradient), (value if has_aux else (value, None))

    def init(position: PyTree, momentum: PyTree | None = None) -> HamiltonianState:
        momentum = jax.tree.map(jnp.zeros_like, position) if momentum is None else momentum
        return HamiltonianState(position, momentum, evaluate(position)[0])

    def substep(
        state: HamiltonianState, weight: Array
    ) -> tuple[HamiltonianState, tuple[Array, Any]]:
        def kick(momentum: PyTree, force: PyTree, decay_first: bool) -> PyTree:
            def leaf(p: Array, f: Array) -> Array:
                dt = (weight * step_size).astype(p.dtype)
                decay = jnp.exp(-0.5 * friction * dt)
                return p * decay + 0.5 * dt * f if decay_first else (p + 0.5 * dt * f) * decay

            return jax.tree.map(leaf, momentum, force)

        def drift(x: Array, p: Array, m: Array) -> Array:
            return x + (weight * step_size).astype(x.dtype) * p / m

        momentum = kick(state.momentum, state.force, decay_first=True)
        position = jax.tree.map(drift, state.position, momentum, broadcast_prefix(mass, momentum))
        force, value = evaluate(position)
        return HamiltonianState(position, kick(momentum, force, decay_first=False), force), value

    def step(state: HamiltonianState) -> tuple[HamiltonianState, HamiltonianInfo]:
        dtype = jnp.result_type(*jax.tree.leaves(state.position))
        state, values = jax.lax.scan(substep, state, jnp.asarray(weights, dtype))
        potential, aux = jax.tree.map(lambda v: v[-1], values)
        kinetic = kinetic_energy(state.momentum, mass)
        return state, HamiltonianInfo(potential, kinetic, potential + kinetic, aux)

    return Integrator(init, step)


def velocity_verlet(
    energy_fn: EnergyFn,
    step_size: float | Array,
    mass: PyTree = 1.0,
    friction: float | Array = 0.0,
    *,
    has_aux: bool = False,
) -> Integrator:
    """Stoermer-Verlet (leapfrog): second order, one gradient per step. Arguments as in
    :func:`symplectic`.
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
    """Yoshida's triple jump: fourth order, three gradients per step. Arguments as in
    :func:`symplectic`.

    Weights ``(w, 1 - 2 w, w)`` with ``w = 1 / (2 - 2^(1/3))``; the middle one is negative.

    Source: Yoshida, Phys. Lett. A 150 (1990) 262.
    """
    outer = 1.0 / (2.0 - 2.0 ** (1.0 / 3.0))
    weights = (outer, 1.0 - 2.0 * outer, outer)
    return symplectic(energy_fn, step_size, weights, mass=mass, friction=friction, has_aux=has_aux)

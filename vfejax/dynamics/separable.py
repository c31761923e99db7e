"""Hamiltonian flow of ``H(x, p) = F(x) + T(p)`` for any kinetic energy T, by Stoermer-Verlet.

A kinetic energy ``sum p^2 / (2 m)`` is that of :mod:`vfejax.dynamics.hamiltonian`; one that depends
on the position too needs :mod:`vfejax.dynamics.implicit`.
"""

import jax
import jax.numpy as jnp

from vfejax.dynamics.hamiltonian import (
    HamiltonianInfo,
    HamiltonianState,
    force_and_value,
    kick,
    rest,
)
from vfejax.numerics import cast_like
from vfejax.types import Array, EnergyFn, Integrator, PyTree

__all__ = ["separable_verlet"]


def separable_verlet(
    energy_fn: EnergyFn,
    kinetic_fn: EnergyFn,
    step_size: float | Array,
    friction: float | Array = 0.0,
    *,
    has_aux: bool = False,
) -> Integrator:
    """Stoermer-Verlet: kick, drift along ``grad T(p)``, kick. Second order, reversible, and
    symplectic for every T; one gradient of F and one of T per step.

    Args:
        energy_fn: potential F: position to scalar, or to ``(scalar, aux)`` with ``has_aux``.
        kinetic_fn: T, momentum to scalar.
        step_size: dt, in units of time.
        friction: rate c >= 0 per unit of time; momentum shrinks by ``exp(-c dt)`` per step.
        has_aux: whether ``energy_fn`` returns something besides the energy.

    Returns:
        ``init(position, momentum=None) -> HamiltonianState`` (at rest by default) and ``step(state,
        key=None) -> (HamiltonianState, HamiltonianInfo)``; the key is ignored.

    Raises:
        ValueError: when a leaf of the position is complex, naming it.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration (2006), section I.1.4; friction
    as in McLachlan and Perlmutter, J. Geom. Phys. 39 (2001) 276.

    >>> relativistic = lambda p: jnp.sum(jnp.sqrt(1 + p**2))
    >>> flow = separable_verlet(lambda x: 0.5 * jnp.sum(x**2), relativistic, 0.1)
    >>> state, info = flow.step(flow.init(jnp.ones(1)))
    >>> round(float(state.momentum[0]), 4), round(float(info.total), 4)
    (-0.0998, 1.5)
    """
    evaluate = force_and_value(energy_fn, has_aux)
    velocity_fn = jax.grad(kinetic_fn)

    def init(position: PyTree, momentum: PyTree | None = None) -> HamiltonianState:
        return rest(position, momentum, evaluate)

    def decay(momentum: PyTree) -> PyTree:
        rate = 0.5 * jnp.asarray(friction, float) * jnp.asarray(step_size, float)
        return jax.tree.map(lambda p: p * cast_like(jnp.exp(-rate), p), momentum)

    def step(
        state: HamiltonianState, key: Array | None = None
    ) -> tuple[HamiltonianState, HamiltonianInfo]:
        half = 0.5 * jnp.asarray(step_size, float)
        momentum = kick(decay(state.momentum), state.force, half)
        position = jax.tree.map(
            lambda x, v: x + cast_like(step_size, x) * v.astype(x.dtype),
            state.position,
            velocity_fn(momentum),
        )
        force, (potential, aux) = evaluate(position)
        momentum = decay(kick(momentum, force, half))
        kinetic = kinetic_fn(momentum).astype(potential.dtype)
        info = HamiltonianInfo(potential, kinetic, potential + kinetic, aux)
        return HamiltonianState(position, momentum, force), info

    return Integrator(init, step)

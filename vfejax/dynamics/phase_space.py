"""Hamiltonians of vectors ``z = (q, p)``: energies, vector fields, and flows that keep them.

dq/dt = dH/dp,    dp/dt = -dH/dq
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.dynamics.fixed_points import SolverFn, fixed_point
from vfejax.dynamics.hamiltonian import HamiltonianState
from vfejax.dynamics.implicit import implicit_midpoint
from vfejax.dynamics.rollout import rollout
from vfejax.dynamics.separable import separable_verlet
from vfejax.numerics import as_floating
from vfejax.types import Array, Integrator, PyTree

__all__ = ["Hamiltonian", "energy", "flow", "halves", "joined", "path", "vector_field"]


class Hamiltonian(NamedTuple):
    """``H = V(q) + T(q, p)``.

    Attributes:
        potential_fn: V, ``q [n]`` to a scalar.
        kinetic_fn: T, ``(q [n], p [n])`` to a scalar.
        separable: whether T depends on p alone.
    """

    potential_fn: Callable[[Array], Array]
    kinetic_fn: Callable[[Array, Array], Array]
    separable: bool = False


def halves(z: Array) -> tuple[Array, Array]:
    """Coordinates and momenta ``[..., n]`` of states ``[..., 2 n]``.

    Raises:
        ValueError: for a last axis of odd length.

    >>> [x.tolist() for x in halves(jnp.arange(4))]
    [[0, 1], [2, 3]]
    """
    if jnp.ndim(z) < 1 or z.shape[-1] % 2 or not z.shape[-1]:
        raise ValueError(
            "z must hold as many momenta as coordinates, an even number in all, got shape "
            f"{jnp.shape(z)}"
        )
    n = z.shape[-1] // 2
    return z[..., :n], z[..., n:]


def joined(state: HamiltonianState) -> Array:
    """The vector ``[..., 2 n]`` of a state of an integrator.

    >>> joined(HamiltonianState(jnp.zeros(1), jnp.ones(1), jnp.zeros(1))).tolist()
    [0.0, 1.0]
    """
    return jnp.concatenate([state.position, state.momentum], axis=-1)


def energy(hamiltonian: Hamiltonian, z: Array) -> Array:
    """H of a state ``[2 n]``.

    >>> oscillator = Hamiltonian(lambda q: jnp.sum(q**2), lambda q, p: jnp.sum(p**2), True)
    >>> float(energy(oscillator, jnp.array([1.0, 2.0])))
    5.0
    """
    q, p = halves(z)
    return hamiltonian.potential_fn(q) + hamiltonian.kinetic_fn(q, p)


def vector_field(hamiltonian: Hamiltonian, z: Array) -> Array:
    """``dz/dt = (dH/dp, -dH/dq)`` of a state ``[2 n]``.

    >>> oscillator = Hamiltonian(lambda q: jnp.sum(q**2), lambda q, p: jnp.sum(p**2), True)
    >>> vector_field(oscillator, jnp.array([1.0, 2.0])).tolist()
    [4.0, -2.0]
    """
    z = as_floating(z, "z")
    slope_q, slope_p = halves(jax.grad(lambda state: energy(hamiltonian, state))(z))
    return jnp.concatenate([slope_p, -slope_q])


def flow(
    hamiltonian: Hamiltonian,
    step_size: float | Array,
    *,
    solver: SolverFn = fixed_point(),  # noqa: B008 (a pure function)
) -> Integrator:
    """A symplectic scheme of second order: Stoermer-Verlet where H separates, else the implicit
    midpoint rule.

    Args:
        hamiltonian: of vectors.
        step_size: dt, in units of time.
        solver: of the equations of the midpoint rule.

    Returns:
        ``init(z) -> HamiltonianState`` and ``step(state, key=None) -> (HamiltonianState, info)``.

    Raises:
        ValueError: for a state of odd length.

    >>> oscillator = Hamiltonian(lambda q: jnp.sum(q**2) / 2, lambda q, p: jnp.sum(p**2) / 2, True)
    >>> scheme = flow(oscillator, 0.1)
    >>> state, info = scheme.step(scheme.init(jnp.array([1.0, 0.0])))
    >>> [round(float(x), 3) for x in joined(state)], round(float(info.total), 3)
    ([0.995, -0.1], 0.5)
    """
    potential_fn, kinetic_fn, _ = hamiltonian
    if hamiltonian.separable:

        def moving(p: Array) -> Array:
            return kinetic_fn(jnp.zeros_like(p), p)

        scheme = separable_verlet(potential_fn, moving, step_size)
    else:
        scheme = implicit_midpoint(potential_fn, kinetic_fn, step_size, solver=solver)
    return Integrator(lambda z: scheme.init(*halves(z)), scheme.step)


def path(
    integrator: Integrator,
    state: PyTree,
    num_times: int,
    num_steps: int,
    read_fn: Callable[[PyTree], PyTree] = joined,
) -> PyTree:
    """What a trajectory passes at even times, the first at its start.

    Args:
        integrator: of states.
        state: the first one.
        num_times: how many.
        num_steps: from one time to the next.
        read_fn: what is kept of a state.

    Returns:
        ``[num_times, ...]``; memory does not grow with ``num_steps``.

    >>> from vfejax.dynamics.runge_kutta import runge_kutta4
    >>> decay = runge_kutta4(lambda z: -z, 0.01)
    >>> round(float(path(decay, jnp.ones(()), 2, 100, lambda z: z)[1]), 3)
    0.368
    """

    def advance(state: PyTree, _: None) -> tuple[PyTree, PyTree]:
        return rollout(integrator, state, num_steps)[0], read_fn(state)

    return jax.lax.scan(advance, state, None, length=num_times)[1]

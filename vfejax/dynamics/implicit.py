"""Hamiltonian flow of energies that do not separate, ``H(x, p) = F(x) + T(x, p)``, by implicit
symplectic schemes.

Where the mass depends on the position, an explicit kick and drift are not symplectic. The two
schemes here are, for every H. Both are symmetric and of second order. Both solve equations ``z =
G(z)`` in every step, by a solver that is passed (:mod:`vfejax.dynamics.fixed_points`). How far it
came stands in the info: a step that did not converge is returned as it is, and it is neither
symplectic nor reversible.

With friction c the momentum also shrinks by ``exp(-c dt)``, half before and half after the step.
The flow is then conformally symplectic, as in :mod:`vfejax.dynamics.hamiltonian`.

A Hamiltonian that is one function is a kinetic energy with :func:`no_potential`.
"""

from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp

from vfejax.dynamics.fixed_points import Solution, SolverFn, fixed_point, implicit_solution
from vfejax.dynamics.hamiltonian import HamiltonianState, force_and_value, rest
from vfejax.numerics import cast_like, common_dtype
from vfejax.types import Array, EnergyFn, Integrator, PyTree

__all__ = [
    "ImplicitInfo",
    "KineticFn",
    "generalized_leapfrog",
    "implicit_midpoint",
    "no_potential",
]


class KineticFn(Protocol):
    """The part of a Hamiltonian with momenta: ``(position, momentum) -> nats``, a scalar."""

    def __call__(self, position: PyTree, momentum: PyTree, /) -> Array: ...


class ImplicitInfo(NamedTuple):
    """What a step arrived at, and how well its equations were solved.

    Attributes:
        potential, kinetic, total: energies after the step, in nats.
        aux: what the energy function returned besides.
        iterations: of the solver, summed over the equations of the step.
        residual: the largest of them (:func:`vfejax.dynamics.fixed_points.residual`).
        converged: whether all equations were solved to the solver's tolerance.
    """

    potential: Array
    kinetic: Array
    total: Array
    aux: Any
    iterations: Array
    residual: Array
    converged: Array


def no_potential(position: PyTree) -> Array:
    """0 nats, for a Hamiltonian that is given as one function of position and momentum.

    >>> kinetic_fn = lambda x, p: 0.5 * jnp.sum((1 + x**2) * (1 + p**2))
    >>> flow = implicit_midpoint(no_potential, kinetic_fn, 0.1)
    >>> state, info = flow.step(flow.init(jnp.ones(1)))
    >>> round(float(info.total), 3), float(info.potential)
    (1.0, 0.0)
    """
    leaves = [jnp.asarray(x) for x in jax.tree.leaves(position)]
    return jnp.zeros((), common_dtype(*leaves) if leaves else None)


def _moved(x: PyTree, slope: PyTree, time: float | Array) -> PyTree:
    """``x + time * slope``, leaf by leaf in the precision of x."""
    return jax.tree.map(lambda a, b: a + cast_like(time, a) * b.astype(a.dtype), x, slope)


def _decayed(momentum: PyTree, friction: float | Array, time: float | Array) -> PyTree:
    def leaf(p: Array) -> Array:
        return p * jnp.exp(-cast_like(friction, p) * cast_like(time, p))

    return jax.tree.map(leaf, momentum)


class _Point(NamedTuple):
    """Force, kinetic energy and the values of both energies at the end of a step."""

    force: PyTree
    potential: Array
    kinetic: Array
    aux: Any


def _info(point: _Point, *solutions: Solution) -> ImplicitInfo:
    kinetic = point.kinetic.astype(point.potential.dtype)
    return ImplicitInfo(
        point.potential,
        kinetic,
        point.potential + kinetic,
        point.aux,
        sum((s.iterations for s in solutions[1:]), solutions[0].iterations),
        jnp.max(jnp.stack([s.residual for s in solutions])),
        jnp.all(jnp.stack([s.converged for s in solutions])),
    )


def generalized_leapfrog(
    energy_fn: EnergyFn,
    kinetic_fn: KineticFn,
    step_size: float | Array,
    friction: float | Array = 0.0,
    *,
    solver: SolverFn = fixed_point(),  # noqa: B008 (a pure function)
    has_aux: bool = False,
) -> Integrator:
    """Stoermer-Verlet for energies that do not separate: implicit kick, implicit drift, kick.

        p_half = p - dt/2 (grad F(x) + T_x(x, p_half))
        x_new = x + dt/2 (T_p(x, p_half) + T_p(x_new, p_half))
        p_new = p_half - dt/2 (grad F(x_new) + T_x(x_new, p_half))

    The force ``-grad F`` is carried, so a step costs one gradient of F; the solver evaluates
    gradients of T alone. Where T does not depend on x this is
    :func:`vfejax.dynamics.hamiltonian.velocity_verlet`.

    Args:
        energy_fn: potential F: position to scalar, or to ``(scalar, aux)`` with ``has_aux``.
        kinetic_fn: T, ``(position, momentum) -> scalar``. A leaf whose momentum it does not use
            never moves.
        step_size: dt, in units of time.
        friction: rate c >= 0 per unit of time; momentum shrinks by ``exp(-c dt)`` per step.
        solver: how ``z = G(z)`` is solved.
        has_aux: whether ``energy_fn`` returns something besides the energy.

    Returns:
        ``init(position, momentum=None) -> HamiltonianState`` (at rest by default) and ``step(state,
        key=None) -> (HamiltonianState, ImplicitInfo)``; the key is ignored.

    Raises:
        ValueError: when a leaf of the position is complex, naming it.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration (2006), theorem VI.3.4; Girolami
    and Calderhead, J. R. Stat. Soc. B 73 (2011) 123, equations (16) to (18).

    >>> heavier_outside = lambda x, p: jnp.sum(p**2 / (2 + 2 * x**2))
    >>> flow = generalized_leapfrog(lambda x: 0.5 * jnp.sum(x**2), heavier_outside, 0.1)
    >>> state, info = flow.step(flow.init(jnp.ones(1)))
    >>> round(float(state.position[0]), 4), round(float(info.total), 4), bool(info.converged)
    (0.9975, 0.5, True)
    """
    evaluate = force_and_value(energy_fn, has_aux)
    slope_x, slope_p = jax.grad(kinetic_fn), jax.grad(kinetic_fn, argnums=1)

    def init(position: PyTree, momentum: PyTree | None = None) -> HamiltonianState:
        return rest(position, momentum, evaluate)

    def step(
        state: HamiltonianState, key: Array | None = None
    ) -> tuple[HamiltonianState, ImplicitInfo]:
        x, half = state.position, 0.5 * jnp.asarray(step_size, float)
        pushed = _moved(_decayed(state.momentum, friction, half), state.force, half)
        kicked = implicit_solution(solver, lambda p: _moved(pushed, slope_x(x, p), -half), pushed)
        momentum = kicked.value
        velocity = slope_p(x, momentum)
        drifting = _moved(x, velocity, half)
        drifted = implicit_solution(
            solver,
            lambda y: _moved(drifting, slope_p(y, momentum), half),
            _moved(drifting, velocity, half),
        )
        x = drifted.value
        force, (potential, aux) = evaluate(x)
        momentum = _moved(_moved(momentum, slope_x(x, momentum), -half), force, half)
        momentum = _decayed(momentum, friction, half)
        point = _Point(force, potential, kinetic_fn(x, momentum), aux)
        return HamiltonianState(x, momentum, force), _info(point, kicked, drifted)

    return Integrator(init, step)


def implicit_midpoint(
    energy_fn: EnergyFn,
    kinetic_fn: KineticFn,
    step_size: float | Array,
    friction: float | Array = 0.0,
    *,
    solver: SolverFn = fixed_point(),  # noqa: B008 (a pure function)
    has_aux: bool = False,
) -> Integrator:
    """The midpoint rule: ``z_new = z + dt J grad H((z + z_new) / 2)`` of ``z = (x, p)``.

    Every quadratic invariant of the flow is kept to the solver's tolerance, and so is the energy of
    any oscillator, at every step size; with a solver that copes with long steps
    (:func:`vfejax.dynamics.fixed_points.newton_krylov`) it is stable where leapfrog is not. Every
    iteration costs a gradient of F and of T.

    Args:
        energy_fn: potential F: position to scalar, or to ``(scalar, aux)`` with ``has_aux``.
        kinetic_fn: T, ``(position, momentum) -> scalar``. A leaf whose momentum it does not use
            never moves.
        step_size: dt, in units of time.
        friction: rate c >= 0 per unit of time; momentum shrinks by ``exp(-c dt)`` per step.
        solver: how ``z = G(z)`` is solved.
        has_aux: whether ``energy_fn`` returns something besides the energy.

    Returns:
        ``init(position, momentum=None) -> HamiltonianState`` (at rest by default) and ``step(state,
        key=None) -> (HamiltonianState, ImplicitInfo)``; the key is ignored.

    Raises:
        ValueError: when a leaf of the position is complex, naming it.

    Source: Hairer, Lubich, Wanner, Geometric Numerical Integration (2006), section VI.4.1.

    >>> flow = implicit_midpoint(lambda x: 0.5 * jnp.sum(x**2), lambda x, p: jnp.sum(p**2) / 2, 0.5)
    >>> state, info = flow.step(flow.init(jnp.ones(1)))
    >>> round(float(state.position[0]), 4), round(float(info.total), 5)  # (1 - dt^2/4)/(1 + dt^2/4)
    (0.8824, 0.5)
    """
    evaluate = force_and_value(energy_fn, has_aux)
    slopes = jax.grad(kinetic_fn, argnums=(0, 1))

    def init(position: PyTree, momentum: PyTree | None = None) -> HamiltonianState:
        return rest(position, momentum, evaluate)

    def step(
        state: HamiltonianState, key: Array | None = None
    ) -> tuple[HamiltonianState, ImplicitInfo]:
        half = 0.5 * jnp.asarray(step_size, float)
        start = state.position, _decayed(state.momentum, friction, half)

        def middle(z: tuple[PyTree, PyTree]) -> tuple[PyTree, PyTree]:
            slope_x, slope_p = slopes(*z)
            momentum = _moved(start[1], evaluate(z[0])[0], half)
            return _moved(start[0], slope_p, half), _moved(momentum, slope_x, -half)

        guess = start[0], _moved(start[1], state.force, half)
        solution = implicit_solution(solver, middle, guess)
        x, momentum = jax.tree.map(lambda m, z: m + (m - z), solution.value, start)
        momentum = _decayed(momentum, friction, half)
        force, (potential, aux) = evaluate(x)
        point = _Point(force, potential, kinetic_fn(x, momentum), aux)
        return HamiltonianState(x, momentum, force), _info(point, solution)

    return Integrator(init, step)

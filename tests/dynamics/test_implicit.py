"""Implicit symplectic schemes on energies that do not separate: order against an exact solution,
reversibility, the symplectic form, friction, the limit of a constant mass, and what the info says.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.dynamics import hamiltonian
from vfejax.dynamics.fixed_points import fixed_point, newton_krylov
from vfejax.dynamics.hamiltonian import velocity_verlet
from vfejax.dynamics.implicit import generalized_leapfrog, implicit_midpoint, no_potential
from vfejax.dynamics.rollout import rollout

# A new scheme joins the tests below by one line.
SCHEMES = {"leapfrog": generalized_leapfrog, "midpoint": implicit_midpoint}
SOLVERS = {"iteration": fixed_point(), "newton": newton_krylov()}
each_scheme = pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES)
each_kind = pytest.mark.parametrize(
    "kind", [pytest.param("float32", marks=pytest.mark.slow), "float64"]
)


def coupled(x):
    """Anharmonic, and no sum over coordinates."""
    return 1.0 - jnp.cos(x[0] - x[1]) + 0.5 * x[1] ** 2


def moving_mass(x, p):
    """A metric that no change of the coordinates makes constant or diagonal."""
    own = p[0] ** 2 * (1.0 + 0.4 * x[1] ** 2) + 2.0 * p[1] ** 2
    return 0.5 * own + 0.3 * p[0] * p[1] * jnp.cos(x[0])


def start_of(dtype):
    return np.array([0.9, -0.7], dtype), np.array([0.3, 0.5], dtype)


@jax.jit
def begin(position, momentum):
    return generalized_leapfrog(coupled, moving_mass, 0.1).init(position, momentum)


@partial(jax.jit, static_argnums=(0, 1))
def advance(scheme, solver, num_steps, step_size, friction, state):
    """The state after so many steps, and the info of the last: one program for each scheme,
    solver and precision.
    """
    flow = scheme(coupled, moving_mass, step_size, friction, solver=solver)
    blank = jax.tree.map(
        lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(flow.step, state)[1]
    )
    return jax.lax.fori_loop(0, num_steps, lambda _, carry: flow.step(carry[0]), (state, blank))


def flat(*trees):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(trees)])


def polar_energy(x):
    return 0.5 * x["r"] ** 2


def polar_kinetic(x, p):
    return 0.5 * (p["r"] ** 2 + (p["angle"] / x["r"]) ** 2)


def polar_exact(time, friction):
    """A damped oscillator in the plane, ``x'' + c x' + x = 0``, in polar coordinates."""
    x, v = np.array([1.0, 0.0]), np.array([0.3, 0.8])
    rate = 0.5 * friction
    omega = np.sqrt(1.0 - rate**2)
    cos, sin, decay = np.cos(omega * time), np.sin(omega * time) / omega, np.exp(-rate * time)
    x, v = decay * (x * cos + (v + rate * x) * sin), decay * (v * cos - (rate * v + x) * sin)
    r = np.hypot(*x)
    return np.array([np.arctan2(x[1], x[0]), r, x[0] * v[1] - x[1] * v[0], x @ v / r])


@each_scheme
def test_convergence_order_is_two(scheme):
    """In polar coordinates a plain oscillator has a mass that depends on the position."""
    time, counts = 2.0, np.array([40, 60, 90])
    position, momentum = {"angle": 0.0, "r": 1.0}, {"angle": 0.8, "r": 0.3}

    @jax.jit
    def final(num_steps, friction):
        step_size = time / num_steps.astype(friction.dtype)
        flow = scheme(polar_energy, polar_kinetic, step_size, friction)
        start = flow.init(position, momentum)
        return jax.lax.fori_loop(0, num_steps, lambda _, s: flow.step(s)[0], start)

    for friction in (0.0, 0.3):
        truth = polar_exact(time, friction)
        states = [final(n, np.asarray(friction)) for n in counts]
        errors = [np.linalg.norm(flat(s.position, s.momentum) - truth) for s in states]
        slope = np.polyfit(np.log(time / counts), np.log(errors), 1)[0]
        # The next term of the error series is two orders up: 0.25 % at dt = 0.05.
        assert abs(slope - 2.0) < 0.05, (friction, errors)
        # Far above the solver's tolerance, so that the slope means something.
        assert errors[-1] > 1e-6, (friction, errors)


@each_scheme
@each_kind
def test_reversible_to_the_solvers_tolerance(scheme, kind):
    """Negate the momentum and the trajectory runs back to its start."""
    position, momentum = start_of(kind)
    solver = SOLVERS["iteration"]
    there, info = advance(scheme, solver, 100, 0.1, 0.0, begin(position, momentum))
    assert info.converged
    turned = there._replace(momentum=jax.tree.map(jnp.negative, there.momentum))
    back, _ = advance(scheme, solver, 100, 0.1, 0.0, turned)
    assert np.linalg.norm(flat(there.position) - flat(position)) > 0.1
    ends = back.position, jax.tree.map(np.negative, back.momentum)
    # 200 steps leave a residual of at most the tolerance each; the orbit is stable.
    tolerance = float(jnp.finfo(kind).eps) ** 0.75
    chex.assert_trees_all_close(ends, (position, momentum), rtol=0, atol=200 * tolerance)


@each_scheme
def test_negative_step_undoes_a_step_with_friction(scheme):
    position, momentum = start_of(np.float64)
    solver = SOLVERS["iteration"]
    state, _ = advance(scheme, solver, 1, 0.2, 0.4, begin(position, momentum))
    back, _ = advance(scheme, solver, 1, -0.2, 0.4, state)
    # Two steps, each solved to 2e-12.
    chex.assert_trees_all_close(
        (back.position, back.momentum), (position, momentum), rtol=0, atol=1e-11
    )


@each_scheme
def test_jacobian_scales_the_symplectic_form(scheme):
    """``J^T Omega J = exp(-c dt) Omega`` for a long step, so that nothing holds merely by
    smallness.
    """
    dt = 0.4
    start = np.stack(start_of(np.float64))

    @jax.jit
    @partial(jax.vmap, in_axes=(None, 0))
    @jax.jacfwd
    def jacobian_of_step(z, friction):
        flow = scheme(coupled, moving_mass, dt, friction)
        state, _ = flow.step(flow.init(z[0], z[1]))
        return jnp.stack([state.position, state.momentum])

    frictions = np.array([0.0, 0.4])
    omega = np.kron(np.array([[0.0, 1.0], [-1.0, 0.0]]), np.eye(2))
    jacobians = np.asarray(jacobian_of_step(start, frictions)).reshape(2, 4, 4)
    for friction, jacobian in zip(frictions, jacobians, strict=True):
        # The derivative is exact at what the solver found, which is within 2e-12 of the solution;
        # second derivatives and a product of two Jacobians multiply that by tens.
        np.testing.assert_allclose(
            jacobian.T @ omega @ jacobian, np.exp(-friction * dt) * omega, rtol=0, atol=1e-10
        )
        assert np.abs(jacobian - np.eye(4)).max() > 0.1


def test_an_explicit_scheme_with_a_moving_mass_is_not_symplectic():
    """The control of the test above: kick and drift with the mass of the moment."""

    @jax.jit
    @jax.jacfwd
    def jacobian_of_step(z):
        x, p = z
        p = p - 0.2 * (x + jax.grad(lambda x: p**2 / (2 + 2 * x**2))(x))
        x = x + 0.4 * p / (1 + x**2)
        p = p - 0.2 * (x + jax.grad(lambda x: p**2 / (2 + 2 * x**2))(x))
        return jnp.stack([x, p])

    jacobian = np.asarray(jacobian_of_step(np.array([0.7, 0.9])))
    # In one degree of freedom the form is the determinant.
    assert abs(np.linalg.det(jacobian) - 1) > 1e-3


def test_leapfrog_of_a_constant_mass_is_velocity_verlet_to_rounding():
    mass = np.array([1.3, 0.6])
    position, momentum = start_of(np.float64)

    @jax.jit
    def ends(position, momentum):
        verlet = velocity_verlet(coupled, 0.1, mass, 0.2)
        leapfrog = generalized_leapfrog(
            coupled, lambda x, p: hamiltonian.kinetic_energy(p, mass), 0.1, 0.2
        )
        state = verlet.init(position, momentum)
        return [rollout(flow, state, 20) for flow in (verlet, leapfrog)]

    (verlet, energies), (leapfrog, info) = ends(position, momentum)
    # 20 steps with a handful of roundings each.
    chex.assert_trees_all_close(leapfrog, verlet, rtol=0, atol=1e-13)
    np.testing.assert_allclose(info.total, energies.total, rtol=1e-13)
    # One evaluation tells each of the two equations that its guess was right.
    np.testing.assert_array_equal(info.iterations, 2)
    np.testing.assert_array_equal(info.residual, 0.0)


@each_scheme
def test_one_hamiltonian_function_is_the_sum_of_its_parts(scheme):
    position, momentum = start_of(np.float64)

    @jax.jit
    def step(position, momentum):
        whole = scheme(no_potential, lambda x, p: coupled(x) + moving_mass(x, p), 0.2)
        return whole.step(whole.init(position, momentum))

    state, info = step(position, momentum)
    parts, split = advance(scheme, SOLVERS["iteration"], 1, 0.2, 0.0, begin(position, momentum))
    # Both are solved to 2e-12.
    chex.assert_trees_all_close(state.position, parts.position, rtol=0, atol=1e-11)
    chex.assert_trees_all_close(state.momentum, parts.momentum, rtol=0, atol=1e-11)
    np.testing.assert_allclose(info.total, split.total, rtol=0, atol=1e-11)
    np.testing.assert_allclose(split.total, split.potential + split.kinetic, rtol=1e-15)


@pytest.mark.slow
@each_scheme
def test_newton_finds_what_the_iteration_finds(scheme):
    start = begin(*start_of(np.float64))
    found, newton = (advance(scheme, SOLVERS[name], 5, 0.2, 0.1, start) for name in SOLVERS)
    # Five steps, solved to 2e-12 each.
    chex.assert_trees_all_close(newton[0], found[0], rtol=0, atol=1e-10)
    assert newton[1].converged
    assert newton[1].iterations < found[1].iterations


@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
def test_midpoint_keeps_the_energy_of_an_oscillator_or_says_that_it_did_not_converge(solver):
    """At dt = 5 the iteration expands by 2.5; the equations are linear, so Newton's method solves
    them.
    """

    @jax.jit
    def run(x):
        flow = implicit_midpoint(
            lambda x: 0.5 * jnp.sum(x**2), lambda x, p: 0.5 * jnp.sum(p**2), 5.0, solver=solver
        )
        return rollout(flow, flow.init(x), 20)[1]

    info = run(np.array([0.6, 0.8]))
    if solver is SOLVERS["newton"]:
        assert np.all(info.converged)
        # 20 steps that keep it to the tolerance of 2e-12.
        np.testing.assert_allclose(info.total, 0.5, rtol=0, atol=1e-10)
    else:
        assert not np.any(info.converged)
        assert info.iterations[0] == 50
        assert info.residual[0] > 1.0


@each_scheme
def test_a_nan_stays_and_stops_the_solver(scheme):
    start = begin(*start_of(np.float64))
    bad = start._replace(momentum=np.array([0.3, np.nan]))
    state, info = advance(scheme, SOLVERS["iteration"], 1, 0.2, 0.0, bad)
    assert np.isnan(state.position[1])
    assert not info.converged
    assert np.isnan(info.residual)
    # One iteration of each equation, and none after the NaN was seen.
    assert info.iterations <= 2


@pytest.mark.slow
@each_scheme
def test_derivatives_go_through_a_step(scheme):
    """By the implicit function theorem, forwards and backwards, also of what the energies close
    over.
    """
    x, p = np.array([0.7, -0.3]), np.array([0.2, 0.5])

    def end(stiffness):
        flow = scheme(
            lambda x: 0.5 * stiffness * jnp.sum(x**2),
            lambda x, p: jnp.sum(p**2) / (2 + stiffness * jnp.sum(x**2)),
            0.3,
        )
        state, _ = flow.step(flow.init(x, p))
        return jnp.sum(jnp.sin(state.position) + state.momentum**2)

    value = jax.jit(lambda s: (end(s), jax.jvp(end, (s,), (1.0,))[1], jax.grad(end)(s)))
    (above, _, _), (below, _, _), (_, forwards, backwards) = map(value, (1.301, 1.299, 1.3))
    # Central difference with a step of 1e-3: the third derivative times 1e-6 / 6.
    np.testing.assert_allclose(forwards, (above - below) / 2e-3, rtol=1e-5)
    np.testing.assert_allclose(backwards, forwards, rtol=1e-10)


@pytest.mark.slow
@each_scheme
def test_a_batch_is_a_stack_of_single_steps(scheme):
    """Each member stops on its own, so its result does not depend on its neighbours."""
    scale = np.array([0.0, 0.5, 1.5])
    many = [scale[:, None] * x for x in start_of(np.float64)]

    @jax.jit
    def both(many):
        flow = scheme(coupled, moving_mass, 0.2)

        def step(start):
            return flow.step(flow.init(*start))

        return jax.vmap(step)(many), jax.lax.map(step, many)

    (together, infos), (alone, single) = both(many)
    # The same operations in loops of other shapes.
    chex.assert_trees_all_close(together, alone, rtol=0, atol=1e-13)
    np.testing.assert_array_equal(infos.iterations, single.iterations)
    assert len(set(np.asarray(infos.iterations))) > 1


@each_scheme
def test_what_the_energy_returns_besides_and_leaves_without_mass(scheme):
    """``aux`` is that of the end, and a leaf whose momentum has no energy stays."""

    def energy_fn(x):
        value = jnp.sum(x["a"] ** 2) + jnp.sum(x["b"] ** 2).astype(x["a"].dtype)
        return value, {"position": x}

    flow = scheme(energy_fn, lambda x, p: 0.5 * p["a"] ** 2, 0.1, has_aux=True)
    start = {"a": 1, "b": np.ones(2, np.float32)}
    state, info = jax.jit(lambda x: flow.step(flow.init(x)))(start)
    chex.assert_trees_all_equal(info.aux["position"], state.position)
    np.testing.assert_array_equal(state.position["b"], 1.0)
    assert state.position["a"] != 1.0
    chex.assert_type([state.position["b"], state.momentum["b"]], np.float32)


@each_scheme
def test_a_complex_position_is_refused(scheme):
    flow = scheme(no_potential, moving_mass, 0.1)
    with pytest.raises(ValueError, match="position"):
        jax.eval_shape(flow.init, np.ones(2, complex))


@pytest.mark.slow
@each_scheme
def test_energy_error_is_bounded_over_ten_thousand_steps(scheme):
    state = begin(*start_of(np.float64))

    @jax.jit
    def energies(state):
        flow = scheme(coupled, moving_mass, 0.2)
        return rollout(flow, state, 10_000)[1].total

    position, momentum = start_of(np.float64)
    start = float(coupled(position) + moving_mass(position, momentum))
    error = np.asarray(energies(state)) - start
    assert np.abs(error).max() < 0.05 * start
    assert np.abs(error[-1000:]).max() < 1.05 * np.abs(error[:1000]).max()

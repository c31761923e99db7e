"""Symplectic schemes against exact solutions: order, reversibility, the symplectic form, energy,
friction, mass.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from vfejax.dynamics.hamiltonian import (
    HamiltonianState,
    kinetic_energy,
    symplectic,
    velocity_verlet,
    yoshida4,
)
from vfejax.dynamics.rollout import rollout

SUZUKI = 1.0 / (4.0 - 4.0 ** (1.0 / 3.0))


def suzuki4(energy_fn, step_size, mass=1.0, friction=0.0):
    """Suzuki's fourth-order composition: a third set of weights, to exercise :func:`symplectic`
    itself.
    """
    weights = (SUZUKI, SUZUKI, 1.0 - 4.0 * SUZUKI, SUZUKI, SUZUKI)
    return symplectic(energy_fn, step_size, weights, mass=mass, friction=friction)


# A new scheme joins every test below by one line: factory and order.
SCHEMES = [
    pytest.param(velocity_verlet, 2, id="velocity_verlet"),
    pytest.param(yoshida4, 4, id="yoshida4"),
    pytest.param(suzuki4, 4, id="suzuki4"),
]
each_scheme = pytest.mark.parametrize(
    "scheme", [pytest.param(p.values[0], id=p.id) for p in SCHEMES]
)
each_scheme_and_kind = pytest.mark.parametrize(
    ("scheme", "kind"),
    [
        pytest.param(
            p.values[0],
            kind,
            id=f"{p.id}-{kind}",
            marks=pytest.mark.slow if kind == "float32" and p.id != "velocity_verlet" else (),
        )
        for p in SCHEMES
        for kind in ("float32", "float64")
    ],
)

STIFFNESS = {"a": 2.0, "b": 0.7}
MASS = {"a": 1.5, "b": 0.4}
PENDULUM_MASS = np.array([0.8, 1.7])


def spring(position):
    """Two oscillators as two leaves."""
    return 0.5 * (
        STIFFNESS["a"] * jnp.sum(position["a"] ** 2) + STIFFNESS["b"] * position["b"] ** 2
    )


def pendulum(x):
    """Anharmonic, and no sum over coordinates: the Hessian has off-diagonal entries that move."""
    return 1.5 - jnp.cos(x[0] - x[1]) - 0.5 * jnp.cos(x[0] + 2.0 * x[1])


def mixed(position):
    """Couples the leaves of a dictionary anharmonically."""
    x, y = position["x"], position["y"]
    return 1.0 - jnp.cos(x[0] - y) + 0.5 * x[1] ** 2 * (1.0 + 0.3 * jnp.sin(y)) + 0.1 * y**2


def mixed_start(dtype):
    position = {"x": np.array([0.4, -0.7], dtype), "y": np.array(0.9, dtype)}
    momentum = {"x": np.array([0.3, 0.5], dtype), "y": np.array(-0.2, dtype)}
    return position, momentum


begin = jax.jit(velocity_verlet(mixed, 0.1).init)


@partial(jax.jit, static_argnums=0)
def _advance(scheme, num_steps, step_size, mass, friction, state, strength):
    integrator = scheme(lambda x: strength * mixed(x), step_size, mass, friction)
    _, info = jax.eval_shape(integrator.step, state)
    blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), info)
    return jax.lax.fori_loop(0, num_steps, lambda _, c: integrator.step(c[0]), (state, blank))


def advance(scheme, num_steps, step_size, mass, friction, state, strength=1.0):
    """The state after so many steps in ``strength * mixed``, and its info. One program for all
    tests of a scheme in one precision.
    """
    return _advance(scheme, num_steps, step_size, mass, friction, state, strength)


def free_start(dtype):
    start = begin(*mixed_start(dtype))
    return start._replace(force=jax.tree.map(np.zeros_like, start.force))


def spring_exact(t, friction):
    """Damped oscillators, ``x'' + c x' + (k / m) x = 0``, started at ``spring_start``."""
    position, momentum = spring_start()
    out_x, out_p = {}, {}
    for name in position:
        w2, rate, m = STIFFNESS[name] / MASS[name], 0.5 * friction, MASS[name]
        omega = np.sqrt(w2 - rate**2)
        x, v = position[name], momentum[name] / m
        cos, sin, decay = np.cos(omega * t), np.sin(omega * t) / omega, np.exp(-rate * t)
        out_x[name] = decay * (x * cos + (v + rate * x) * sin)
        out_p[name] = m * decay * (v * cos - (rate * v + w2 * x) * sin)
    return out_x, out_p


def spring_start():
    position = {"a": np.array([1.0, -0.3]), "b": np.array(0.6)}
    return position, {"a": np.array([0.2, 0.8]), "b": np.array(-0.5)}


def pendulum_start():
    return np.array([0.9, -0.4]), np.array([0.3, 0.5])


def pendulum_exact(t, friction):
    """Classical Runge-Kutta with a hand-written force and 4000 steps: error near 1e-13."""

    def rhs(z):
        x, p = z[:2], z[2:]
        s, r = np.sin(x[0] - x[1]), 0.5 * np.sin(x[0] + 2.0 * x[1])
        return np.concatenate([p / PENDULUM_MASS, -np.array([s + r, -s + 2.0 * r]) - friction * p])

    num, z = 4000, np.concatenate(pendulum_start())
    h = t / num
    for _ in range(num):
        k1 = rhs(z)
        k2 = rhs(z + 0.5 * h * k1)
        k3 = rhs(z + 0.5 * h * k2)
        z = z + h / 6.0 * (k1 + 2.0 * k2 + 2.0 * k3 + rhs(z + h * k3))
    return z[:2], z[2:]


SYSTEMS = {
    "oscillator": (spring, spring_start, MASS, spring_exact),
    "pendulum": (pendulum, pendulum_start, PENDULUM_MASS, pendulum_exact),
}


@pytest.mark.parametrize(
    ("scheme", "order"),
    [
        pytest.param(*p.values, id=p.id, marks=pytest.mark.slow if p.id == "suzuki4" else ())
        for p in SCHEMES
    ],
)
def test_convergence_order(scheme, order):
    """Two systems side by side, as parts of one position with masses of their own."""
    time = 3.0
    energy_fns, starts, masses, exacts = (
        dict(zip(SYSTEMS, column, strict=True)) for column in zip(*SYSTEMS.values(), strict=True)
    )
    position, momentum = ({name: s()[i] for name, s in starts.items()} for i in (0, 1))

    def energy_fn(x):
        return sum(energy_fns[name](part) for name, part in x.items())

    @jax.jit
    def final(num_steps, friction):
        scheme_at = scheme(energy_fn, time / num_steps.astype(friction.dtype), masses, friction)
        start = scheme_at.init(position, momentum)
        return jax.lax.fori_loop(0, num_steps, lambda _, s: scheme_at.step(s)[0], start)

    counts = np.array([40, 60, 90, 135])
    for friction in (0.0, 0.3):
        states = [final(n, np.asarray(friction)) for n in counts]
        for name, exact in exacts.items():
            truth = _flat(exact(time, friction))
            errors = [
                np.linalg.norm(_flat((s.position[name], s.momentum[name])) - truth) for s in states
            ]
            slope = np.polyfit(np.log(time / counts), np.log(errors), 1)[0]
            # The next term of the error series is two orders up: at dt = 0.075 it bends the slope
            # by a percent or two.
            assert abs(slope - order) < 0.1, (name, friction, errors)
            # Above rounding and the oracle's own error, so that the slope means something.
            assert errors[-1] > 1e-11, (name, friction, errors)


def _flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


@each_scheme_and_kind
def test_reversible_to_rounding(scheme, kind):
    """Negate the momentum and the trajectory runs back to its start."""
    position, momentum = mixed_start(kind)
    step = 200, 0.1, {"x": 1.3, "y": 0.6}, 0.0
    there, _ = advance(scheme, *step, begin(position, momentum))
    back, _ = advance(
        scheme, *step, there._replace(momentum=jax.tree.map(np.negative, there.momentum))
    )
    middle = _flat((there.position, there.momentum))
    assert np.linalg.norm(middle - _flat((position, momentum))) > 0.1
    # 400 steps of up to five substeps, each rounding by about eps at random, on a stable orbit:
    # measured 8 to 15 eps.
    ends = back.position, jax.tree.map(np.negative, back.momentum)
    chex.assert_trees_all_close(
        ends, (position, momentum), rtol=0, atol=200 * float(jnp.finfo(kind).eps)
    )


@each_scheme_and_kind
def test_negative_step_undoes_a_step_with_friction(scheme, kind):
    """The palindrome holds with friction, too: S(-dt) S(dt) is the identity."""
    position, momentum = mixed_start(kind)
    mass = {"x": 0.7, "y": 0.7}
    state, _ = advance(scheme, 1, 0.2, mass, 0.4, begin(position, momentum))
    back, _ = advance(scheme, 1, -0.2, mass, 0.4, state)
    chex.assert_trees_all_close(
        (back.position, back.momentum),
        (position, momentum),
        rtol=0,
        atol=100 * float(jnp.finfo(kind).eps),
    )


@each_scheme
def test_jacobian_scales_the_symplectic_form(scheme):
    """``J^T Omega J = exp(-c dt) Omega`` for a long step, so that nothing holds merely by
    smallness.
    """
    dt = 0.5
    flat, unravel = ravel_pytree(mixed_start(np.float64))

    @jax.jit
    @jax.jacfwd
    def jacobian_of_step(z, friction):
        integrator = scheme(mixed, dt, {"x": 1.3, "y": 0.6}, friction)
        state, _ = integrator.step(integrator.init(*unravel(z)))
        return ravel_pytree((state.position, state.momentum))[0]

    omega = np.kron(np.array([[0.0, 1.0], [-1.0, 0.0]]), np.eye(3))
    # A product of at most five substeps of 6 x 6 matrices with entries of order 1.
    atol = 100 * float(jnp.finfo(np.float64).eps)
    for friction in (0.0, 0.4):
        jacobian = np.asarray(jacobian_of_step(flat, friction))
        np.testing.assert_allclose(
            jacobian.T @ omega @ jacobian, np.exp(-friction * dt) * omega, rtol=0, atol=atol
        )
        assert np.abs(jacobian - np.eye(6)).max() > 0.1


@pytest.mark.parametrize(
    ("scheme", "kind"),
    [(velocity_verlet, "float32"), (yoshida4, "float64"), (suzuki4, "float32")],
)
def test_energy_error_is_bounded_over_ten_thousand_steps(scheme, kind):
    num = 10_000
    integrator = scheme(pendulum, 0.2)
    x, p = (a.astype(kind) for a in pendulum_start())

    @jax.jit
    def energies(x, p):
        start = pendulum(x) + kinetic_energy(p)
        return start, rollout(integrator, integrator.init(x, p), num)[1].total

    start, total = (np.asarray(found, np.float64) for found in energies(x, p))
    error = total - start
    first, last = error[: num // 10], error[-num // 10 :]
    # Rounding makes the energy walk at random.
    rounding = np.sqrt(num) * float(jnp.finfo(kind).eps)
    assert np.abs(error).max() < 0.02 * start
    assert np.abs(last).max() < 1.05 * np.abs(first).max() + rounding
    # A tenth is 200 time units, tens of periods, so the means agree far better than the error
    # oscillates.
    assert abs(last.mean() - first.mean()) < 0.01 * np.ptp(first) + rounding


@each_scheme_and_kind
def test_friction_decays_a_free_particle_exactly(scheme, kind):
    dt, rate, mass = 0.15, 0.6, {"x": 2.0, "y": 2.0}
    start = free_start(kind)
    kinetic = np.sum(_flat(start.momentum) ** 2) / 4.0
    # Every kick rounds an exponential and a product: 2 x 5 x 20 of them at most.
    rtol = 400 * float(jnp.finfo(kind).eps)
    for num in (7, 20):
        decay = np.exp(-rate * dt * num)
        state, info = advance(scheme, num, dt, mass, rate, start, 0.0)
        expected = jax.tree.map(lambda p, d=decay: (np.asarray(p) * d).astype(kind), start.momentum)
        chex.assert_trees_all_close(state.momentum, expected, rtol=rtol)
        np.testing.assert_allclose(info.total, kinetic * decay**2, rtol=rtol)


@each_scheme_and_kind
def test_free_particle_moves_straight_without_friction(scheme, kind):
    start = free_start(kind)
    state, _ = advance(scheme, 20, 0.15, {"x": 2.0, "y": 2.0}, 0.0, start, 0.0)
    chex.assert_trees_all_equal(state.momentum, start.momentum)
    expected = _flat(start.position) + 20 * 0.15 * _flat(start.momentum) / 2.0
    np.testing.assert_allclose(
        _flat(state.position), expected, rtol=0, atol=200 * float(jnp.finfo(kind).eps)
    )


@each_scheme_and_kind
def test_infinite_mass_freezes_its_leaves(scheme, kind):
    start = begin(*mixed_start(kind))
    state, info = advance(scheme, 20, 0.1, {"x": np.inf, "y": 0.6}, 0.0, start)
    np.testing.assert_array_equal(state.position["x"], start.position["x"])
    assert abs(float(state.position["y"] - start.position["y"])) > 0.1
    np.testing.assert_allclose(
        info.kinetic, state.momentum["y"] ** 2 / 1.2, rtol=10 * float(jnp.finfo(kind).eps)
    )
    chex.assert_tree_all_finite(info)


def test_kinetic_energy_per_leaf():
    """Masses: a scalar, one per leaf, one per element, infinite."""
    momentum = (np.array([1.0, -2.0], np.float32), np.array(3.0, np.float32))
    cases = [
        (2.0, ([2.0, 2.0], 2.0)),
        ((0.5, 4.0), ([0.5, 0.5], 4.0)),
        ((np.array([0.5, 1.0], np.float32), 4.0), ([0.5, 1.0], 4.0)),
        ((np.inf, 4.0), ([np.inf, np.inf], 4.0)),
    ]
    actual = jax.jit(lambda p: [kinetic_energy(p, mass) for mass, _ in cases])(momentum)
    expected = [
        sum(np.sum(p**2 / (2.0 * np.asarray(m))) for p, m in zip(momentum, masses, strict=True))
        for _, masses in cases
    ]
    np.testing.assert_allclose(actual, expected, rtol=1e-6)


@each_scheme_and_kind
def test_info_and_force_belong_to_the_position_arrived_at(scheme, kind):
    start = begin(*mixed_start(kind))
    state, info = advance(scheme, 1, 0.3, {"x": 1.3, "y": 0.6}, 0.2, start)
    rtol = 20 * float(jnp.finfo(kind).eps)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.momentum)
    kinetic = np.sum(p["x"] ** 2) / 2.6 + p["y"] ** 2 / 1.2
    np.testing.assert_allclose(info.potential, jax.jit(mixed)(state.position), rtol=rtol)
    np.testing.assert_allclose(info.kinetic, kinetic, rtol=rtol)
    np.testing.assert_allclose(info.total, info.potential + info.kinetic, rtol=rtol)
    assert info.aux is None
    chex.assert_trees_all_close(state.force, begin(state.position).force, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("scheme", [velocity_verlet, yoshida4])
def test_aux_is_returned_from_the_position_arrived_at(scheme):
    def energy_fn(position):
        value = mixed(position)
        return value, {"twice": 2.0 * value, "position": position}

    flow = scheme(energy_fn, 0.1, has_aux=True)
    state, info = jax.jit(lambda *start: flow.step(flow.init(*start)))(*mixed_start(np.float64))
    start = begin(*mixed_start(np.float64))
    expected, _ = advance(scheme, 1, 0.1, {"x": 1.0, "y": 1.0}, 0.0, start)
    np.testing.assert_array_equal(info.aux["twice"], 2.0 * info.potential)
    chex.assert_trees_all_equal(info.aux["position"], state.position)
    # Two programs, which XLA may fuse differently.
    chex.assert_trees_all_close(state, expected, rtol=0, atol=1e-14)


def test_starts_at_rest_by_default(dtype):
    position, _ = mixed_start(dtype)
    still = jax.tree.map(np.zeros_like, position)
    state = begin(position)
    assert isinstance(state, HamiltonianState)
    chex.assert_trees_all_equal(state.momentum, still)
    chex.assert_trees_all_equal_dtypes(state.momentum, still)
    chex.assert_trees_all_equal(state, begin(position, still))


@pytest.mark.parametrize(
    ("momentum", "message"),
    [
        ({"a": np.ones(1), "b": np.ones(())}, r"\(3,\), .* got \{\"\['a'\]\": \(1,\)"),
        ({"a": np.ones(3)}, r"momentum must have the shapes of position, .* got \{\"\['a'\]"),
    ],
)
def test_the_momentum_has_the_shapes_of_the_position(momentum, message):
    flow = velocity_verlet(lambda x: jnp.sum(x["a"]) + x["b"], 0.1)
    with pytest.raises(ValueError, match=message):
        flow.init({"a": np.ones(3), "b": np.ones(())}, momentum)


def test_mass_must_be_a_prefix_of_the_position():
    integrator = velocity_verlet(mixed, 0.1, {"x": 1.0, "z": 2.0})
    with pytest.raises(ValueError, match="z"):
        jax.eval_shape(integrator.step, begin(*mixed_start(np.float64)))


def test_verlet_is_the_composition_of_one():
    def composed(energy_fn, step_size, mass, friction):
        return symplectic(energy_fn, step_size, (1.0,), mass=mass, friction=friction)

    start = begin(*mixed_start(np.float64))
    got, expected = (
        advance(scheme, 1, 0.1, {"x": 2.0, "y": 2.0}, 0.3, start)
        for scheme in (velocity_verlet, composed)
    )
    chex.assert_trees_all_equal(got, expected)


@each_scheme
def test_an_infinite_mass_freezes_whatever_the_force(scheme):
    @jax.jit
    def step(force):
        def energy_fn(x):
            return jnp.sum(x["a"] ** 2) + jnp.sum(force * x["b"])

        flow = scheme(energy_fn, 0.1, {"a": 1.0, "b": jnp.inf}, 0.2)
        return flow.step(flow.init({"a": jnp.ones(1), "b": jnp.zeros(1)}))

    for force in (np.inf, np.nan):
        state, info = step(force)
        np.testing.assert_array_equal(state.position["b"], 0.0)
        np.testing.assert_array_equal(state.momentum["b"], 0.0)
        chex.assert_tree_all_finite((state.position["a"], info.kinetic))


def test_parameters_of_any_dtype_keep_the_precision_of_the_position():
    names, values = ("step_size", "mass", "friction"), (0.1, 2.0, 0.1)
    kinds = [float, np.float64, lambda x: jnp.asarray(x, jnp.float64), np.float32]

    def end(kind):
        options = {name: kind(value) for name, value in zip(names, values, strict=True)}
        flow = velocity_verlet(lambda x: 0.5 * jnp.sum(x**2), **options)
        return rollout(flow, flow.init(jnp.ones(2, jnp.float32)), 3)[0].position

    found = jax.jit(lambda: [end(kind) for kind in kinds])()
    x, p, dt, mass, half = 1.0, 0.0, 0.1, 2.0, np.exp(-0.5 * 0.1 * 0.1)
    for _ in range(3):
        p = half * p - 0.5 * dt * x
        x = x + dt * p / mass
        p = half * (p - 0.5 * dt * x)
    chex.assert_trees_all_equal_dtypes(*found, jnp.float32(0))
    # Three steps with a handful of roundings each, of numbers of order 1.
    np.testing.assert_allclose(found, np.full((4, 2), x), rtol=20 * np.finfo(np.float32).eps)


def test_the_kinetic_energy_has_its_second_derivative_at_rest():
    hessian = jax.jit(jax.hessian(lambda p: kinetic_energy(p, 4.0)))(jnp.zeros(2))
    np.testing.assert_array_equal(hessian, np.eye(2) / 4)

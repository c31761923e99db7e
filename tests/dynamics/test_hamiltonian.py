"""Symplectic schemes against exact solutions: order, reversibility, the symplectic form, energy,
friction, mass.
"""

from functools import partial

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
each_scheme_and_order = pytest.mark.parametrize(("scheme", "order"), SCHEMES)

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


def mixed_state(dtype):
    position = {"x": jnp.array([0.4, -0.7], dtype), "y": jnp.array(0.9, dtype)}
    momentum = {"x": jnp.array([0.3, 0.5], dtype), "y": jnp.array(-0.2, dtype)}
    return position, momentum


def spring_exact(t, friction):
    """Damped oscillators, ``x'' + c x' + (k / m) x = 0``, started at ``spring_start``."""
    position, momentum = jax.tree.map(np.asarray, spring_start())
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
    return {"a": jnp.array([1.0, -0.3]), "b": jnp.array(0.6)}, {
        "a": jnp.array([0.2, 0.8]),
        "b": jnp.array(-0.5),
    }


def pendulum_start():
    return jnp.array([0.9, -0.4]), jnp.array([0.3, 0.5])


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


@pytest.mark.parametrize(
    ("energy_fn", "start", "mass", "exact"),
    [
        pytest.param(spring, spring_start, MASS, spring_exact, id="oscillator"),
        pytest.param(pendulum, pendulum_start, PENDULUM_MASS, pendulum_exact, id="pendulum"),
    ],
)
@each_scheme_and_order
def test_convergence_order(scheme, order, energy_fn, start, mass, exact):
    time = 3.0

    @jax.jit
    def final(num_steps, friction):
        scheme_at = scheme(energy_fn, time / num_steps.astype(friction.dtype), mass, friction)
        state = jax.lax.fori_loop(
            0, num_steps, lambda _, s: scheme_at.step(s)[0], scheme_at.init(*start())
        )
        return ravel_pytree((state.position, state.momentum))[0]

    counts = np.array([40, 60, 90, 135])
    for friction in (0.0, 0.3):
        truth = ravel_pytree(exact(time, friction))[0]
        errors = [
            np.linalg.norm(final(jnp.asarray(n), jnp.asarray(friction)) - truth) for n in counts
        ]
        slope = np.polyfit(np.log(time / counts), np.log(errors), 1)[0]
        # The next term of the error series is two orders up: at dt = 0.075 it bends the slope by a
        # percent or two.
        assert abs(slope - order) < 0.1, (friction, errors)
        assert (
            errors[-1] > 1e-11
        )  # above rounding and the oracle's own error, so the slope means something


@each_scheme
def test_reversible_to_rounding(scheme, dtype):
    """Negate the momentum and the trajectory runs back to its start."""
    integrator = scheme(mixed, 0.1, {"x": 1.3, "y": 0.6})
    position, momentum = mixed_state(dtype)
    roll = jax.jit(lambda s: rollout(integrator, s, 200)[0])
    there = roll(integrator.init(position, momentum))
    turned = there._replace(momentum=jax.tree.map(jnp.negative, there.momentum))
    back = roll(turned)
    ends = (position, momentum), (there.position, there.momentum), (back.position, back.momentum)
    start, middle, end = (np.asarray(ravel_pytree(tree)[0]) for tree in ends)
    sign = np.array([1, 1, 1, -1, -1, -1])
    assert np.linalg.norm(middle - start) > 0.1
    # 400 steps of up to five substeps, each rounding by about eps at random, on a stable orbit:
    # measured 8 to 15 eps.
    np.testing.assert_allclose(end * sign, start, rtol=0, atol=200 * float(jnp.finfo(dtype).eps))


@each_scheme
def test_negative_step_undoes_a_step_with_friction(scheme, dtype):
    """The palindrome holds with friction, too: S(-dt) S(dt) is the identity."""
    position, momentum = mixed_state(dtype)
    forward, backward = (scheme(mixed, dt, 0.7, 0.4) for dt in (0.2, -0.2))
    state, _ = forward.step(forward.init(position, momentum))
    back, _ = backward.step(state)
    start, end = (
        ravel_pytree(tree)[0] for tree in ((position, momentum), (back.position, back.momentum))
    )
    np.testing.assert_allclose(end, start, rtol=0, atol=100 * float(jnp.finfo(dtype).eps))


@each_scheme
def test_jacobian_scales_the_symplectic_form(scheme, dtype):
    """``J^T Omega J = exp(-c dt) Omega`` for a long step, so that nothing holds merely by
    smallness.
    """
    dt = 0.5
    flat, unravel = ravel_pytree(mixed_state(dtype))

    @jax.jit
    @jax.jacfwd
    def jacobian_of_step(z, friction):
        integrator = scheme(mixed, dt, {"x": 1.3, "y": 0.6}, friction)
        state, _ = integrator.step(integrator.init(*unravel(z)))
        return ravel_pytree((state.position, state.momentum))[0]

    omega = np.kron(np.array([[0.0, 1.0], [-1.0, 0.0]]), np.eye(3))
    # A product of at most five substeps of 6 x 6 matrices with entries of order 1.
    atol = 100 * float(jnp.finfo(dtype).eps)
    for friction in (0.0, 0.4):
        jacobian = np.asarray(jacobian_of_step(flat, jnp.asarray(friction, dtype)), np.float64)
        np.testing.assert_allclose(
            jacobian.T @ omega @ jacobian, np.exp(-friction * dt) * omega, rtol=0, atol=atol
        )
        assert np.abs(jacobian - np.eye(6)).max() > 0.1


@each_scheme
def test_energy_error_is_bounded_over_ten_thousand_steps(scheme, dtype):
    num = 10_000
    integrator = scheme(pendulum, 0.2)
    x, p = jax.tree.map(lambda a: a.astype(dtype), pendulum_start())
    _, info = jax.jit(lambda s: rollout(integrator, s, num))(integrator.init(x, p))
    start = float(pendulum(x) + kinetic_energy(p))
    error = np.asarray(info.total, np.float64) - start
    first, last = error[: num // 10], error[-num // 10 :]
    # Rounding makes the energy walk at random.
    rounding = np.sqrt(num) * float(jnp.finfo(dtype).eps)
    assert np.abs(error).max() < 0.02 * start
    assert np.abs(last).max() < 1.05 * np.abs(first).max() + rounding
    # A tenth is 200 time units, tens of periods, so the means agree far better than the error
    # oscillates.
    assert abs(last.mean() - first.mean()) < 0.01 * np.ptp(first) + rounding


@each_scheme
def test_friction_decays_a_free_particle_exactly(scheme, dtype):
    dt, rate, num = 0.15, 0.6, 20
    integrator = scheme(lambda x: 0.0 * jnp.sum(x), dt, 2.0, rate)
    momentum = jnp.array([1.0, -3.0], dtype)
    state, info = rollout(integrator, integrator.init(jnp.zeros(2, dtype), momentum), num)
    # Every kick rounds an exponential and a product: 2 x 5 x 20 of them at most.
    rtol = 400 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        state.momentum, momentum * np.exp(-rate * dt * num).astype(dtype), rtol=rtol
    )
    times = dt * np.arange(1, num + 1)
    np.testing.assert_allclose(info.total, 10.0 / 4.0 * np.exp(-2.0 * rate * times), rtol=rtol)


@each_scheme
def test_free_particle_moves_straight_without_friction(scheme, dtype):
    integrator = scheme(lambda x: 0.0 * jnp.sum(x), 0.15, 2.0)
    momentum = jnp.array([1.0, -3.0], dtype)
    state, _ = rollout(integrator, integrator.init(jnp.ones(2, dtype), momentum), 20)
    np.testing.assert_array_equal(state.momentum, momentum)
    expected = 1.0 + 20 * 0.15 * np.asarray(momentum) / 2.0
    np.testing.assert_allclose(
        state.position, expected, rtol=0, atol=200 * float(jnp.finfo(dtype).eps)
    )


@each_scheme
def test_infinite_mass_freezes_its_leaves(scheme, dtype):
    mass = {"x": jnp.inf, "y": 0.6}
    integrator = scheme(mixed, 0.1, mass)
    position, momentum = mixed_state(dtype)
    state, info = rollout(integrator, integrator.init(position, momentum), 20)
    np.testing.assert_array_equal(state.position["x"], position["x"])
    assert abs(float(state.position["y"] - position["y"])) > 0.1
    np.testing.assert_allclose(
        info.kinetic[-1], state.momentum["y"] ** 2 / 1.2, rtol=10 * float(jnp.finfo(dtype).eps)
    )
    assert np.all(np.isfinite(info.total))


@pytest.mark.parametrize(
    ("mass", "weights"),
    [
        pytest.param(2.0, ([2.0, 2.0], 2.0), id="scalar"),
        pytest.param((0.5, 4.0), ([0.5, 0.5], 4.0), id="leaf"),
        pytest.param((np.array([0.5, 1.0], np.float32), 4.0), ([0.5, 1.0], 4.0), id="element"),
        pytest.param((np.inf, 4.0), ([np.inf, np.inf], 4.0), id="infinite"),
    ],
)
def test_kinetic_energy_per_leaf(mass, weights):
    momentum = (jnp.array([1.0, -2.0], jnp.float32), jnp.array(3.0, jnp.float32))
    expected = sum(
        np.sum(np.asarray(p) ** 2 / (2.0 * np.asarray(m)))
        for p, m in zip(momentum, weights, strict=True)
    )
    np.testing.assert_allclose(kinetic_energy(momentum, mass), expected, rtol=1e-6)


@each_scheme
def test_info_and_force_belong_to_the_position_arrived_at(scheme, dtype):
    mass = {"x": 1.3, "y": 0.6}
    integrator = scheme(mixed, 0.3, mass, 0.2)
    state, info = jax.jit(integrator.step)(integrator.init(*mixed_state(dtype)))
    rtol = 20 * float(jnp.finfo(dtype).eps)
    potential, gradient = jax.value_and_grad(mixed)(state.position)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), state.momentum)
    kinetic = np.sum(p["x"] ** 2) / 2.6 + p["y"] ** 2 / 1.2
    np.testing.assert_allclose(info.potential, potential, rtol=rtol)
    np.testing.assert_allclose(info.kinetic, kinetic, rtol=rtol)
    np.testing.assert_allclose(info.total, info.potential + info.kinetic, rtol=rtol)
    assert info.aux is None
    for name in gradient:
        np.testing.assert_allclose(state.force[name], -gradient[name], rtol=rtol, atol=rtol)


@pytest.mark.parametrize("scheme", [velocity_verlet, yoshida4, partial(symplectic, weights=(1.0,))])
def test_aux_is_returned_from_the_position_arrived_at(scheme):
    def energy_fn(position):
        value = mixed(position)
        return value, {"twice": 2.0 * value, "position": position}

    start = mixed_state(jnp.float64)
    with_aux, plain = scheme(energy_fn, step_size=0.1, has_aux=True), scheme(mixed, step_size=0.1)
    state, info = jax.jit(with_aux.step)(with_aux.init(*start))
    expected, _ = jax.jit(plain.step)(plain.init(*start))
    np.testing.assert_array_equal(info.aux["twice"], 2.0 * info.potential)
    jax.tree.map(np.testing.assert_array_equal, info.aux["position"], state.position)
    # Two programs, which XLA may fuse differently.
    jax.tree.map(partial(np.testing.assert_allclose, rtol=0, atol=1e-14), state, expected)


def test_starts_at_rest_by_default(dtype):
    position, _ = mixed_state(dtype)
    state = velocity_verlet(mixed, 0.1).init(position)
    assert isinstance(state, HamiltonianState)
    for name, x in position.items():
        np.testing.assert_array_equal(state.momentum[name], np.zeros_like(x), strict=True)
    explicit = velocity_verlet(mixed, 0.1).init(position, jax.tree.map(jnp.zeros_like, position))
    jax.tree.map(np.testing.assert_array_equal, state, explicit)


def test_mass_must_be_a_prefix_of_the_position():
    integrator = velocity_verlet(mixed, 0.1, {"x": 1.0, "z": 2.0})
    with pytest.raises(ValueError, match="z"):
        integrator.step(integrator.init(*mixed_state(jnp.float64)))


def test_verlet_is_the_composition_of_one():
    start = mixed_state(jnp.float64)
    direct, composed = (
        velocity_verlet(mixed, 0.1, 2.0, 0.3),
        symplectic(mixed, 0.1, (1.0,), mass=2.0, friction=0.3),
    )
    got, expected = (jax.jit(i.step)(i.init(*start)) for i in (direct, composed))
    jax.tree.map(np.testing.assert_array_equal, got, expected)


@each_scheme
@pytest.mark.parametrize("force", [np.inf, np.nan])
def test_an_infinite_mass_freezes_whatever_the_force(scheme, force):
    def energy_fn(x):
        return jnp.sum(x["a"] ** 2) + jnp.sum(force * x["b"])

    flow = scheme(energy_fn, 0.1, {"a": 1.0, "b": jnp.inf}, 0.2)
    state, info = flow.step(flow.init({"a": jnp.ones(1), "b": jnp.zeros(1)}))
    np.testing.assert_array_equal(state.position["b"], 0.0)
    np.testing.assert_array_equal(state.momentum["b"], 0.0)
    assert np.isfinite(state.position["a"]).all()
    assert np.isfinite(info.kinetic)


@pytest.mark.parametrize("kind", [np.float64, lambda x: jnp.asarray(x, jnp.float64), np.float32])
@pytest.mark.parametrize("name", ["step_size", "mass", "friction"])
def test_parameters_of_any_dtype_keep_the_precision_of_the_position(name, kind):
    def end(**parameters):
        options = {"step_size": 0.1, "mass": 2.0, "friction": 0.1, **parameters}
        flow = velocity_verlet(lambda x: 0.5 * jnp.sum(x**2), **options)
        return rollout(flow, flow.init(jnp.ones(2, jnp.float32)), 3)[0].position

    value = {"step_size": 0.1, "mass": 2.0, "friction": 0.1}[name]
    actual = end(**{name: kind(value)})
    assert actual.dtype == jnp.float32
    # One more rounding of the parameter.
    np.testing.assert_allclose(actual, end(), rtol=3 * np.finfo(np.float32).eps)


def test_friction_of_another_dtype_gives_the_known_position():
    flow = velocity_verlet(lambda x: 0.5 * jnp.sum(x**2), 0.1, friction=np.float64(0.1))
    state, _ = rollout(flow, flow.init(jnp.ones(2, jnp.float32)), 3)
    np.testing.assert_allclose(state.position, 0.95569354, rtol=1e-6)


def test_the_kinetic_energy_has_its_second_derivative_at_rest():
    hessian = jax.hessian(lambda p: kinetic_energy(p, 4.0))(jnp.zeros(2))
    np.testing.assert_array_equal(hessian, np.eye(2) / 4)

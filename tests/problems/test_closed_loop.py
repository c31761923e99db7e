"""Closed loops against the matrix exponential of a linear one, written row by row."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from vfejax.inference.generalized_filtering import (
    active_filtering,
    hierarchical_models,
    identity_metric,
    natural_metric,
    temporal_covariance,
)
from vfejax.problems import closed_loop, mass_spring

DT, NUM = 0.1, 60
MASS, STIFFNESS, DAMPING = 1.5, 2.0, 0.3
OPTIONS = {"frequency": 1.2, "smoothness": 0.7, "sensor_precision": 2.0, "motion_precision": 30.0}
RATES = {"natural": (natural_metric, 10.0, 8.0), "plain": (identity_metric, 0.5, 4.0)}


def _agent(metric="natural", dt=DT, dtype=jnp.float64):
    """An agent that takes the mass for 1."""
    metric_fn, rate, action_rate = RATES[metric]
    model, own = mass_spring.goal_model(**OPTIONS, goal_precision=50.0), mass_spring.mass_spring()
    agent = active_filtering.active_filter(
        model,
        active_filtering.forward_model(own.motion_fn, own.sensor_fn, 2),
        dt,
        rate=rate,
        action_rate=action_rate,
        metric_fn=metric_fn,
    )
    hyper = hierarchical_models.zero_hyperparameters(model, dtype)
    return agent, agent.init((None,), hyper, jnp.zeros(1, dtype))


def _outside(num, goal=1.0, noise=None, dtype=jnp.float64):
    noise = np.zeros((num, 2, 2)) if noise is None else noise
    return hierarchical_models.Observation(
        jnp.asarray(noise, dtype), jnp.full((num, 1, 1), goal, dtype)
    )


def _dense(metric, load):
    """The loop as ``d(x, mu, mu', cause, a, z, z', 1) / dt = L (...)``, for a goal of 1."""
    _, rate, action_rate = RATES[metric]
    force = np.array([[0.0, 1.0], [-STIFFNESS / MASS, -DAMPING / MASS]])
    lever = np.array([[0.0], [1 / MASS]])
    pull = np.array([[0.0, 1.0], [-(1.2**2), -2 * 1.2]])
    eye = np.eye(2)
    x, mu, slope, cause, action, z, slope_z, one = np.split(
        np.eye(13), np.cumsum([2, 2, 2, 1, 1, 2, 2]), axis=0
    )
    moved = force @ x + lever @ action + lever @ one * load
    errors = [x + z - mu, moved + slope_z - slope]
    errors += [slope - pull @ mu - np.array([[0.0], [1.2**2]]) @ cause, cause - one]
    # The derivative of smooth noise has variance 1 / 2 s^2.
    weights = [2.0 * eye, 2.0 * 2 * 0.7**2 * eye, 30.0 * eye, 50.0 * np.eye(1)]
    own = np.vstack([mu, slope, cause])
    slopes = [-own[:2], -own[2:4], own[2:4] - pull @ own[:2], own[4:]]
    slopes = [row @ own.T for row in slopes]
    slopes[2] = slopes[2] - np.array([[0.0], [1.2**2]]) @ cause @ own.T
    curvature = sum(s.T @ w @ s for s, w in zip(slopes, weights, strict=True))
    gradient = sum(s.T @ w @ e for s, w, e in zip(slopes, weights, errors, strict=True))
    forward = np.array([[0.0], [1.0]])  # the agent's own mass is 1
    descent = np.eye(5) if metric == "plain" else np.linalg.inv(curvature)
    reflex = -action_rate * forward.T @ weights[1] @ errors[1]
    motion = np.vstack([slope, np.zeros((3, 13))])
    rows = [moved, motion - rate * descent @ gradient, reflex, slope_z, np.zeros((3, 13))]
    return np.vstack(rows)


@pytest.fixture(scope="module")
def approach():
    """One program for several tests: an approach to the goal in a world with a given load."""
    agent, start = _agent()

    @jax.jit
    def run(state, outside, load, mass=MASS):
        world = mass_spring.mass_spring(mass, STIFFNESS, DAMPING, load)
        return closed_loop.run_loop(closed_loop.closed_loop(world, agent, DT), state, outside)

    return run, closed_loop.LoopState(jnp.array([0.2, -0.1]), start)


def _flat(state):
    path = state.agent.belief.path
    parts = state.world, jnp.ravel(path.states[0]), jnp.ravel(path.causes[0]), state.agent.action
    return np.concatenate(parts, axis=-1)


def test_a_linear_loop_is_a_matrix_exponential(approach):
    run, start = approach
    _, info = run(start, _outside(NUM), 0.5)
    matrix = _dense("natural", 0.5)
    begin = np.concatenate([[0.2, -0.1], np.zeros(6), np.zeros(4), [1.0]])
    for i in (1, 10, 59):
        exact = (scipy.linalg.expm(i * DT * matrix) @ begin)[:8]
        found = _flat(jax.tree.map(lambda x, i=i: x[i], info.state))
        # Rounding of |L| dt, about 100, in 60 steps.
        np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-11)


def test_noise_of_sensors_moves_along_its_series_within_a_step(approach, rng):
    run, start = approach
    noise = rng.normal(size=(NUM, 2, 2))
    _, info = run(start, _outside(NUM, noise=noise), 0.5)
    matrix = _dense("natural", 0.5)
    step, exact = scipy.linalg.expm(DT * matrix), np.zeros(8)
    exact[:2] = 0.2, -0.1
    for k in range(3):
        exact = (step @ np.concatenate([exact, np.ravel(noise[k]), [1.0]]))[:8]
    found = _flat(jax.tree.map(lambda x: x[3], info.state))
    np.testing.assert_allclose(found, exact, rtol=1e-10, atol=1e-11)


def test_the_reflex_rests_at_the_goal_whatever_load_and_mass_are(approach):
    run, start = approach
    slowest = np.linalg.eigvals(_dense("natural", 0.0)[:8, :8]).real.max()
    rounds = int(np.ceil(20 / (-slowest * NUM * DT)))  # exp(-20) = 2e-9 is left
    for load, mass in ((0.5, MASS), (-2.0, MASS), (0.5, 1.0)):
        state, energies = start, []
        for _ in range(rounds):
            state, info = run(state, _outside(NUM), load, mass)
            energies.append(float(info.belief.energy[-1]))
        np.testing.assert_allclose(state.world, [1.0, 0.0], rtol=0, atol=1e-7)
        np.testing.assert_allclose(state.agent.action, [STIFFNESS - load], rtol=0, atol=1e-6)
        np.testing.assert_allclose(energies[-1], min(energies), rtol=1e-12)


@pytest.mark.slow
def test_plain_descent_is_a_matrix_exponential_too():
    agent, start = _agent("plain")
    world = mass_spring.mass_spring(MASS, STIFFNESS, DAMPING, 0.5)
    loop = closed_loop.closed_loop(world, agent, DT)
    state, _ = jax.jit(lambda s, y: closed_loop.run_loop(loop, s, y))(
        closed_loop.LoopState(jnp.array([0.2, -0.1]), start), _outside(5)
    )
    begin = np.concatenate([[0.2, -0.1], np.zeros(10), [1.0]])
    exact = (scipy.linalg.expm(5 * DT * _dense("plain", 0.5)) @ begin)[:8]
    np.testing.assert_allclose(_flat(state), exact, rtol=1e-10, atol=1e-11)


def test_feedback_is_a_matrix_exponential_and_the_regulator_solves_riccati(rng):
    world = mass_spring.mass_spring(MASS, STIFFNESS, DAMPING)
    gain = mass_spring.regulator_gain(MASS, STIFFNESS, DAMPING, 3.0, 0.5)
    force = np.array([[0.0, 1.0], [-STIFFNESS / MASS, -DAMPING / MASS]])
    lever = np.array([[0.0], [1 / MASS]])
    riccati = scipy.linalg.solve_continuous_are(force, lever, np.diag([3.0, 0.0]), [[0.5]])
    np.testing.assert_allclose(gain, (lever.T @ riccati)[0] / 0.5, rtol=1e-12)
    start, noise = jnp.array([1.0, -0.5]), rng.normal(size=(4, 2, 2))
    states, actions = closed_loop.run_feedback(
        world, lambda y: -jnp.asarray(gain) @ y[:, None], start, jnp.asarray(noise), DT
    )
    closed = np.zeros((6, 6))
    closed[:2, :2], closed[:2, 2:4] = force - lever * gain, -lever * gain
    closed[2:4, 4:] = np.eye(2)
    exact, step = np.asarray(start), scipy.linalg.expm(DT * closed)
    for k in range(3):
        np.testing.assert_allclose(states[k], exact, rtol=1e-12, atol=1e-13)
        np.testing.assert_allclose(actions[k], [-gain @ (exact + noise[k, 0])], rtol=1e-12)
        exact = (step @ np.concatenate([exact, np.ravel(noise[k])]))[:2]


def test_tracking_gains_give_the_expected_approach():
    gain = mass_spring.tracking_gain(1.2, MASS, STIFFNESS, DAMPING)
    world = mass_spring.mass_spring(MASS, STIFFNESS, DAMPING)
    x = jnp.array([0.4, 0.7])
    force = STIFFNESS * 1.0 - gain @ (np.asarray(x) - [1.0, 0.0])
    expected = mass_spring.goal_model(**OPTIONS).levels[0].motion_fn(x, jnp.ones(1), None)
    np.testing.assert_allclose(world.motion_fn(x, jnp.asarray([force])), expected, rtol=1e-13)


def test_derivatives_that_are_sensed_are_those_of_the_trajectory():
    world = closed_loop.World(
        lambda x, a: jnp.stack([x[1], a[0] - x[0] ** 2]), lambda x: jnp.sin(x[:1])
    )
    x, v, a = 0.3, -0.4, 0.8
    found = closed_loop.sense(world, jnp.array([x, v]), jnp.array([a]), 4)[:, 0]
    speed, jerk = a - x**2, -2 * x * v
    third = np.cos(x) * jerk - 3 * np.sin(x) * v * speed - np.cos(x) * v**3
    expected = [np.sin(x), np.cos(x) * v, np.cos(x) * speed - np.sin(x) * v**2, third]
    np.testing.assert_allclose(found, expected, rtol=1e-13)


def test_noise_has_the_covariance_of_smooth_noise(rng):
    smoothness, dt, num = 0.5, 0.2, 60_000
    drawn = closed_loop.noise_paths(rng, num, dt, 3, smoothness, 2)
    scale = np.array([1.0, smoothness, smoothness**2])
    found = np.einsum("tio,tjo->ij", drawn, drawn) / (2 * num) * np.outer(scale, scale)
    expected = np.asarray(temporal_covariance(3, smoothness)) * np.outer(scale, scale)
    # About one independent draw per 1.8 units of time: 13,000 of them, entries below 1.
    np.testing.assert_allclose(found, expected, rtol=0, atol=0.04)
    late = np.mean(drawn[5:, 0] * drawn[:-5, 0])
    np.testing.assert_allclose(late, np.exp(-1.0 / (4 * smoothness**2)), rtol=0, atol=0.04)


def test_bad_loops_are_named(rng):
    agent, start = _agent()
    with pytest.raises(ValueError, match="dt must be above 0, got 0"):
        closed_loop.closed_loop(mass_spring.mass_spring(), agent, 0.0)
    loop = closed_loop.closed_loop(mass_spring.mass_spring(), agent, DT)
    with pytest.raises(ValueError, match=r"state must be \[n\], got shape \(2, 1\)"):
        loop.init(jnp.zeros((2, 1)), (None,), start.belief.hyper, start.action)
    with pytest.raises(ValueError, match="smoothness must be above 0, got -1"):
        closed_loop.noise_paths(rng, 3, 0.1, 2, -1.0, 1)
    with pytest.raises(ValueError, match="dt must be above 0, got 0"):
        closed_loop.noise_paths(rng, 3, 0.0, 2, 1.0, 1)
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        closed_loop.noise_paths(rng, 0, 0.1, 2, 1.0, 1)

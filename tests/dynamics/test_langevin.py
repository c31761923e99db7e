"""Langevin dynamics: its stationary covariance on a quadratic energy is exactly known, and without
noise it is descent and Verlet.
"""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.linalg import solve_discrete_lyapunov

from vfejax.dynamics.gradient_flow import gradient_flow
from vfejax.dynamics.hamiltonian import HamiltonianState, velocity_verlet
from vfejax.dynamics.langevin import LangevinState, overdamped, underdamped
from vfejax.dynamics.rollout import rollout

KEY = jax.random.key(0)
CURVATURE = np.array([[2.0, 0.6], [0.6, 1.0]])
TEMPERATURE = 0.7
MASS = 1.7


def quadratic(x):
    return 0.5 * jnp.sum(x * jnp.matmul(jnp.asarray(CURVATURE, x.dtype), x, precision="highest"))


def stationary_covariance(make, size, free):
    """Covariance of the stationary distribution of a linear step ``y <- A y + noise``, from A and
    the covariance of the noise by Lyapunov's equation, as a function of the arguments of ``make``.
    ``free`` turns numbers into a state whose force is right, and a state into numbers.
    """
    pack, unpack = free

    @jax.jit
    def parts(zero, *options):
        def step(y, key):
            return pack(make(*options).step(unpack(y), key)[0])

        keys = jax.random.split(KEY, 50_000)
        return jax.jacfwd(step)(zero, KEY), jax.vmap(lambda k: step(zero, k))(keys)

    def covariance(*options):
        transition, draws = map(np.asarray, parts(np.zeros(size), *options))
        return solve_discrete_lyapunov(transition, draws.T @ draws / len(draws))

    return covariance


OVERDAMPED = stationary_covariance(
    lambda step_size: overdamped(quadratic, step_size, TEMPERATURE, mobility=0.8),
    2,
    (lambda state: state.position, lambda x: LangevinState(x, -jax.grad(quadratic)(x))),
)
UNDERDAMPED = stationary_covariance(
    lambda step_size, friction: underdamped(quadratic, step_size, TEMPERATURE, MASS, friction),
    4,
    (
        lambda state: jnp.concatenate([state.position, state.momentum]),
        lambda y: HamiltonianState(y[:2], y[2:], -jax.grad(quadratic)(y[:2])),
    ),
)


@pytest.mark.parametrize("step_size", [0.05, 0.4])
def test_overdamped_variance_is_that_of_eulers_method(step_size):
    actual = OVERDAMPED(step_size)
    # T H^{-1} (1 - u dt H / 2)^{-1}: the target's covariance, and an error of first order in dt
    expected = TEMPERATURE * np.linalg.inv(CURVATURE @ (np.eye(2) - 0.4 * step_size * CURVATURE))
    # the noise covariance is estimated from 50,000 draws: 0.6 % of its largest entry
    np.testing.assert_allclose(actual, expected, rtol=0, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("step_size", [0.1, 1.0])
@pytest.mark.parametrize("friction", [0.5, 5.0])
def test_underdamped_position_has_the_exact_variance_at_every_step(step_size, friction):
    actual = UNDERDAMPED(step_size, friction)
    expected = TEMPERATURE * np.linalg.inv(CURVATURE)
    np.testing.assert_allclose(actual[:2, :2], expected, rtol=0, atol=0.02 * expected.max())
    # The momentum is off by second order: m T (1 - dt^2 H / 4 m).
    momentum = MASS * TEMPERATURE * (np.eye(2) - step_size**2 * CURVATURE / (4 * MASS))
    np.testing.assert_allclose(actual[2:, 2:], momentum, rtol=0, atol=0.02 * momentum.max())


@pytest.mark.slow
def test_a_long_run_visits_the_stationary_distribution():
    flow = underdamped(quadratic, 0.5, TEMPERATURE, MASS, 1.0)
    chains = jax.vmap(flow.init)(jnp.zeros((2000, 2)))
    keys = jax.random.split(KEY, 2000)
    end, _ = jax.jit(jax.vmap(lambda s, k: rollout(flow, s, 200, k)))(chains, keys)
    expected = TEMPERATURE * np.linalg.inv(CURVATURE)
    # 2000 independent draws: 3 % per standard deviation of the estimate, four of them
    np.testing.assert_allclose(np.cov(end.position.T), expected, rtol=0, atol=0.13 * expected.max())


@pytest.mark.parametrize("kind", [pytest.param("float32", marks=pytest.mark.slow), "float64"])
def test_without_noise_it_is_descent_and_verlet(kind):
    cold = overdamped(quadratic, 0.1, 0.0, mobility=0.5)
    descent = gradient_flow(quadratic, optax.sgd(0.05))
    frictionless = underdamped(quadratic, 0.1, TEMPERATURE, MASS, 0.0)
    verlet = velocity_verlet(quadratic, 0.1, MASS)
    flows = ((cold, KEY), (descent, None), (frictionless, KEY), (verlet, None))
    cold, descent, frictionless, verlet = jax.jit(
        lambda x: [rollout(flow, flow.init(x), 5, key) for flow, key in flows]
    )(np.asarray([1.0, -2.0], kind))
    eps = float(jnp.finfo(kind).eps)
    chex.assert_type(cold[0].position, kind)
    chex.assert_trees_all_close(cold[0].position, descent[0].position, rtol=20 * eps)
    chex.assert_trees_all_close(frictionless, verlet, rtol=100 * eps)


@pytest.mark.parametrize("make", [overdamped, underdamped])
def test_frozen_leaves_stay_whatever_force_and_noise(make):
    def energy_fn(x):
        return jnp.sum(x["a"] ** 2) + jnp.sum(jnp.sqrt(x["b"]))

    frozen = {"a": 1.0, "b": 0.0 if make is overdamped else jnp.inf}
    flow = make(energy_fn, 0.1, 1.0, frozen)
    start = {"a": np.ones(3), "b": np.zeros(2)}
    state, info = jax.jit(lambda x: flow.step(flow.init(x), KEY))(start)
    np.testing.assert_array_equal(state.position["b"], 0.0)
    chex.assert_tree_all_finite((state.position, info))
    assert np.all(state.position["a"] != 1.0)


@pytest.mark.parametrize("make", [overdamped, underdamped])
def test_a_step_without_a_key_says_so(make):
    flow = make(quadratic, 0.1)
    with pytest.raises(ValueError, match="a Langevin step needs a key"):
        jax.eval_shape(lambda x: flow.step(flow.init(x)), np.zeros(2))


@pytest.mark.parametrize("make", [overdamped, underdamped])
@pytest.mark.parametrize("position", [2, np.float32(2.0), np.zeros((3, 0))])
def test_numbers_integers_and_nothing_are_positions(make, position):
    flow = make(lambda x: jnp.sum(x**2), np.float32(0.1), np.float64(0.3))
    state, _ = jax.eval_shape(lambda x: flow.step(flow.init(x), KEY), position)
    chex.assert_shape(state.position, np.shape(position))


def test_leaves_feel_different_noise():
    flow = overdamped(lambda x: 0.0 * jnp.sum(x["a"] + x["b"]), 0.1)
    start = {"a": np.zeros(3), "b": np.zeros(3)}
    state, _ = jax.jit(lambda x: flow.step(flow.init(x), KEY))(start)
    assert np.all(state.position["a"] != state.position["b"])

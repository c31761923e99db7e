"""The landscape of the mountain car, and what its engine can do."""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.problems import closed_loop, mountain_car


def test_slopes_are_those_that_were_published():
    x = jnp.linspace(-2.0, 2.0, 41)
    found = jax.vmap(jax.grad(mountain_car.height))(x)
    square = np.asarray(x) ** 2
    right = (1 + 5 * square) ** -0.5 - 5 * square * (1 + 5 * square) ** -1.5 + (x / 2) ** 4
    np.testing.assert_allclose(found, np.where(x < 0, 2 * x + 1, right), rtol=1e-13, atol=1e-14)
    assert float(jax.grad(mountain_car.height)(jnp.asarray(mountain_car.VALLEY))) == 0.0


def test_energy_is_lost_to_friction_alone():
    car, x, a = mountain_car.mountain_car(friction=0.3), jnp.array([0.4, -0.7]), jnp.zeros(1)

    def energy(x):
        return mountain_car.height(x[0]) + x[1] ** 2 / 2

    power = jnp.sum(jax.grad(energy)(x) * car.motion_fn(x, a))
    np.testing.assert_allclose(power, -0.3 * 0.7**2, rtol=1e-13)


def test_full_force_from_the_valley_does_not_reach_the_goal_and_pumping_does():
    start, still = jnp.array([mountain_car.VALLEY, 0.0]), jnp.zeros((300, 1, 2))

    def run(policy_fn):
        car = mountain_car.mountain_car(friction=0.0)
        return closed_loop.run_feedback(car, policy_fn, start, still, 0.1)[0][:, 0]

    full, pumped = jax.jit(lambda: (run(lambda y: jnp.full(1, 50.0)), run(mountain_car.pumping)))()
    # Left of 0 a parabola: without friction it swings as far beyond its rest as it came from.
    np.testing.assert_allclose(full.max(), mountain_car.VALLEY + 0.25, atol=1e-4)
    assert pumped.min() < -0.9
    np.testing.assert_allclose(pumped[-1], mountain_car.GOAL, atol=0.05)


def test_the_expected_flow_keeps_the_energy_of_the_goal_and_rests_there():
    flow = mountain_car.swing_model(gain=0.8).levels[0].motion_fn
    goal = jnp.asarray(mountain_car.GOAL)
    np.testing.assert_allclose(flow(jnp.array([1.0, 0.0]), jnp.zeros(0), None), 0.0, atol=1e-3)
    place = jnp.asarray(-0.3)
    speed = jnp.sqrt(2 * (mountain_car.height(goal) - mountain_car.height(place)))
    found = flow(jnp.stack([place, speed]), jnp.zeros(0), None)
    # Nothing is pumped; the approach has a weight of exp(-20) here.
    expected = [speed, -jax.grad(mountain_car.height)(place)]
    np.testing.assert_allclose(found, np.asarray(expected), atol=1e-7)


def test_a_velocity_that_is_not_known_is_not_pumped():
    sensed = [[-0.5, 0.0], [-0.5, -0.1], [-0.5, jnp.nan], [jnp.nan, 0.0]]
    found = [float(mountain_car.pumping(jnp.array(s))[0]) for s in sensed]
    np.testing.assert_array_equal(found, [5.0, -5.0, np.nan, np.nan])

"""The landscape of the mountain car, and what its engine can do."""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.problems import closed_loop, mountain_car


def test_slopes_are_those_that_were_published():
    x = np.linspace(-2.0, 2.0, 41)
    slope = jax.jit(jax.vmap(jax.grad(mountain_car.height)))
    found = slope(x)
    square = x**2
    right = (1 + 5 * square) ** -0.5 - 5 * square * (1 + 5 * square) ** -1.5 + (x / 2) ** 4
    np.testing.assert_allclose(found, np.where(x < 0, 2 * x + 1, right), rtol=1e-13, atol=1e-14)
    assert float(slope(np.array([mountain_car.VALLEY]))[0]) == 0.0


def test_energy_is_lost_to_friction_alone():
    car = mountain_car.mountain_car(friction=0.3)

    def energy(x):
        return mountain_car.height(x[0]) + x[1] ** 2 / 2

    power = jax.jit(lambda x, a: jnp.sum(jax.grad(energy)(x) * car.motion_fn(x, a)))(
        np.array([0.4, -0.7]), np.zeros(1)
    )
    np.testing.assert_allclose(power, -0.3 * 0.7**2, rtol=1e-13)


def test_full_force_from_the_valley_does_not_reach_the_goal_and_pumping_does():
    car = mountain_car.mountain_car(friction=0.0)

    @jax.jit
    def run(start, still):
        return [
            closed_loop.run_feedback(car, policy_fn, start, still, 0.1)[0][:, 0]
            for policy_fn in (lambda y: jnp.full(1, 50.0), mountain_car.pumping)
        ]

    full, pumped = jax.device_get(run(np.array([mountain_car.VALLEY, 0.0]), np.zeros((300, 1, 2))))
    # Left of 0 a parabola: without friction it swings as far beyond its rest as it came from.
    np.testing.assert_allclose(full.max(), mountain_car.VALLEY + 0.25, rtol=0, atol=1e-4)
    assert pumped.min() < -0.9
    np.testing.assert_allclose(pumped[-1], mountain_car.GOAL, rtol=0, atol=0.05)


def test_the_expected_flow_keeps_the_energy_of_the_goal_and_rests_there():
    motion_fn = mountain_car.swing_model(gain=0.8).levels[0].motion_fn
    flow = jax.jit(lambda x: motion_fn(x, jnp.zeros(0), None))
    heights = jax.jit(jax.vmap(jax.value_and_grad(mountain_car.height)))
    np.testing.assert_allclose(flow(np.array([1.0, 0.0])), 0.0, rtol=0, atol=1e-3)
    place = -0.3
    (goal, here), (_, slope) = jax.device_get(heights(np.array([mountain_car.GOAL, place])))
    speed = np.sqrt(2 * (goal - here))
    # Nothing is pumped; the approach has a weight of exp(-20) here.
    np.testing.assert_allclose(flow(np.array([place, speed])), [speed, -slope], rtol=0, atol=1e-7)


def test_a_velocity_that_is_not_known_is_not_pumped():
    sensed = np.array([[-0.5, 0.0], [-0.5, -0.1], [-0.5, np.nan], [np.nan, 0.0]])
    found = jax.jit(jax.vmap(mountain_car.pumping))(sensed)
    np.testing.assert_array_equal(found[:, 0], [5.0, -5.0, np.nan, np.nan])

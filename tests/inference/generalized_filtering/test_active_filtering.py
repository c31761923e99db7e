"""Active filtering: action descends the free energy of perception, through what is sensed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree
from jax.test_util import check_grads

from vfejax.inference.generalized_filtering import active_filtering, natural_metric, path_energy
from vfejax.inference.generalized_filtering import hierarchical_models as hm
from vfejax.inference.generalized_filtering.generalized_coordinates import shift
from vfejax.problems import closed_loop, mass_spring, mountain_car

ORDER = 3


def _agent(dt=0.1, dtype=jnp.float64, order=ORDER, **rates):
    model, own = mass_spring.goal_model(order=order), mass_spring.mass_spring(mass=2.0)
    forward_fn = active_filtering.forward_model(own.motion_fn, own.sensor_fn, order)
    agent = active_filtering.active_filter(model, forward_fn, dt, **rates)
    state = agent.init((None,), hm.zero_hyperparameters(model, dtype), jnp.zeros(1, dtype))
    return model, agent, state


NATURAL = {"rate": 10.0, "action_rate": 8.0, "metric_fn": natural_metric}


def test_forward_model_is_what_a_force_does_to_place_and_velocity():
    spring = mass_spring.mass_spring(mass=2.0, stiffness=3.0, damping=0.4)
    forward_fn = active_filtering.forward_model(spring.motion_fn, spring.sensor_fn, 3)
    path = hm.rest(mass_spring.goal_model(order=3), jnp.float64)
    expected = [[0, 0], [0, 1 / 2], [1 / 2, -0.4 / 4]]
    found = jax.jit(forward_fn)(path, jnp.zeros(1))
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-14)
    car = mountain_car.mountain_car(max_force=0.3)
    forward_fn = active_filtering.forward_model(car.motion_fn, car.sensor_fn, 2)
    path = hm.rest(mountain_car.swing_model(), jnp.float64)
    found = jax.jit(forward_fn)(path, jnp.array([0.8]))
    np.testing.assert_allclose(found[1, 1, 0], 0.3 / np.cosh(0.8) ** 2, rtol=1e-14)


def test_action_descends_the_energy_of_perception_and_the_flow_is_linear(rng):
    model, agent, state = _agent(rate=0.7, action_rate=0.3)
    flat, unravel = ravel_pytree(state.belief.path)
    path = unravel(jnp.asarray(rng.normal(size=flat.shape)))
    state = state._replace(belief=state.belief._replace(path=path))
    seen = hm.Observation(jnp.asarray(rng.normal(size=(ORDER, 2))), jnp.ones((1, 1)))
    respond = jax.jit(agent.respond)
    response = respond(state, seen)

    @jax.jit
    def energy(path, sensed):
        belief = state.belief
        now = seen._replace(sensed=sensed)
        return path_energy.energy(model, path, now, belief.parameters, belief.hyper)

    by_path, by_sensed = jax.jit(jax.grad(energy, (0, 1)))(path, seen.sensed)
    drift = jax.tree.map(shift, path)
    perception = ravel_pytree(drift)[0] - 0.7 * ravel_pytree(by_path)[0]
    forward = response.forward[: seen.sensed.size]
    reflex = -0.3 * forward.T @ jnp.ravel(by_sensed)[:, None]
    np.testing.assert_allclose(response.flow[:-1], perception, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(response.flow[-1:], reflex[0], rtol=1e-11)
    np.testing.assert_allclose(response.info.energy, energy(path, seen.sensed), rtol=1e-13)

    # Model and forward model are linear: derivatives of the flow are exact at any distance.
    change = jnp.asarray(rng.normal(size=response.flow.shape))
    seen_too = seen._replace(sensed=seen.sensed + 1.0)
    other = respond(active_filtering.move(state, change), seen_too)
    by_seen = response.by_seen @ jnp.ones((seen.sensed.size + 1, 1)).at[-1].set(0.0)
    expected = response.flow + (response.by_self @ change[:, None] + by_seen)[:, 0]
    np.testing.assert_allclose(other.flow, expected, rtol=1e-9, atol=1e-8)


@pytest.mark.slow
def test_alone_the_agent_acts_as_in_the_loop_when_steps_are_short():
    spring = mass_spring.mass_spring(mass=2.0)
    start = jnp.array([0.5, 0.0])
    errors = []
    for num in (20, 40, 80):
        dt = 1.0 / num
        _, agent, own = _agent(dt, order=2, **NATURAL)
        outside = hm.Observation(jnp.zeros((num, 2, 2)), jnp.ones((num, 1, 1)))
        loop = closed_loop.closed_loop(spring, agent, dt)
        together, _ = closed_loop.run_loop(loop, closed_loop.LoopState(start, own), outside)

        def step(carry, _, agent=agent, dt=dt):
            x, own = carry
            flow = spring.motion_fn(x, own.action)
            by_state = jax.jacfwd(spring.motion_fn)(x, own.action)
            after = x + active_filtering.ozaki_step(by_state, flow, dt)
            sensed = closed_loop.sense(spring, after, own.action, 2)
            own, _ = agent.step(own, hm.Observation(sensed, jnp.ones((1, 1))))
            return (after, own), None

        (x, _), _ = jax.lax.scan(step, (start, own), None, length=num)
        errors.append(float(jnp.max(jnp.abs(x - together.world))))
    # An action waits for the end of its step: first order.
    order = np.log2(np.array(errors[:-1]) / errors[1:])
    np.testing.assert_allclose(order, 1.0, rtol=0, atol=0.35)


@pytest.mark.slow
def test_a_loop_runs_in_both_precisions_and_batches(dtype):
    def run(load, dtype=dtype):
        _, agent, own = _agent(dtype=dtype, order=2, **NATURAL)
        world = mass_spring.mass_spring(load=load)
        outside = hm.Observation(jnp.zeros((30, 2, 2), dtype), jnp.ones((30, 1, 1), dtype))
        state = closed_loop.LoopState(jnp.zeros(2, dtype), own)
        return closed_loop.run_loop(closed_loop.closed_loop(world, agent, 0.1), state, outside)

    loads = jnp.asarray([-0.5, 0.0, 0.7], dtype)
    batched = jax.jit(jax.vmap(run))
    state, info = batched(loads)
    assert {leaf.dtype for leaf in jax.tree.leaves((state, info))} == {dtype}
    single, exact = jax.jit(run)(loads[2])[0], run(loads[2].astype(float), jnp.float64)[0]
    tolerance = 2000 * float(jnp.finfo(dtype).eps)  # |L| dt is about 100, damped in 30 steps
    np.testing.assert_allclose(state.world[2], single.world, rtol=0, atol=tolerance)
    np.testing.assert_allclose(state.world[2], exact.world, rtol=0, atol=tolerance)


@pytest.mark.slow
def test_gradients_go_through_world_belief_and_action():
    _, agent, own = _agent(order=2, **NATURAL)
    outside = hm.Observation(jnp.zeros((8, 2, 2)), jnp.ones((8, 1, 1)))

    @jax.jit
    def distance(weight, load):
        hyper = own.belief.hyper._replace(state=(weight[None],))
        state = own._replace(belief=own.belief._replace(hyper=hyper))
        loop = closed_loop.closed_loop(mass_spring.mass_spring(load=load), agent, 0.1)
        last, _ = closed_loop.run_loop(loop, closed_loop.LoopState(jnp.zeros(2), state), outside)
        return last.world[0]

    check_grads(distance, (jnp.asarray(0.3), jnp.asarray(0.5)), 1, ["fwd", "rev"], rtol=1e-6)


def test_a_reflex_without_derivatives_does_nothing():
    _, agent, state = _agent(order=1, rate=1.0, action_rate=5.0)
    seen = hm.Observation(jnp.ones((1, 2)), jnp.ones((1, 1)))
    assert float(jax.jit(agent.step)(state, seen)[0].action[0]) == 0.0


def test_what_is_not_a_number_stays_so():
    _, agent, state = _agent(order=2, **NATURAL)
    seen = hm.Observation(jnp.full((2, 2), jnp.nan), jnp.ones((1, 1)))
    assert bool(jnp.isnan(jax.jit(agent.step)(state, seen)[0].action[0]))


def test_bad_arguments_are_named():
    model, agent, state = _agent(order=2)
    with pytest.raises(ValueError, match="dt must be above 0, got -1"):
        _agent(dt=-1.0)
    with pytest.raises(ValueError, match=r"action must be \[k\], got shape \(\)"):
        agent.init((None,), state.belief.hyper, jnp.zeros(()))
    with pytest.raises(ValueError, match=r"sensed must be \[..., 2, 2\], got \(3, 2\)"):
        agent.step(state, hm.Observation(jnp.zeros((3, 2)), jnp.ones((1, 1))))
    wrong = active_filtering.active_filter(model, lambda path, a: jnp.ones((2, 1, 1)), 0.1)
    with pytest.raises(ValueError, match=r"forward_fn must give \[2, 2, 1\], got \[2, 1, 1\]"):
        wrong.step(state, hm.Observation(jnp.zeros((2, 2)), jnp.ones((1, 1))))

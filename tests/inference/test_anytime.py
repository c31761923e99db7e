"""Agents that can plan less deeply."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle

from vfejax.inference import active_inference
from vfejax.inference.active_inference import policy_planner
from vfejax.inference.anytime import anytime_agent
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp import exact_posterior, predict_states


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_a_step_with_a_planner_is_that_of_an_agent(rng, dtype):
    model = pomdp_oracle.one_factor(rng, dtype)
    planner = policy_planner(enumerate_policies(model, 2))
    found = anytime_agent(model, [planner], temperature=0.5)
    other = active_inference.agent(model, planner, temperature=0.5)

    @jax.jit
    def both(state, seen, key):
        alike = active_inference.AgentState(state.prior)
        return found.steps[0](state, seen, key), other.step(alike, seen, key)

    state = found.init()
    seen = jnp.zeros(len(model.A), int)
    for t in range(4):
        seen = jnp.array([t % 2] * len(model.A))
        (state, choice), (after, decision) = both(state, seen, jax.random.key(t))
        chex.assert_trees_all_equal(choice.action, decision.action)
        # One sweep more leaves the exact belief as it is, to rounding.
        close = 20 * float(jnp.finfo(dtype).eps)
        chex.assert_trees_all_close(choice.beliefs, decision.beliefs, rtol=close)
        chex.assert_trees_all_close(state.prior, after.prior, rtol=close)
        assert abs(float(choice.fall)) < close
        assert choice.beliefs[0].dtype == dtype


def test_the_last_step_believes_alike_and_repeats_the_action(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    found = anytime_agent(model, [policy_planner(enumerate_policies(model, 1))])
    seen, key = jnp.array([1] * len(model.A)), jax.random.key(0)
    for action in (0, 1):
        state = found.init()._replace(action=jnp.array([action] * len(model.B)))
        after, choice = found.steps[-1](state, seen, key)
        chex.assert_trees_all_equal(choice.action, state.action, after.action)
        beliefs = exact_posterior(model, list(seen), model.D).marginals
        chex.assert_trees_all_close(choice.beliefs, beliefs, rtol=1e-13)
        predicted = predict_states(model, choice.beliefs, list(state.action))
        chex.assert_trees_all_equal(after.prior, predicted)


def test_without_an_observation_beliefs_are_the_prediction_and_cost_nothing(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    found = anytime_agent(model, [])
    seen, nothing = jnp.zeros(len(model.A), int), jnp.zeros(len(model.A), bool)
    _, choice = found.steps[0](found.init(), seen, jax.random.key(0), nothing)
    chex.assert_trees_all_close(choice.beliefs, model.D, rtol=1e-13)
    np.testing.assert_allclose(choice.free_energy, 0, rtol=0, atol=1e-13)


def test_a_fall_of_the_free_energy_tells_that_beliefs_have_not_settled(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    seen, key = jnp.zeros(len(model.A), int), jax.random.key(0)
    falls = [
        float(agent.steps[0](agent.init(), seen, key)[1].fall)
        for agent in (anytime_agent(model, [], num_sweeps=n) for n in (1, 2, 16))
    ]
    assert falls[0] > falls[1] > falls[2] >= -1e-12

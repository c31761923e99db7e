"""Fitting an agent to what it did."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.active_inference import agent, policy_planner
from vfejax.inference.behaviour import behaviour_log_likelihood
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp.model import POMDP
from vfejax.problems.environments import bandit, process
from vfejax.problems.episodes import run_episode

KEY = jax.random.key(0)


def chooser(preference):
    """A player of two arms, whose wish for a payment is to be found, and its way to plan."""
    model = bandit(jnp.array([0.3, 0.7]), reward=0.0)
    model = model.replace(C=[jnp.zeros(3).at[2].set(preference), model.C[1]])
    return model, policy_planner(enumerate_policies(model, 1), gamma=1.0)


@pytest.fixture(scope="module")
def histories():
    """What 300 players with a wish of 2 nats saw and did in 12 moments."""
    model, planner = chooser(2.0)
    player, world = agent(model, planner), process(model)
    keys = jax.random.split(jax.random.key(0), 300)
    episodes = jax.jit(jax.vmap(lambda key: run_episode(player, world, key, 12)))(keys)
    return episodes.observations, episodes.decisions


def test_the_likelihood_is_that_of_the_agents_own_plans(histories):
    observations, decisions = histories
    model, planner = chooser(2.0)
    find = jax.jit(lambda o, a: behaviour_log_likelihood(model, planner, o, a))
    observations, decisions = jax.device_get((observations, decisions))
    found = jax.device_get(find(observations[0], decisions.action[0]))
    chex.assert_trees_all_close(
        found.controls, tuple(p[0] for p in decisions.plan.controls), rtol=0, atol=1e-6
    )
    taken = found.controls[0][np.arange(12), decisions.action[0, :, 0]]
    np.testing.assert_allclose(found.log_likelihood, np.log(taken).sum(), rtol=1e-5)
    broken = decisions.action[0].copy()
    broken[7] = -1
    assert np.isnan(find(observations[0], broken).steps).tolist() == [False] * 7 + [True] * 5
    with pytest.raises(ValueError, match="as many actions as observations, got 2 and 3"):
        behaviour_log_likelihood(model, planner, observations[0, :3], decisions.action[0, :2])


def test_policies_drawn_whole_are_as_probable_as_those_that_begin_so():
    stay, move = jnp.eye(2), jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)
    wishes = [jnp.array([0.0, 1.0]), jnp.zeros(2)]
    own = {"A_dependencies": [[0], [1]], "B_dependencies": [[0], [1]]}
    model = POMDP([stay, stay], [move, move], wishes, [stay[0], stay[0]], **own)
    together = np.array([[[0, 0], [1, 1]], [[1, 1], [0, 0]], [[1, 1], [1, 1]]])
    planner = policy_planner(together, gamma=1.0)

    @jax.jit
    def found(actions):
        return behaviour_log_likelihood(
            model, planner, jnp.zeros((1, 2), int), actions[None], policies=together
        ).log_likelihood

    plan = agent(model, planner).step(agent(model, planner).init(), jnp.zeros(2, int), KEY)[1].plan
    first, second, third = plan.posterior
    expected = jnp.log(jnp.stack([first, second + third]))
    logs = jnp.stack([found(jnp.array([0, 0])), found(jnp.array([1, 1]))])
    np.testing.assert_allclose(logs, expected, rtol=1e-12)
    assert found(jnp.array([0, 1])) < -30  # no policy begins with it
    assert np.isnan(found(jnp.array([2, 2])))
    with pytest.raises(ValueError, match="must be the 3 of the planner, got 2"):
        behaviour_log_likelihood(
            model, planner, jnp.zeros((1, 2), int), np.zeros((1, 2), int), policies=together[:2]
        )


@pytest.mark.slow
def test_a_wish_is_recovered_from_choices_by_gradients(histories):
    observations, decisions = histories

    def loss(preference):
        model, planner = chooser(preference)

        def one(o, a):
            return behaviour_log_likelihood(model, planner, o, a).log_likelihood

        return -jnp.mean(jax.vmap(one)(observations, decisions.action))

    slopes = jax.jit(lambda x: (jax.grad(loss)(x), jax.hessian(loss)(x)))
    found = jnp.asarray(1.0)
    for _ in range(5):
        slope, curvature = slopes(found)
        found -= slope / curvature
    spread = 1 / np.sqrt(300 * float(curvature))
    assert abs(float(found) - 2.0) < 3 * spread
    assert spread < 0.2

"""Agents that learn at every step, or when an episode is over."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle

from vfejax.inference.active_inference import policy_planner, utility_planner
from vfejax.inference.learning_agents import episode_learner, step_learner
from vfejax.inference.policies import count_policies, enumerate_policies
from vfejax.inference.pomdp import POMDP
from vfejax.inference.pomdp.learning import Counts, counts_of, expected_model, update_counts
from vfejax.problems.environments import process
from vfejax.problems.episodes import learn_episode, run_episodes

FORMS = {"episode": episode_learner, "step": step_learner}
STEPS = 6


def seen_ring(dtype=jnp.float64):
    """A ring of three places that are seen: stay, or go on, which fails now and then."""
    go = jnp.roll(jnp.eye(3, dtype=dtype), 1, axis=0)
    move = jnp.stack([jnp.eye(3, dtype=dtype), 0.75 * go + 0.25 * jnp.eye(3, dtype=dtype)], axis=-1)
    return POMDP(
        [jnp.eye(3, dtype=dtype)],
        [move],
        [jnp.array([0.0, 0.5, 0.0], dtype)],
        [jnp.full(3, 1 / 3, dtype)],
        jnp.array([0.5, 0.5], dtype),
    )


def played(learner, model, counts, seed=0):
    """Counts after one episode, and the episode."""
    run = jax.jit(lambda c, k: learn_episode(learner, process(model), c, k, STEPS))
    return run(counts, jax.random.key(seed))


@pytest.mark.parametrize("form", FORMS)
def test_where_states_are_seen_both_forms_count_what_happened(form):
    model = seen_ring()
    policies = enumerate_policies(model, 1)
    prior = counts_of(model, "BCDE", 4.0)._replace(
        B=(jnp.ones((3, 3, 2)),), C=(jnp.ones(3),), D=(jnp.ones(3),)
    )
    learner = FORMS[form](
        model, lambda c: policy_planner(policies, gamma=1.0), prior, policies=policies, rate=0.5
    )
    after, episode = played(learner, model, prior)
    places, actions = np.asarray(episode.states[:, 0]), np.asarray(episode.decisions.action[:, 0])
    moves = np.zeros((3, 3, 2))
    np.add.at(moves, (places[1:], places[:-1], actions[:-1]), 1)
    # Beliefs of seen places miss 1 by the smallest normal number.
    np.testing.assert_allclose(after.B[0], 1 + 0.5 * moves, rtol=1e-12)
    np.testing.assert_allclose(after.C[0], 1 + 0.5 * np.bincount(places, minlength=3), rtol=1e-12)
    np.testing.assert_allclose(after.D[0], 1 + 0.5 * np.eye(3)[places[0]], rtol=1e-12)
    np.testing.assert_allclose(after.E, 2 + 0.5 * np.bincount(actions, minlength=2), rtol=1e-12)
    assert after.A is None


def test_an_episode_is_counted_as_the_sum_over_all_histories_says(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    prior = counts_of(model, "ABD", 3.0)
    planner = utility_planner(enumerate_policies(model, 1), gamma=1.0)
    after, episode = played(episode_learner(model, lambda c: planner, prior), model, prior)
    seen, actions = episode.observations.T, episode.decisions.action[:-1]
    marginals, _ = pomdp_oracle.window_posterior(model, np.asarray(seen), np.asarray(actions))
    for m, (new, old) in enumerate(zip(after.A, prior.A, strict=True)):
        expected = np.eye(len(old))[np.asarray(seen[m])].T @ marginals[0]
        np.testing.assert_allclose(new - old, expected, rtol=1e-9)
    np.testing.assert_allclose(after.D[0] - prior.D[0], marginals[0][0], rtol=1e-9)
    leaving = jnp.sum(after.B[0] - prior.B[0], axis=0)
    taken = np.eye(2)[np.asarray(actions[:, 0])]
    np.testing.assert_allclose(leaving, marginals[0][:-1].T @ taken, rtol=1e-9)


def test_a_step_is_counted_as_the_belief_of_that_moment_says(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    prior = counts_of(model, "ABD", 3.0)
    planner = utility_planner(enumerate_policies(model, 1), gamma=1.0)
    learner = step_learner(model, lambda c: planner, prior)
    after, episode = played(learner, model, prior)
    beliefs, actions = episode.decisions.beliefs, episode.decisions.action
    for f, factors in enumerate(model.B_dependencies):
        expected = np.zeros(prior.B[f].shape)
        for t in range(STEPS - 1):
            outer = beliefs[f][t + 1]
            for d in factors:
                outer = np.multiply.outer(outer, beliefs[d][t])
            expected[..., int(actions[t, f])] += outer
        np.testing.assert_allclose(after.B[f] - prior.B[f], expected, rtol=1e-9, atol=1e-12)
        chex.assert_trees_all_close(after.D[f] - prior.D[f], beliefs[f][0], rtol=0, atol=1e-12)
    np.testing.assert_allclose(jnp.sum(after.A[1] - prior.A[1]), STEPS, rtol=1e-12)


def test_what_is_forgotten_returns_to_the_prior():
    prior, old = Counts(D=(jnp.array([1.0, 0.0]),)), Counts(D=(jnp.array([5.0, 0.0]),))
    nothing = Counts(D=(jnp.zeros(2),))
    found = update_counts(old, nothing, keep=0.75, prior=prior)
    assert found.D[0].tolist() == [4.0, 0.0]
    with pytest.raises(ValueError, match="there are counts of D but no prior of it"):
        update_counts(old, nothing, prior=Counts())


def test_what_can_be_learned_draws_an_agent_that_is_told_its_counts():
    """What two of three places show it has counted often, what the third shows not at all."""
    model = seen_ring(jnp.float32).replace(C=[jnp.zeros(3)], D=[jnp.array([1.0, 0.0, 0.0])])
    to = jnp.broadcast_to(jnp.eye(3)[:, None], (3, 3, 3))  # control u leads to place u
    model = POMDP(model.A, [to], model.C, model.D)
    counts = Counts(A=(jnp.tile(jnp.array([[50.0, 50.0, 1.0]]), (3, 1)),))
    every = enumerate_policies(model, 1)
    curious = step_learner(model, lambda c: policy_planner(every, counts=c), counts, temperature=0)
    after, episode = played(curious, model, counts)
    places = np.asarray(episode.states[1:, 0])
    assert (places == 2).all()
    # The gain falls as the place is seen: counts of three outcomes, one more each time.
    assert after.A[0][:, 2].tolist() == [1.0, 1.0, STEPS]
    values = episode.decisions.plan.neg_efe
    flat = step_learner(model, lambda c: policy_planner(every), counts, temperature=0)
    _, other = played(flat, model, counts)
    gain = values - other.decisions.plan.neg_efe
    assert (np.asarray(gain[:, 2]) > np.asarray(gain[:, 1])).all()


def test_episodes_carry_their_counts_and_learners_stand_side_by_side():
    model = seen_ring(jnp.float32)
    prior = Counts(B=(jnp.ones((3, 3, 2)),))
    planner = utility_planner(enumerate_policies(model, 1), gamma=0.0)
    learner = episode_learner(model, lambda c: planner, prior)

    @jax.jit
    def run(keys):
        return jax.vmap(
            lambda k: run_episodes(
                learner, process(model), prior, k, num_episodes=100, num_steps=STEPS
            )
        )(keys)

    counts, episodes = run(jax.random.split(jax.random.key(1), 2))
    assert episodes.observations.shape == (2, 100, STEPS, 1)
    total = jnp.sum(counts.B[0], axis=(1, 2, 3))
    np.testing.assert_allclose(total, 18 + 100 * (STEPS - 1), rtol=1e-5)
    learned = jax.vmap(lambda c: expected_model(model, c).B[0])(counts)
    # About 80 transitions from each place with each control: standard errors of 0.05.
    np.testing.assert_allclose(learned, jnp.stack([model.B[0]] * 2), rtol=0, atol=0.2)
    # The last episode is that of the counts before it: replayed, it gives the counts after.
    one = jax.tree.map(lambda x: x[0], counts)
    events = jax.tree.map(lambda x: x[0], episodes)
    moves = np.ones((3, 3, 2))
    states, actions = np.asarray(events.states[..., 0]), np.asarray(events.decisions.action[..., 0])
    np.add.at(moves, (states[:, 1:], states[:, :-1], actions[:, :-1]), 1)
    np.testing.assert_allclose(one.B[0], moves, rtol=1e-5)


def test_a_policy_is_credited_by_how_it_begins():
    policies, posterior = (
        jnp.array([[[0], [1]], [[1], [0]], [[0], [0]]]),
        jnp.array([0.1, 0.6, 0.3]),
    )
    chex.assert_trees_all_close(
        count_policies(policies, posterior, jnp.array([0])), jnp.array([0.25, 0.0, 0.75]), rtol=1e-6
    )
    assert count_policies(policies, posterior, jnp.array([2])).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("form", FORMS)
def test_habits_need_their_policies(form):
    model = seen_ring(jnp.float32)
    prior = counts_of(model, "E")
    planner = utility_planner(enumerate_policies(model, 1))
    with pytest.raises(ValueError, match="counts of E need the policies that they are of"):
        FORMS[form](model, lambda c: planner, prior)
    with pytest.raises(ValueError, match="E must have counts of 4 policies, got 2"):
        FORMS[form](model, lambda c: planner, prior, policies=enumerate_policies(model, 2))


def test_episodes_are_at_least_one():
    model = seen_ring(jnp.float32)
    prior = counts_of(model, "D")
    learner = step_learner(model, lambda c: utility_planner(enumerate_policies(model, 1)), prior)
    with pytest.raises(ValueError, match="num_episodes must be at least 1, got 0"):
        run_episodes(learner, process(model), prior, jax.random.key(0), num_episodes=0, num_steps=1)


@pytest.mark.parametrize("form", FORMS)
def test_what_was_not_seen_is_not_counted(form, dtype):
    model = seen_ring(dtype)
    prior = counts_of(model, "ACD", 4.0)
    learner = FORMS[form](model, lambda c: utility_planner(enumerate_policies(model, 1)), prior)
    player, there = learner.agent(prior), jnp.array([[True], [False]])
    observations = jnp.array([[1], [2]])

    @jax.jit
    def live(key):
        def step(own, xs):
            return player.step(own, xs[0], key, xs[1])

        own, decisions = jax.lax.scan(step, player.init(), (observations, there))
        return learner.learn(prior, own, observations, decisions, there)

    after = live(jax.random.key(0))
    for new, old in ((after.A[0], prior.A[0]), (after.C[0], prior.C[0])):
        assert new.dtype == dtype
        added = jnp.sum((new - old).reshape(3, -1), axis=1)
        np.testing.assert_allclose(added, [0.0, 1.0, 0.0], rtol=0, atol=10 * jnp.finfo(dtype).eps)

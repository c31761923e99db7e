"""Policies: their enumeration, shared beginnings, posterior and the choice of an action."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle

from vfejax.inference import policies


@pytest.fixture
def model(rng):
    return pomdp_oracle.three_factors(rng, jnp.float64)


def test_all_sequences_of_controls_are_enumerated_once(model):
    found = policies.enumerate_policies(model, 2)
    assert found.shape == (16, 2, 3)
    assert len({row.tobytes() for row in found}) == 16
    assert (found.max(axis=(0, 1)) == [1, 0, 1]).all()


def test_beginnings_are_shared(model):
    every = policies.enumerate_policies(model, 3)
    tree = policies.policy_tree(every)
    assert [len(x) for x in tree.parents] == [4, 16, 64]
    # Following the parents back gives the policies again.
    for p in (0, 17, 63):
        node, controls = tree.nodes[2][p], []
        for step in (2, 1, 0):
            assert node == tree.nodes[step][p]
            controls.append(tree.actions[step][node])
            node = tree.parents[step][node]
        assert np.array_equal(controls[::-1], every[p])


def test_pruned_policies_have_no_probability_and_habits_weigh():
    neg_efe = jnp.array([1.0, -jnp.inf, 0.0])
    posterior = policies.policy_posterior(neg_efe, 2.0)
    chex.assert_trees_all_close(posterior, jnp.array([jnp.e**2, 0.0, 1.0]) / (jnp.e**2 + 1))
    habits = jnp.array([0.5, 0.5, 0.0])
    chex.assert_trees_all_close(
        policies.policy_posterior(neg_efe, 0.0, habits),
        jnp.array([1.0, 0.0, 0.0]),
        rtol=0,
        atol=1e-15,
    )
    assert bool(jnp.isnan(policies.policy_posterior(jnp.array([jnp.nan, 0.0]))).all())
    with pytest.raises(ValueError, match=r"E must have shape \[3\], got \[2\]"):
        policies.policy_posterior(neg_efe, 1.0, jnp.array([0.5, 0.5]))


def test_precisions_that_numpy_counted_do_not_widen():
    neg_efe, gamma = jnp.array([0.0, 1.0, 3.0], jnp.float32), np.float64(0.5)
    found = policies.policy_posterior(neg_efe, gamma, window=np.float64(1.25))
    assert found.dtype == jnp.float32
    expected = jnp.array([0.0, 1.0, jnp.e]) / (1 + jnp.e)
    chex.assert_trees_all_close(found, expected.astype(jnp.float32), rtol=1e-6)
    whole = policies.policy_posterior(jnp.array([0, 1, 3]), 0.5, window=1.25)
    chex.assert_trees_all_close(whole, expected, rtol=1e-14)


def test_policies_far_below_the_best_are_pruned_and_none_otherwise():
    neg_efe = jnp.array([0.0, -1.0, -4.0, -jnp.inf])
    pruned = policies.policy_posterior(neg_efe, 2.0, window=3.0)
    chex.assert_trees_all_close(
        pruned, jnp.array([1, jnp.exp(-2.0), 0.0, 0.0]) / (1 + jnp.exp(-2.0))
    )
    chex.assert_trees_all_close(
        policies.policy_posterior(neg_efe, 2.0, window=jnp.inf),
        policies.policy_posterior(neg_efe, 2.0),
    )
    # Habits count: the third policy is the habit by 12 nats, and the first then out of the window.
    habits = jax.nn.softmax(jnp.array([0.0, 0.0, 12.0, 0.0]))
    found = policies.policy_posterior(neg_efe, 2.0, habits, window=3.0)
    chex.assert_trees_all_close(found, jnp.array([0.0, 0.0, 1.0, 0.0]), rtol=0, atol=1e-15)
    assert bool(jnp.isnan(policies.policy_posterior(neg_efe.at[0].set(jnp.nan), window=1.0)).all())


def test_a_policy_that_is_listed_twice_is_computed_once_and_counts_as_a_habit(model):
    twice = policies.enumerate_policies(model, 2)[[0, 3, 3]]
    tree = policies.policy_tree(twice)
    assert [len(x) for x in tree.parents] == [1, 2]
    assert tree.nodes[1].tolist() == [0, 1, 1]
    doubled = policies.policy_posterior(jnp.array([1.0, 2.0, 2.0]))
    habit = policies.policy_posterior(jnp.array([1.0, 2.0]), 1.0, jnp.array([1 / 3, 2 / 3]))
    chex.assert_trees_all_close(doubled[0], habit[0], rtol=1e-14)


def test_actions_are_drawn_from_the_marginals_of_each_factor_independently(model):
    every = policies.enumerate_policies(model, 1)
    posterior = jnp.array([0.1, 0.2, 0.3, 0.4])

    @jax.jit
    def draw(key, posterior):
        marginals = policies.action_marginals(model, every, posterior)
        keys = jax.random.split(key, 20_000)
        drawn = jax.vmap(lambda key: policies.sample_action(key, marginals))(keys)
        return marginals, drawn, policies.sample_action(keys[0], marginals, 0.0)

    marginals, drawn, likeliest = jax.device_get(draw(jax.random.key(0), posterior))
    chex.assert_trees_all_close(marginals, (np.array([0.3, 0.7]), np.ones(1), np.array([0.4, 0.6])))
    # Standard errors are below 0.0036.
    np.testing.assert_allclose(drawn.mean(axis=0), [0.7, 0.0, 0.6], rtol=0, atol=0.015)
    assert abs(np.cov(drawn[:, 0], drawn[:, 2])[0, 1]) < 0.01
    assert likeliest.tolist() == [1, 0, 1]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 1, 1), int), r"policies must have shape \[p, horizon, 3\], got \[2, 1, 1\]"),
        (np.zeros((1, 1, 3)), "policies must be integers"),
        ([[[0, 0, 0]]], r"policies must be an array \[p, horizon, 3\], got list"),
        (np.array([[[0, 1, 0]]]), r"policies\[0, 0, 1\] must be a control of factor 1, 0 to 0"),
    ],
)
def test_what_does_not_fit_is_named(model, given, message):
    with pytest.raises(ValueError, match=message):
        policies.action_marginals(model, given, jnp.ones(len(given)))


def test_precisions_and_temperatures_below_zero_are_refused():
    with pytest.raises(ValueError, match=r"gamma must be at least 0, got -1"):
        policies.policy_posterior(jnp.zeros(2), -1.0)
    with pytest.raises(ValueError, match=r"window must be at least 0, got -1"):
        policies.policy_posterior(jnp.zeros(2), window=-1.0)
    with pytest.raises(ValueError, match=r"temperature must be at least 0, got -1"):
        policies.sample_action(jax.random.key(0), (jnp.ones(2) / 2,), -1.0)


def test_too_many_policies_are_refused_with_a_remedy(model):
    with pytest.raises(ValueError, match=r"4\^11 policies, more than 2\^20; shorten the horizon"):
        policies.enumerate_policies(model, 11)
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        policies.enumerate_policies(model, 0)
    with pytest.raises(ValueError, match=r"horizon must be a whole number of steps, got 1\.5"):
        policies.enumerate_policies(model, 1.5)

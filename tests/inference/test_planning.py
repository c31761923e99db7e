"""Sophisticated inference and relaxed policies."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle
from scipy.special import softmax

from vfejax.inference import active_inference, planning
from vfejax.inference.expected_free_energy import expected_free_energy, step_terms
from vfejax.inference.information_gain import (
    likelihood_information_gain,
    transition_information_gain,
)
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp import POMDP, infer_states, predict_states
from vfejax.inference.pomdp.learning import counts_of


def search(model, horizon, **options):
    """Sophisticated inference from the first belief, compiled."""
    return jax.jit(lambda m: planning.sophisticated(m, m.D, horizon, **options))(model)


@jax.jit
def values_of(model, policies):
    """The expected free energy of each policy, from the first belief."""
    return expected_free_energy(model, model.D, policies)


@jax.jit
def predicted(model, belief, action, counts):
    """Beliefs after an action, and what they pay and teach."""
    after = predict_states(model, belief, list(action))
    value = step_terms(model, after).neg_efe
    if counts is not None:
        value += likelihood_information_gain(model, counts.A, after)
        about = transition_information_gain(model, counts.B, belief)
        value += sum(gain[u] for gain, u in zip(about, action, strict=True))
    return after, value


@jax.jit
def inferred(model, outcome, belief):
    """Beliefs after what was seen."""
    return infer_states(model, outcome, belief)[0]


def brute_values(model, belief, horizon, gamma, hard, habits, counts=None):
    """The recursion of sophisticated inference, node by node."""
    values, plain = [], pomdp_oracle.numbers(model)
    for action in enumerate_policies(model, 1)[:, 0]:
        after, value = predicted(model, belief, action, counts)
        value = float(value)
        if horizon > 1:
            for outcome in itertools.product(*(range(n) for n in model.num_observations)):
                chance = sum(
                    np.prod([q[s] for q, s in zip(after, state, strict=True)])
                    * pomdp_oracle.likelihood(plain, outcome, state)
                    for state in pomdp_oracle.combinations(model)
                )
                seen = inferred(model, list(outcome), after)
                later = brute_values(model, seen, horizon - 1, gamma, hard, habits, counts)
                logits = gamma * later + np.log(habits)
                value += chance * (later[logits.argmax()] if hard else softmax(logits) @ later)
        values.append(value)
    return np.array(values)


def test_what_is_learned_counts_at_every_step_of_the_search(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    counts = counts_of(model, "AB", 3.0)
    found = search(model, 2, gamma=3.0, counts=counts)
    expected = brute_values(model, model.D, 2, 3.0, False, np.ones(2) / 2, counts)
    chex.assert_trees_all_close(found, expected, rtol=1e-12)
    assert np.all(np.asarray(found) > np.asarray(search(model, 2, gamma=3.0)))


@pytest.mark.parametrize("hard", [False, True])
def test_the_search_is_the_recursion(rng, hard):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    for habits in (None, np.array([0.99, 0.01])):
        found = search(model.replace(E=habits), 2, gamma=3.0, hard=hard)
        own = np.ones(2) if habits is None else habits
        expected = brute_values(model, model.D, 2, 3.0, hard, own)
        chex.assert_trees_all_close(found, expected, rtol=1e-12)


def test_every_planner_weighs_its_policies_by_habits(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64).replace(E=np.array([0.9, 0.1]))
    every = enumerate_policies(model, 1)
    planners = (
        active_inference.policy_planner(every, gamma=0.5),
        active_inference.utility_planner(every, gamma=0.5),
        active_inference.sophisticated_planner(1, gamma=0.5),
    )
    plans = jax.jit(lambda *models: [[plan(m, m.D) for m in models] for plan in planners])
    for plan, free in jax.device_get(plans(model, model.replace(E=None))):
        chex.assert_trees_all_close(plan.neg_efe, free.neg_efe, rtol=1e-14)
        odds = plan.controls[0][0] / plan.controls[0][1]
        chex.assert_trees_all_close(odds, 9 * free.controls[0][0] / free.controls[0][1], rtol=1e-12)
    with pytest.raises(
        ValueError, match=r"E must have shape \[2\], a habit for each joint control"
    ):
        planning.sophisticated(model.replace(E=np.ones(4) / 4), model.D, 2)


def cue_task():
    """A reward is left or right, and only a cue tells where; a fixed policy cannot use it.

    Places: start, cue, left, right. Modalities: the place with what is found there, and the cue.
    """
    places, sides = 4, 2
    move = np.zeros((places, places, places))
    for target in range(places):
        # Left and right cannot be left again.
        for place in range(places):
            move[place if place >= 2 else target, place, target] = 1
    found = np.zeros((3, places, sides))  # nothing, reward, punishment
    told = np.zeros((3, places, sides))  # nothing, left, right
    found[0, :2], told[0] = 1, 1
    for side in range(sides):
        found[1, 2 + side, side] = found[2, 3 - side, side] = 1
        told[:, 1, side] = np.eye(3)[1 + side]
    return POMDP(
        [jnp.asarray(found), jnp.asarray(told)],
        [jnp.asarray(move), jnp.asarray(np.eye(2)[..., None])],
        [jnp.array([0.0, 2.0, -4.0]), jnp.asarray(np.zeros(3))],
        [jnp.array([1.0, 0.0, 0.0, 0.0]), jnp.array([0.5, 0.5])],
    )


def test_it_looks_for_the_cue_first_and_expects_the_reward():
    model = cue_task()
    plan = jax.jit(lambda m, d: planning.sophisticated(m, d, 2, gamma=8.0, num_outcomes=3))
    first = jax.device_get(plan(model, model.D))
    assert int(first.argmax()) == 1
    # What the cue says, log 2, and then the reward in full; where it is surely is no news then.
    chex.assert_trees_all_close(first[1], np.log(2.0) + 2.0, rtol=1e-6)
    fixed = jax.device_get(values_of(model, enumerate_policies(model, 2)))
    # The best fixed policy earns nothing after the cue but what it learns on the way.
    assert float(fixed.utility.sum(axis=1).max()) <= 0
    told = inferred(model, [0, 2], predicted(model, model.D, [1, 0], None)[0])
    assert int(plan(model, told).argmax()) == 3


def test_improbable_outcomes_and_actions_can_be_left_out(rng):
    model = pomdp_oracle.one_factor(rng, jnp.float64)
    full = np.asarray(search(model, 2))
    chex.assert_trees_all_close(search(model, 2, num_outcomes=100, min_probability=1e-9), full)
    few = np.asarray(search(model, 2, num_outcomes=3))
    assert 0 < np.abs(few - full).max() < 0.5
    # The most probable one is followed however improbable it is.
    one = search(model, 2, num_outcomes=1)
    chex.assert_trees_all_close(search(model, 2, min_probability=1.0), one)
    # Above one half, only the better action by one step is considered: no better than the best.
    greedy = np.asarray(search(model, 2, min_action_probability=0.6))
    assert np.all(greedy <= np.asarray(search(model, 2, hard=True)) + 1e-12)


@pytest.mark.parametrize("options", [{}, {"min_probability": 0.2, "num_outcomes": 3}])
def test_gradients_pass_by_actions_that_are_left_out(rng, options):
    model = pomdp_oracle.one_factor(rng, jnp.float64)

    def total(gamma, preferences):
        told = model.replace(C=[preferences, model.C[1]])
        values = planning.sophisticated(
            told, told.D, 2, gamma=gamma, min_action_probability=0.6, **options
        )
        return jnp.sum(values)

    at = jnp.asarray(1.5), model.C[0]
    slopes, nudges = jax.jit(
        lambda *x: (jax.grad(total, (0, 1))(*x), jax.jacfwd(total, (0, 1))(*x))
    )(*at)
    assert float(jnp.abs(slopes[1]).max()) > 0.1
    chex.assert_trees_all_close(slopes, nudges, rtol=0, atol=1e-12)


def test_a_horizon_of_one_is_the_expected_free_energy(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    chex.assert_trees_all_close(
        search(model, 1),
        values_of(model, enumerate_policies(model, 1)).neg_efe,
        rtol=1e-14,
    )


def test_trees_that_are_too_large_are_refused_with_a_remedy(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    with pytest.raises(ValueError, match=r"more than 2\^22; follow fewer outcomes"):
        planning.sophisticated(model, model.D, 5)
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        planning.sophisticated(model, model.D, 0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'depht'"):
        active_inference.sophisticated_planner(2, depht=3)
    with pytest.raises(ValueError, match="num_outcomes must be at least 1, got 0"):
        planning.sophisticated(model, model.D, 2, num_outcomes=0)
    timed = model.replace(C=[jnp.zeros((2, 4)), model.C[1]])
    with pytest.raises(ValueError, match=r"C\[0\] has 2 steps and the policies have 3"):
        planning.sophisticated(timed, model.D, 3, num_outcomes=1)
    with pytest.raises(ValueError, match=r"C\[0\] has 2 steps and the policies have 3"):
        planning.plan_by_gradient(timed, model.D, 3)


def test_a_relaxed_policy_without_chance_is_the_policy(rng):
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    policies = enumerate_policies(model, 2)
    expected = jax.device_get(values_of(model, policies).neg_efe)
    relaxed = jax.jit(lambda m, controls: planning.relaxed_neg_efe(m, m.D, controls))
    for p in (0, 9):
        controls = [np.eye(u)[policies[p, :, f]] for f, u in enumerate(model.num_controls)]
        found = relaxed(model, controls)
        chex.assert_trees_all_close(found, expected[p], rtol=1e-13)


def test_a_plan_keeps_the_precision_of_its_model(rng):
    model, gamma = pomdp_oracle.one_factor(rng, jnp.float32), np.float64(2.0)
    plan = planning.plan_by_gradient(
        model, model.D, 2, gamma=gamma, step_size=np.float64(0.25), num_iterations=2
    )
    assert {x.dtype for x in jax.tree.leaves(plan)} == {jnp.dtype(jnp.float32)}
    assert search(model, 2, gamma=gamma).dtype == jnp.float32


def test_the_gradient_finds_the_way_to_a_preferred_place():
    """Five places in a row, stay or step; the last one is preferred."""
    stay, step = np.eye(5), np.zeros((5, 5))
    step[np.minimum(np.arange(5) + 1, 4), np.arange(5)] = 1.0
    arrays = [stay], [np.stack([stay, step], axis=-1)], [np.arange(5.0)], [stay[0]]
    model = POMDP(*jax.tree.map(jnp.asarray, arrays))
    plan = jax.jit(lambda m: planning.plan_by_gradient(m, m.D, 4, num_iterations=200))(model)
    assert plan.controls[0].argmax(axis=1).tolist() == [1, 1, 1, 1]
    assert float(plan.neg_efe[-1]) > float(plan.neg_efe[0])
    every = enumerate_policies(model, 4)
    best = every[int(values_of(model, every).neg_efe.argmax()), :, 0]
    assert best.tolist() == [1, 1, 1, 1]

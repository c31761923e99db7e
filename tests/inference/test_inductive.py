"""Inductive inference: distances to goals, and plans that follow them."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle

from vfejax.inference import inductive
from vfejax.inference.active_inference import policy_planner, sophisticated_planner
from vfejax.inference.expected_free_energy import expected_free_energy
from vfejax.inference.planning import sophisticated
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp import POMDP
from vfejax.problems.environments import t_maze


def enumerated_distances(transition, goals, threshold):
    """Fewest controls that lead to a goal, by trying all sequences of possible states."""
    states = len(transition)
    found = np.where(goals, 0.0, np.inf)
    for length in range(1, states):
        for path in itertools.product(range(states), repeat=length + 1):
            steps = itertools.pairwise(path)
            if goals[path[-1]] and all((transition[b, a] > threshold).any() for a, b in steps):
                found[path[0]] = min(found[path[0]], length)
    return found


def test_distances_are_those_of_all_paths(rng, dtype):
    transition = pomdp_oracle.columns(rng, 5, 5, 2)
    arrays = [np.eye(5)], [transition], [np.zeros(5)], [np.full(5, 0.2)]
    model = POMDP(*jax.tree.map(lambda x: jnp.asarray(x, dtype), arrays))

    @partial(jax.jit, static_argnames="depth")
    def measure(goals, threshold, depth=None):
        return inductive.intention(model, [goals], threshold=threshold, depth=depth)

    seen = set()
    for threshold in (0.3, 0.5, 0.7):
        for goal in range(5):
            goals = np.arange(5) == goal
            found = measure(goals, threshold).distances[0]
            expected = enumerated_distances(transition, goals, threshold)
            assert found.dtype == dtype
            assert found.tolist() == expected.tolist()
            seen |= set(expected.tolist())
    # The thresholds are such that ways of several lengths, and goals without a way, are among them.
    assert {0.0, 1.0, 2.0, np.inf} <= seen
    few = measure(goals, 0.3, depth=1).distances[0]
    assert set(few.tolist()) <= {0.0, 1.0, np.inf}


def corridor(length):
    """A row of places, step left, stay or step right; nothing is preferred but its end."""
    places = np.arange(length)
    move = np.zeros((length, length, 3))
    for control, shift in enumerate((-1, 0, 1)):
        move[np.clip(places + shift, 0, length - 1), places, control] = 1
    place = np.eye(length)
    return POMDP(*jax.tree.map(jnp.asarray, ([place], [move], [place[-1]], [place[0]])))


def test_one_step_of_planning_walks_a_long_corridor_with_an_intention_and_not_without():
    model = corridor(30)
    wanted = inductive.goals_of_observations(model)
    intended = jax.jit(inductive.intention)(model, wanted)
    assert intended.distances[0].tolist() == list(range(29, -1, -1))
    every = enumerate_policies(model, 1)
    planners = {
        "policies": policy_planner(every, intention=intended),
        "sophisticated": sophisticated_planner(1, intention=intended),
    }
    planners["without"] = policy_planner(every)

    @jax.jit
    @jax.vmap
    def chosen(q):
        return {name: planner(model, [q]).controls[0] for name, planner in planners.items()}

    found = jax.device_get(chosen(np.eye(30)))
    blind = found.pop("without")
    for name, controls in found.items():
        assert controls[:-1].argmax(axis=1).tolist() == [2] * 29, name
        assert controls[:-1, 2].min() > 0.99, name
    # Only the places from which one step leads to the end know more than chance.
    np.testing.assert_allclose(blind[:-2], np.full((28, 3), 1 / 3), rtol=1e-12)


def test_the_term_is_what_leaving_the_way_costs_at_each_step():
    model = corridor(6)
    policies = np.array([[[2], [2], [2]], [[2], [1], [2]], [[0], [2], [2]]])

    @jax.jit
    def plans(model):
        intended = inductive.intention(model, [np.arange(6) == 5], epsilon=0.01)
        found = expected_free_energy(model, model.D, policies, intention=intended)
        plain = expected_free_energy(model, model.D, policies)
        return found, plain, sophisticated(model, model.D, 3, intention=intended, hard=True)

    found, plain, values = jax.device_get(plans(model))
    cost = np.log(0.01)
    expected = np.array([[0.0, 0.0, 0.0], [0.0, cost, cost], [cost, cost, cost]])
    chex.assert_trees_all_close(found.inductive, expected, rtol=1e-14)
    chex.assert_trees_all_close(found.neg_efe, plain.neg_efe + expected.sum(axis=1), rtol=1e-14)
    # A search plans again from every belief, so that a step that was lost is lost once.
    chex.assert_trees_all_close(values, np.array([cost, cost, 0.0]), rtol=0, atol=1e-12)


def test_where_no_way_leads_the_term_is_silent_and_its_gradient_finite():
    model = corridor(4)
    here, there = np.eye(4)[:2]

    @jax.jit
    def lost(model):
        nowhere = inductive.intention(model, [np.zeros(4, bool)])
        return nowhere, inductive.inductive_value(nowhere, [here], [there])

    nowhere, silent = lost(model)
    assert np.isinf(nowhere.distances[0]).all()
    assert float(silent) == 0

    def value(move):
        changed = model.replace(B=[move])
        intended = inductive.intention(changed, [np.arange(4) == 3])
        every = enumerate_policies(changed, 1)
        return expected_free_energy(changed, model.D, every, intention=intended).inductive.sum()

    slope = np.asarray(jax.jit(jax.grad(value))(model.B[0]))
    # Staying, in two of three controls, costs -log(0.001) for each unit of probability.
    chex.assert_trees_all_close(slope[0, 0], np.full(3, np.log(1e-3)), rtol=1e-14)


def test_goals_come_from_preferred_observations_and_transitions_may_follow_other_factors(rng):
    place, side = inductive.goals_of_observations(jax.jit(t_maze)())
    assert place.tolist() == [False, True, True, False]
    assert side.tolist() == [True, True]
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    goals = [None, np.array([True, False, False]), None]
    find = jax.jit(lambda m: inductive.intention(m, goals, threshold=0.5))
    intended = jax.device_get(find(model))
    arrives = (np.asarray(model.B[1]) > 0.5).any(axis=(2, 3))  # [s', s], over factor 0 and control
    for state in (1, 2):
        assert (float(intended.distances[1][state]) == 1) == bool(arrives[0, state])
    assert intended.distances[0].tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: inductive.intention(m, []), "goals must have 1 entries, got 0"),
        (
            lambda m: inductive.intention(m, [jnp.ones(4)]),
            r"goals\[0\] must be booleans \[4\] or None, got float64 \[4\]",
        ),
        (lambda m: inductive.intention(m, [None], depth=-1), "depth must not be negative, got -1"),
        (lambda m: inductive.intention(m, [None], epsilon=0.0), "epsilon must be above 0"),
        (
            lambda m: inductive.goals_of_observations(m.replace(C=[jnp.zeros((2, 4))])),
            r"C\[0\] changes with the step; name the wanted observations",
        ),
        (
            lambda m: inductive.goals_of_observations(m.replace(C=[m.C[0].at[1].set(jnp.nan)])),
            r"C\[0\] must hold no NaN",
        ),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(corridor(4))


def test_nan_of_model_and_prediction_stays_nan():
    model, beliefs = corridor(3), [np.eye(3)[2]]
    goals = [np.arange(3) == 2]
    unknown = [np.full(3, np.nan)]
    find, value = jax.jit(inductive.intention), jax.jit(inductive.inductive_value)
    plain = find(model, goals)
    assert np.isnan(value(plain, beliefs, unknown))
    assert np.isnan(value(plain, unknown, beliefs))
    move = np.array(model.B[0])
    move[0, 0, 0] = np.nan
    lost = find(model.replace(B=[jnp.asarray(move)]), goals)
    assert np.isnan(lost.distances[0]).all()
    assert np.isnan(value(lost, beliefs, beliefs))

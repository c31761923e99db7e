"""Inductive inference: distances to goals, and plans that follow them."""

import itertools

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
    model = POMDP(
        [jnp.eye(5, dtype=dtype)],
        [jnp.asarray(transition, dtype)],
        [jnp.zeros(5, dtype)],
        [jnp.full(5, 0.2, dtype)],
    )
    measure = jax.jit(
        lambda goals, threshold: inductive.intention(model, [goals], threshold=threshold)
    )
    seen = set()
    for threshold in (0.3, 0.5, 0.7):
        for goal in range(5):
            goals = np.arange(5) == goal
            found = measure(jnp.asarray(goals), threshold).distances[0]
            expected = enumerated_distances(transition, goals, threshold)
            assert found.dtype == dtype
            assert found.tolist() == expected.tolist()
            seen |= set(expected.tolist())
    # The thresholds are such that ways of several lengths, and goals without a way, are among them.
    assert {0.0, 1.0, 2.0, np.inf} <= seen
    few = inductive.intention(model, [jnp.asarray(goals)], threshold=0.3, depth=1).distances[0]
    assert set(few.tolist()) <= {0.0, 1.0, np.inf}


def corridor(length):
    """A row of places, step left, stay or step right; nothing is preferred but its end."""
    places = np.arange(length)
    move = np.zeros((length, length, 3))
    for control, shift in enumerate((-1, 0, 1)):
        move[np.clip(places + shift, 0, length - 1), places, control] = 1
    prefer = jnp.zeros(length).at[-1].set(1.0)
    return POMDP([jnp.eye(length)], [jnp.asarray(move)], [prefer], [jnp.eye(length)[0]])


def test_one_step_of_planning_walks_a_long_corridor_with_an_intention_and_not_without():
    model = corridor(30)
    intended = inductive.intention(model, inductive.goals_of_observations(model))
    assert intended.distances[0].tolist() == list(range(29, -1, -1))
    every = enumerate_policies(model, 1)
    planners = {
        "policies": policy_planner(every, intention=intended),
        "sophisticated": sophisticated_planner(1, intention=intended),
    }
    for name, planner in planners.items():
        controls = jax.jit(jax.vmap(lambda q: planner(model, [q]).controls[0]))(jnp.eye(30))  # noqa: B023
        assert controls[:-1].argmax(axis=1).tolist() == [2] * 29, name
        assert float(controls[:-1, 2].min()) > 0.99, name
    without = policy_planner(every)
    blind = jax.jit(jax.vmap(lambda q: without(model, [q]).controls[0]))(jnp.eye(30))
    # Only the places from which one step leads to the end know more than chance.
    chex.assert_trees_all_close(blind[:-2], jnp.full((28, 3), 1 / 3), rtol=1e-12)


def test_the_term_is_what_leaving_the_way_costs_at_each_step():
    model = corridor(6)
    intended = inductive.intention(model, [jnp.arange(6) == 5], epsilon=0.01)
    policies = np.array([[[2], [2], [2]], [[2], [1], [2]], [[0], [2], [2]]])

    @jax.jit
    def plans(intended):
        found = expected_free_energy(model, model.D, policies, intention=intended)
        plain = expected_free_energy(model, model.D, policies)
        return found, plain, sophisticated(model, model.D, 3, intention=intended, hard=True)

    found, plain, values = plans(intended)
    cost = np.log(0.01)
    expected = jnp.array([[0.0, 0.0, 0.0], [0.0, cost, cost], [cost, cost, cost]])
    chex.assert_trees_all_close(found.inductive, expected, rtol=1e-14)
    chex.assert_trees_all_close(found.neg_efe, plain.neg_efe + expected.sum(axis=1), rtol=1e-14)
    # A search plans again from every belief, so that a step that was lost is lost once.
    chex.assert_trees_all_close(values, jnp.array([cost, cost, 0.0]), atol=1e-12)


def test_where_no_way_leads_the_term_is_silent_and_its_gradient_finite():
    model = corridor(4)
    nowhere = inductive.intention(model, [jnp.zeros(4, bool)])
    assert bool(jnp.isinf(nowhere.distances[0]).all())
    here, there = jnp.eye(4)[0], jnp.eye(4)[1]
    assert float(inductive.inductive_value(nowhere, [here], [there])) == 0

    def value(move):
        changed = model.replace(B=[move])
        intended = inductive.intention(changed, [jnp.arange(4) == 3])
        every = enumerate_policies(changed, 1)
        return expected_free_energy(changed, model.D, every, intention=intended).inductive.sum()

    slope = jax.jit(jax.grad(value))(model.B[0])
    # Staying, in two of three controls, costs -log(0.001) for each unit of probability.
    chex.assert_trees_all_close(slope[0, 0], jnp.full(3, jnp.log(1e-3)), rtol=1e-14)


def test_goals_come_from_preferred_observations_and_transitions_may_follow_other_factors(rng):
    place, side = inductive.goals_of_observations(t_maze())
    assert place.tolist() == [False, True, True, False]
    assert side.tolist() == [True, True]
    model = pomdp_oracle.three_factors(rng, jnp.float64)
    goals = [None, jnp.array([True, False, False]), None]
    intended = inductive.intention(model, goals, threshold=0.5)
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
    model, beliefs = corridor(3), [jnp.eye(3)[2]]
    goals = [jnp.arange(3) == 2]
    unknown = [jnp.full(3, jnp.nan)]
    plain = inductive.intention(model, goals)
    assert jnp.isnan(inductive.inductive_value(plain, beliefs, unknown))
    assert jnp.isnan(inductive.inductive_value(plain, unknown, beliefs))
    broken = model.replace(B=[model.B[0].at[0, 0, 0].set(jnp.nan)])
    lost = inductive.intention(broken, goals)
    assert jnp.isnan(lost.distances[0]).all()
    assert jnp.isnan(inductive.inductive_value(lost, beliefs, beliefs))

"""Exact values over all beliefs that can come about."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle

from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp import POMDP, exact_posterior
from vfejax.problems.belief_graph import reachable_beliefs
from vfejax.problems.belief_mdp import evaluate, optimal_agent, solve
from vfejax.problems.environments import bandit, process, t_maze
from vfejax.problems.episodes import run_episode

MAZE = t_maze(validity=0.9)
arms = jax.jit(bandit)


@pytest.fixture
def model(rng):
    """Two factors, one of which moves by itself and depends on the other."""
    return pomdp_oracle.random_model(
        rng, (2, 2), (2, 2), (2, 1), [[0, 1], [0]], [[0], [1, 0]], jnp.float64
    )


def brute(model, prior, horizon, goal=None):
    """Value of the best actions from a belief over combinations, by the whole tree."""
    if horizon == 0:
        return 0.0
    states, values = pomdp_oracle.combinations(model), []
    for action in enumerate_policies(model, 1)[:, 0]:
        after = np.array(
            [
                sum(
                    pomdp_oracle.transition(model, s, before, action) * p
                    for before, p in zip(states, prior, strict=True)
                )
                for s in states
            ]
        )
        value = 0.0
        for outcome in itertools.product(*(range(n) for n in model.num_observations)):
            seen = np.array([pomdp_oracle.likelihood(model, outcome, s) for s in states])
            chance = seen @ after
            later = 0.0
            if goal is None or outcome[goal[0]] != goal[1]:
                later = brute(model, seen * after / chance, horizon - 1, goal)
            now = float(outcome[goal[0]] == goal[1]) if goal else None
            if goal is None:
                now = sum(c[o] for c, o in zip(model.C, outcome, strict=True))
            value += chance * (now + later)
        values.append(value)
    return max(values)


@pytest.mark.parametrize("goal", [None, (1, 1)])
def test_values_are_those_of_the_whole_tree(model, goal):
    found, plain = solve(model, 2, goal=goal), pomdp_oracle.numbers(model)
    update = jax.jit(lambda seen: exact_posterior(model, seen, model.D).joint)
    for outcome in itertools.product(range(2), range(2)):
        posterior = np.asarray(update(list(outcome)))
        node = found.find(posterior)
        expected = brute(plain, posterior.reshape(-1), 2, goal)
        np.testing.assert_allclose(found.values[0, node], expected, rtol=1e-12)
        np.testing.assert_allclose(found.action_values[0, node].max(), expected, rtol=1e-12)


def test_arrays_that_depend_on_no_factor_are_the_same_for_all_states(rng):
    # Its square shapes would fit each other in the wrong way, too.
    free = pomdp_oracle.random_model(rng, (2,), (2, 2), (2,), [[0], []], [[]], jnp.float64)
    alike = POMDP(
        [free.A[0], jnp.asarray(np.repeat(np.asarray(free.A[1])[:, None], 2, axis=1))],
        [jnp.asarray(np.repeat(np.asarray(free.B[0])[:, None], 2, axis=1))],
        free.C,
        free.D,
    )
    np.testing.assert_allclose(solve(free, 2).value, solve(alike, 2).value, rtol=1e-12)


def test_what_is_expected_is_what_the_values_say(model):
    found = evaluate(model, solve(model, 3), (1, 0))
    np.testing.assert_allclose(found.utility.sum(), solve(model, 3).value, rtol=1e-12)
    sought = solve(model, 3, goal=(1, 0))
    best = evaluate(model, sought, (1, 0))
    assert best.success[-1] > found.success[-1]
    seen = sought.graph.outcomes[sought.graph.start.outcome, 1] == 0
    first = sought.graph.start.probability @ np.where(
        seen, 1.0, sought.values[0, sought.graph.start.target]
    )
    np.testing.assert_allclose(best.success[-1], first, rtol=1e-12)


def test_asking_pays_by_what_it_lets_the_agent_do():
    found = solve(MAZE, 3)
    # Ask, then two steps of the arm that the cue names, right in nine of ten cases.
    np.testing.assert_allclose(found.value, 2 * (0.9 * 3 - 0.1 * 6), rtol=1e-6)
    done = evaluate(MAZE, found, (1, 1))
    np.testing.assert_allclose(done.success, [0.0, 0.0, 0.9, 0.9], rtol=1e-6)
    np.testing.assert_allclose(done.steps, 2.0, rtol=1e-12)
    start = found.find(MAZE.D)
    assert found.graph.controls[found.actions[0, start], 0] == 3
    # With one action there is no time to ask, and the centre is better than a guess.
    assert solve(MAZE, 1).value == 0.0


def test_of_ways_that_are_sure_the_shortest_is_taken():
    sure = t_maze()
    found = evaluate(sure, solve(sure, 6, goal=(1, 1)), (1, 1))
    np.testing.assert_allclose(found.success, [0, 0, 1, 1, 1, 1, 1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.steps, 2.0)


def test_preferences_may_change_with_the_step():
    late = np.zeros((3, 3))
    late[2] = [0.0, 3.0, -6.0]  # only the last observation counts
    model = MAZE.replace(C=[MAZE.C[0], jnp.asarray(late, jnp.float32), MAZE.C[2]])
    # It asks twice, and stays outside if the answers differ.
    np.testing.assert_allclose(solve(model, 3).value, 0.81 * 3 - 0.01 * 6, rtol=1e-6)
    with pytest.raises(ValueError, match=r"C\[1\] has 3 steps and the horizon is 4"):
        solve(model, 4)
    with pytest.raises(ValueError, match=r"C\[1\] has 3 steps and the horizon is 4"):
        evaluate(model, solve(model, 4, goal=(1, 1)), (1, 1))


def test_what_must_never_be_seen_is_worth_minus_infinity(model):
    never = model.replace(C=[model.C[0].at[0].set(-jnp.inf), model.C[1]])
    found = solve(never, 2)
    assert found.value == evaluate(never, found, (1, 1)).utility.sum() == -np.inf
    # Where it can be avoided nothing is paid.
    loss = jnp.array([0.0, 3.0, -jnp.inf], jnp.float32)
    spare = MAZE.replace(C=[MAZE.C[0], loss, MAZE.C[2]])
    found = solve(spare, 3)
    assert found.value == evaluate(spare, found, (1, 1)).utility.sum() == 0.0


def test_an_observation_that_does_not_exist_is_excluded():
    # By its number alone the second would be taken for another one.
    player = optimal_agent(MAZE, solve(MAZE, 1))
    step = jax.jit(player.step)
    for seen, possible in (([0, 0, 0], True), ([0, -1, 3], False), ([0, 0, 3], False)):
        decision = step(player.init(), jnp.array(seen), jax.random.key(0))[1]
        assert np.isfinite(decision.free_energy) == possible


def test_the_agent_does_what_the_solution_says_and_is_worth_its_value():
    model = arms(jnp.array([0.2, 0.8]))
    found = solve(model, 4)
    player = optimal_agent(model, found)
    keys = jax.random.split(jax.random.key(0), 4000)
    run = jax.jit(jax.vmap(lambda key: run_episode(player, process(model), key, 5)))
    model, episodes = jax.device_get((model, run(keys)))
    paid = (episodes.observations[:, 1:, 0] == 2).sum(axis=1)
    error = paid.std() / np.sqrt(len(paid))
    assert abs(paid.mean() - found.value) < 4 * error
    assert error < 0.03
    # Its beliefs are Bayes' rule along what it saw.
    decisions = jax.tree.map(lambda x: x[0], episodes.decisions)
    belief = np.array([0.5, 0.5])
    for t, observation in enumerate(episodes.observations[0]):
        if t:
            belief = belief * model.A[0][observation[0], observation[1]]
            belief /= belief.sum()
        chex.assert_trees_all_close(decisions.beliefs[1][t], belief, rtol=1e-5)
    with pytest.raises(ValueError, match="mask must be None"):
        player.step(player.init(), jnp.array([0, 0]), keys[0], jnp.array([True, False]))


def test_beliefs_of_a_deterministic_world_close_and_others_do_not():
    assert reachable_beliefs(t_maze(), 3).closed
    model = arms(jnp.array([0.3, 0.8]))
    graph = reachable_beliefs(model, 3)
    assert not graph.closed
    np.testing.assert_allclose(graph.beliefs.sum(axis=1), 1.0, rtol=1e-12)
    total = np.zeros((len(graph.beliefs), len(graph.controls)))
    np.add.at(total, graph.edges[:2], graph.edges.probability)
    np.testing.assert_allclose(total[graph.depth < 3], 1.0, rtol=1e-12)
    found = solve(model, 3)
    assert np.isnan(found.values[0, graph.depth == 3]).all()
    assert np.isfinite(found.values[3]).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: solve(MAZE, 0), "horizon must be at least 1, got 0"),
        (lambda: solve(MAZE, 2, goal=(3, 0)), r"goal must be a modality, 0 to 2, .* got \(3, 0\)"),
        (lambda: solve(MAZE, 2, max_beliefs=5), r"more than 5 beliefs can come about within 1"),
        (
            lambda: reachable_beliefs(arms(np.linspace(0.1, 0.9, 40)), 1),
            "1640 combinations of states, 41 joint controls and 123 joint outcomes are too many",
        ),
        (
            lambda: solve(MAZE, 2).find([np.eye(4)[0], np.array([0.7, 0.3])]),
            "the belief cannot come about",
        ),
    ],
)
def test_what_cannot_be_solved_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

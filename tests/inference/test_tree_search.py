"""Monte Carlo tree search beside the full search."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import pomdp_oracle
from scipy.special import softmax

from vfejax.inference.expected_free_energy import expected_free_energy
from vfejax.inference.inductive import intention
from vfejax.inference.planning import sophisticated
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp import POMDP, infer_states, predict_states
from vfejax.inference.tree_search import tree_search, tree_search_planner
from vfejax.problems.environments import cue_chain, t_maze
from vfejax.problems.grid_world import grid_world

pytest.importorskip("mctx")


def search(model, belief, horizon, num_simulations, **options):
    """The search, compiled."""
    key = jax.random.key(0)
    run = jax.jit(
        lambda m, q: tree_search(m, q, horizon, key, num_simulations=num_simulations, **options)
    )
    return run(model, belief)


def test_it_chooses_what_the_full_search_chooses_in_the_maze_and_on_the_grid():
    maze, grid = t_maze(), grid_world()
    key = jax.random.key(0)
    choose = jax.jit(lambda m, q: tree_search(m, q, 2, key, num_simulations=48))
    exact = jax.jit(lambda m, q: sophisticated(m, q, 2, hard=True, num_outcomes=4))
    told = jax.jit(
        lambda m, seen, action: infer_states(m, seen, predict_states(m, m.D, action))[0]
    )(maze, [3, 0, 2], [3, 0])
    for model, belief, action in (
        (maze, maze.D, 3),
        (maze, told, 2),
        (grid, grid.D, 2),
    ):
        best, found = jax.device_get((exact(model, belief), choose(model, belief)))
        assert int(best.argmax()) == action
        assert int(found.visits.argmax()) == action
        # A mean over simulations lies below the best.
        assert float(found.neg_efe[action]) <= float(best[action]) + 1e-4


def test_its_values_come_near_those_of_the_full_search(rng, dtype):
    model = pomdp_oracle.one_factor(rng, dtype)
    found = search(model, model.D, 2, 1000)
    assert found.neg_efe.dtype == dtype
    chex.assert_trees_all_close(found.visits.sum(), jnp.ones((), dtype), rtol=1e-5)
    exact = jax.jit(lambda m: sophisticated(m, m.D, 2, hard=True))(model)
    best = int(exact.argmax())
    assert int(found.visits.argmax()) == best
    # A thousand nodes; some explore, and outcomes come in whole numbers.
    assert abs(float(exact[best] - found.neg_efe[best])) < 0.01


def test_it_plans_further_than_a_full_search_can():
    chain = cue_chain(6)
    with pytest.raises(ValueError, match="more than 2"):
        sophisticated(chain, chain.D, 8, num_outcomes=2)
    found = search(chain, chain.D, 8, 1500)
    assert float(found.visits[1]) > 0.6


def test_one_step_is_exact_and_habits_and_intentions_count():
    stay, row = np.eye(5), np.eye(5, k=-1)
    row[4, 4] = 1.0
    arrays = [stay], [np.stack([stay, row], axis=-1)], [np.arange(5.0) / 9], [stay[0]]
    model = POMDP(*jax.tree.map(jnp.asarray, arrays))
    goal = jax.jit(intention)(model, [np.arange(5) == 4])
    planner = tree_search_planner(1, jax.random.key(0), num_simulations=64, intention=goal)
    plan = jax.jit(lambda m: planner(m, m.D))
    free = jax.device_get(plan(model))
    every = enumerate_policies(model, 1)
    exact = jax.device_get(
        jax.jit(lambda m: expected_free_energy(m, m.D, every, intention=goal).neg_efe)(model)
    )
    assert exact.tolist() == [pytest.approx(np.log(1e-3)), pytest.approx(1 / 9)]
    assert float(free.neg_efe[1]) == pytest.approx(1 / 9)
    assert float(free.posterior[1]) > 0.9
    chex.assert_trees_all_close(free.controls[0], free.posterior)
    # A habit of 20 nats is tried first.
    habitual = jax.device_get(plan(model.replace(E=softmax([20.0, 0.0]))))
    assert float(habitual.posterior[0]) > 0.5
    chex.assert_trees_all_close(habitual.neg_efe[0], exact[0], rtol=1e-12)


def test_what_does_not_fit_is_named():
    model, key = t_maze(), jax.random.key(0)
    with pytest.raises(ValueError, match="horizon must be at least 1, got 0"):
        tree_search(model, model.D, 0, key)
    with pytest.raises(ValueError, match="num_simulations must be at least 1, got 0"):
        tree_search(model, model.D, 1, key, num_simulations=0)
    with pytest.raises(ValueError, match="40 actions and joint outcomes has more than 2"):
        tree_search(model, model.D, 1, key, num_simulations=2**21)
    with pytest.raises(ValueError, match=r"E must have shape \[4\]"):
        tree_search(model.replace(E=jnp.ones(3) / 3), model.D, 1, key)

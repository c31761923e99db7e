"""Worlds for agents that plan, and episodes in them."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference import active_inference
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp import check_model
from vfejax.problems import environments, grid_world
from vfejax.problems.episodes import run_episode

WORLDS = {
    "bandit": lambda: jax.jit(environments.bandit)(jnp.array([0.2, 0.5, 0.9])),
    "t-maze": lambda: environments.t_maze(validity=0.9),
    "grid": lambda: grid_world.grid_world(slip=0.1, validity=0.8),
    "cue chain": lambda: environments.cue_chain(3, 3),
    "random": lambda: random_world(jax.random.key(0)),
}


@jax.jit
def random_world(key):
    return environments.random_model(key, [3, 2], [4, 2], [2, 1])


@pytest.mark.parametrize("name", WORLDS)
def test_every_world_is_a_model_whose_columns_are_probabilities(name):
    check_model(WORLDS[name]())


def test_a_world_behaves_as_its_model_says():
    model = random_world(jax.random.key(1))
    world = environments.process(model)
    keys = jax.random.split(jax.random.key(2), 40_000)

    @jax.jit
    @jax.vmap
    def run(key):
        first, second = jax.random.split(key)
        state, _ = world.init(first)
        after, seen = world.step(np.array([2, 1]), np.array([1, 0]), second)
        return state, after, seen

    model, (state, after, seen) = jax.device_get((model, run(keys)))
    after_both = np.outer(model.B[0][:, 2, 1], model.B[1][:, 1, 0])
    expected = np.einsum("oab,ab->o", model.A[0], after_both)
    # Standard errors of a frequency are below 0.0025.
    for found, wanted in (
        (state[:, 0], model.D[0]),
        (after[:, 0], model.B[0][:, 2, 1]),
        (seen[:, 0], expected),
    ):
        frequencies = np.bincount(found, minlength=len(wanted)) / len(keys)
        np.testing.assert_allclose(frequencies, wanted, rtol=0, atol=0.0125)


def test_walls_stop_moves_and_goals_keep():
    model = grid_world.grid_world("#####\n#S.1#\n#.#T#")
    grid = grid_world.read_map("#####\n#S.1#\n#.#T#")
    assert grid.cells.tolist() == [[1, 1], [1, 2], [1, 3], [2, 1], [2, 3]]
    targets = np.asarray(model.B[0]).argmax(axis=0)  # [place, control]
    assert targets[0].tolist() == [0, 1, 3, 0, 0]
    assert targets[2].tolist() == [2] * 5
    assert targets[4].tolist() == [4] * 5
    assert np.asarray(model.A[1])[:, [2, 4], 0].argmax(axis=0).tolist() == [1, 2]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("S.1\n.x.", "map row 2, column 2: 'x' must be one of"),
        ("..1", "the map must have one S, got 0"),
        ("S.S1", "the map must have one S, got 2"),
        ("S1.1", "the map must have one 1, got 2"),
        ("S..", "the map must have a place for the reward"),
    ],
)
def test_a_map_that_cannot_be_read_names_its_fault(text, message):
    with pytest.raises(ValueError, match=message):
        grid_world.grid_world(text)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: environments.t_maze(validity=1.5), "validity must be a probability, got 1.5"),
        (lambda: grid_world.grid_world(slip=-0.1), "slip must be a probability, got -0.1"),
        (lambda: environments.bandit(jnp.ones(1)), r"chances must have shape \[k\], k at least 2"),
        (
            lambda: environments.bandit(jnp.array([0.5, 1.5])),
            r"chances must be probabilities, got \[0\.5",
        ),
        (lambda: environments.cue_chain(0), "length must be at least 1 and sides 2, got 0 and 2"),
    ],
)
def test_what_cannot_be_is_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_chances_of_a_bandit_may_be_integers():
    model = environments.bandit(jnp.array([0, 1]), reward=0.5)
    chex.assert_trees_all_equal(model, environments.bandit(jnp.array([0.0, 1.0]), reward=0.5))
    check_model(model)


def rewards(model, planner, num_steps, num_episodes=64):
    """Reward and punishment at the end of many episodes, and all of their actions."""
    seeker = active_inference.agent(model, planner, temperature=0)
    world = environments.process(model)
    keys = jax.random.split(jax.random.key(3), num_episodes)
    run = jax.jit(jax.vmap(lambda key: run_episode(seeker, world, key, num_steps)))
    episodes = run(keys)
    last = np.asarray(episodes.observations[:, -1, 1])
    return (last == 1).mean(), (last == 2).mean(), episodes


def test_an_agent_that_values_information_asks_first_and_one_that_does_not_cannot_know():
    maze = environments.t_maze()
    right, wrong, episodes = rewards(maze, active_inference.sophisticated_planner(2), 3)
    assert (right, wrong) == (1.0, 0.0)
    assert (np.asarray(episodes.states)[:, 1, 0] == 3).all()
    # Free energy of the cue: its two values were equally probable.
    np.testing.assert_allclose(episodes.decisions.free_energy[:, 1], np.log(2), rtol=1e-5)
    greedy = active_inference.utility_planner(enumerate_policies(maze, 2))
    right, wrong, _ = rewards(environments.t_maze(punishment=2.0), greedy, 3)
    assert 0.3 < right < 0.7
    assert right + wrong == 1.0


@pytest.mark.slow
def test_the_map_that_ships_needs_the_cue():
    model = grid_world.grid_world()
    every = enumerate_policies(model, 4)
    right, _, episodes = rewards(model, active_inference.policy_planner(every), 9, 16)
    assert right == 1.0
    cue = grid_world.read_map(grid_world.EXAMPLE_MAP).cues[0]
    assert (np.asarray(episodes.states)[:, :, 0] == cue).any(axis=1).all()
    greedy, _, _ = rewards(model, active_inference.utility_planner(every), 9, 16)
    assert greedy < 0.8


def test_an_episode_needs_a_step():
    maze = environments.t_maze()
    seeker = active_inference.agent(maze, active_inference.sophisticated_planner(1))
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        run_episode(seeker, environments.process(maze), jax.random.key(0), 0)

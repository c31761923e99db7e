"""Several agents in one world."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.active_inference import agent, policy_planner, utility_planner
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp import check_model
from vfejax.problems.episodes import run_episode
from vfejax.problems.several_agents import alike, shared_grid, shared_grid_model, team

SQUARE = "...\n.#.\n..."


def test_moves_come_one_after_the_other_in_any_order():
    """Three agents in a row of five: the middle one blocks or gives way, by who is first."""
    world = shared_grid(".....", 3)
    state, actions = np.array([[1], [2], [4]]), np.array([[1], [1], [3]])  # right, right, left
    expected: dict = {}
    for order in itertools.permutations(range(3)):
        places = state[:, 0].copy()
        for i in order:
            target = places[i] + (1 if actions[i, 0] == 1 else -1)
            if target not in places:
                places[i] = target
        expected[tuple(places)] = expected.get(tuple(places), 0) + 1 / 6
    keys = jax.random.split(jax.random.key(0), 6000)
    move = jax.jit(jax.vmap(lambda key: world.step(jnp.asarray(state), jnp.asarray(actions), key)))
    after, _ = move(keys)
    found, counts = np.unique(np.asarray(after)[:, :, 0], axis=0, return_counts=True)
    assert {tuple(row) for row in found} == set(expected)
    for row, count in zip(found, counts, strict=True):
        # A frequency of 6000 has a standard error below 0.0065.
        assert abs(count / 6000 - expected[tuple(row)]) < 0.026


def test_each_sees_the_nearest_other_within_sight():
    world = shared_grid("......", 3, sight=2)
    step, stay = jax.jit(world.step), np.full((3, 1), 4)
    _, seen = step(np.array([[0], [2], [5]]), stay, jax.random.key(0))
    assert seen.tolist() == [[0, 2, 0], [2, 0, 0], [5, 6, 0]]
    _, seen = step(np.array([[0], [4], [5]]), stay, jax.random.key(0))
    assert seen.tolist() == [[0, 6, 0], [4, 5, 1], [5, 4, 1]]
    # Actions of NumPy that no transformation has seen.
    _, seen = jax.eval_shape(lambda: world.step(stay, stay, jax.random.key(0)))
    assert seen.shape == (3, 3)


@pytest.fixture(scope="module")
def meetings():
    """Episodes of pairs that wish to stand beside each other, and of pairs that stray."""
    model, world = shared_grid_model(SQUARE), shared_grid(SQUARE)
    every = enumerate_policies(model, 2)
    keys = jax.random.split(jax.random.key(1), 64)

    @jax.jit
    def run(keys, gamma):
        pair = alike(agent(model, policy_planner(every, gamma=gamma)), 2)
        return jax.vmap(lambda key: run_episode(pair, world, key, 8))(keys)

    return {name: run(keys, np.float32(gamma)) for name, gamma in (("seek", 16), ("stray", 0))}


def test_two_who_wish_to_meet_do(meetings):
    beside = {name: np.asarray(e.observations[..., 2]) for name, e in meetings.items()}
    # Two of the eight places of the ring are beside another one: chance is 2 / 7. Each takes the
    # other for one that strays, and so they sometimes pass each other.
    assert beside["seek"][:, -1].mean() > 0.7
    np.testing.assert_allclose(beside["stray"].mean(), 2 / 7, rtol=0, atol=0.08)


def test_no_place_ever_holds_two(meetings):
    for episodes in meetings.values():
        places = np.asarray(episodes.states[..., 0])
        assert (places[..., 0] != places[..., 1]).all()
        np.testing.assert_array_equal(places, episodes.observations[..., 0])


def test_a_team_of_one_kind_is_that_kind_under_vmap(dtype):
    model, world = shared_grid_model("....", dtype=dtype), shared_grid("....")
    check_model(model)
    one = agent(model, policy_planner(enumerate_policies(model, 1)))
    both, apart = (
        jax.jit(lambda k, pair=pair: run_episode(pair, world, k, 4))(jax.random.key(2))
        for pair in (alike(one, 2), team([one, one]))
    )
    np.testing.assert_array_equal(both.states, apart.states)
    for i in range(2):
        beliefs = tuple(q[:, i] for q in both.decisions.beliefs)
        # A batched product sums in another order.
        tolerance = 100 * jnp.finfo(dtype).eps
        chex.assert_trees_all_close(beliefs, apart.decisions.beliefs[i], rtol=0, atol=tolerance)


def test_kinds_may_differ():
    model, world = shared_grid_model("...."), shared_grid("....")
    every, single = enumerate_policies(model, 2), enumerate_policies(model, 1)
    pair = team([agent(model, policy_planner(every)), agent(model, utility_planner(single))])
    episode = jax.jit(lambda k: run_episode(pair, world, k, 3))(jax.random.key(3))
    assert episode.decisions.action.shape == (3, 2, 2)
    assert [plan.posterior.shape for plan in episode.decisions.plan] == [(3, 25), (3, 5)]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: shared_grid("..", 3), "num_agents must be 2 to 2, the places of the map, got 3"),
        (lambda: shared_grid("..S"), "map row 1, column 3: 'S' must be one of # ."),
        (lambda: shared_grid_model("##"), "the map must have a place that is no wall"),
        (lambda: team([]), "agents must have at least one"),
        (
            lambda: team([None]).step((), jnp.zeros((2, 3), int), jax.random.key(0)),
            "observation must have a row for each of 1 agents, got 2",
        ),
        (lambda: alike(None, 0), "num must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

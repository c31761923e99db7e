"""Worlds of ours for agents of others, and the other way round."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.active_inference import agent, policy_planner, sophisticated_planner
from vfejax.inference.inductive import intention
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp import POMDP
from vfejax.problems.environments import Environment, process, random_model, t_maze
from vfejax.problems.gymnasium_worlds import act_in, as_gymnasium

gymnasium = pytest.importorskip("gymnasium")


def compiled(model):
    return Environment(*map(jax.jit, process(model)))


@pytest.fixture(scope="module")
def maze():
    model = t_maze(validity=0.9)
    return model, compiled(model)


def test_gymnasium_finds_nothing_wrong_with_our_worlds(maze):
    from gymnasium.utils.env_checker import check_env

    model, world = maze
    check_env(as_gymnasium(world, model, 4), skip_render_check=True)
    # One modality and two controlled factors: the other kinds of spaces.
    other = random_model(jax.random.key(0), [3, 2, 2], [4], [2, 1, 3])
    env = as_gymnasium(compiled(other), other, 4)
    check_env(env, skip_render_check=True)
    assert env.observation_space == gymnasium.spaces.Discrete(4)
    assert env.action_space == gymnasium.spaces.MultiDiscrete([2, 3])


def test_an_episode_is_that_of_the_world_and_pays_what_is_preferred(maze):
    model, world = maze
    env = as_gymnasium(world, model, 3)

    def play(seed):
        rows = [env.reset(seed=seed)[0]]
        ends, pays, states = [], [], []
        for action in (3, 1, 0):
            row, pay, terminated, truncated, info = env.step(np.int64(action))
            rows.append(row)
            pays.append(pay)
            ends.append((terminated, truncated))
            states.append(info["state"].tolist())
        return np.array(rows), pays, ends, states

    rows, pays, ends, states = play(5)
    assert rows[:, 0].tolist() == [0, 3, 1, 1]
    assert [state[0] for state in states] == [3, 1, 1]
    assert pays == [float(model.C[1][row[1]]) for row in rows[1:]]
    assert ends == [(False, False), (False, False), (False, True)]
    again = play(5)
    assert np.array_equal(rows, again[0])
    assert states == again[3]
    sides = {play(seed)[3][0][1] for seed in range(8)}
    assert sides == {0, 1}
    # A reset without a seed goes on with the numbers that are drawn.
    sides = set()
    for _ in range(16):
        env.reset()
        sides.add(env.step(np.int64(3))[4]["state"][1].item())
    assert sides == {0, 1}
    with pytest.raises(ValueError, match=r"action must be in Discrete\(4\), got 4"):
        env.step(4)


def test_our_agent_acts_in_our_world_through_gymnasium():
    model = t_maze()
    env = as_gymnasium(compiled(model), model, 3)
    seeker = agent(model, sophisticated_planner(2), temperature=0)
    seeker = seeker._replace(step=jax.jit(seeker.step))
    for seed in range(4):
        episode = act_in(env, seeker, model, jax.random.key(seed), 10)
        assert episode.observations[:, 0].tolist()[:2] == [0, 3]
        assert episode.rewards.tolist() == [0.0, 3.0, 3.0]
        assert (episode.terminated, episode.truncated) == (False, True)
    assert len(act_in(env, seeker, model, jax.random.key(0), 1).actions) == 1


def lake_model(table):
    """A model of a world whose state is seen, from gymnasium's table of transitions."""
    states, controls = len(table), len(table[0])
    move, prefer = np.zeros((states, states, controls)), np.zeros(states)
    for s, rows in table.items():
        for u, outcomes in rows.items():
            for chance, after, reward, _ in outcomes:
                move[after, s, u] += chance
                if reward > 0:
                    prefer[after] = reward
    eye = np.eye(states)
    return POMDP(*([jnp.asarray(x)] for x in (eye, move, prefer, eye[0])))


def test_our_agent_crosses_the_frozen_lake_with_one_step_of_planning_and_an_intention():
    env = gymnasium.make("FrozenLake-v1", is_slippery=False)
    model = lake_model(env.unwrapped.P)
    goals = intention(model, [model.C[0] > 0])
    # Holes cannot be left, so no way leads through them.
    assert float(goals.distances[0][0]) == 6
    planner = policy_planner(enumerate_policies(model, 1), intention=goals)
    walker = agent(model, planner, temperature=0)
    walker = walker._replace(step=jax.jit(walker.step))
    episode = act_in(env, walker, model, jax.random.key(0), 20)
    assert len(episode.rewards) == 6
    assert episode.rewards[-1] == 1.0
    assert (episode.terminated, episode.truncated) == (True, False)


def test_spaces_of_several_parts_start_where_they_say():
    spaces = gymnasium.spaces

    class Echo(gymnasium.Env):
        """Shows the action."""

        observation_space = spaces.Tuple([spaces.Discrete(2, start=5), spaces.Discrete(3)])
        action_space = spaces.MultiDiscrete([2, 3], start=[7, 1])

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            return (5, 0), {}

        def step(self, action):
            assert self.action_space.contains(action)
            return (action[0] - 2, action[1] - 1), 1.0, False, False, {}

    sizes = (2, 3)
    arrays = (
        [np.eye(n) for n in sizes],
        [np.broadcast_to(np.eye(n)[:, None], (n, n, n)) for n in sizes],
        [np.array([0.0, 9.0]), np.array([0.0, 0.0, 9.0])],
        [np.eye(n)[0] for n in sizes],
    )
    model = POMDP(*jax.tree.map(jnp.asarray, arrays), A_dependencies=[[0], [1]])
    chooser = agent(model, policy_planner(enumerate_policies(model, 1)), temperature=0)
    chooser = chooser._replace(step=jax.jit(chooser.step))
    episode = act_in(Echo(), chooser, model, jax.random.key(0), 1)
    assert episode.observations.tolist() == [[0, 0], [1, 2]]
    assert episode.actions.tolist() == [[1, 2]]


def test_what_does_not_fit_is_named(maze):
    model, world = maze
    env = as_gymnasium(world, model, 1)
    seeker = agent(model, sophisticated_planner(1))
    with pytest.raises(gymnasium.error.ResetNeeded, match="call reset"):
        env.step(0)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        as_gymnasium(world, model, 0)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        act_in(env, seeker, model, jax.random.key(0), 0)
    fixed = model.replace(B=[b[..., :1] for b in model.B])
    with pytest.raises(ValueError, match="a factor with more than one control"):
        as_gymnasium(world, fixed, 1)
    env.action_space = gymnasium.spaces.Discrete(3)
    with pytest.raises(
        ValueError, match=r"action_space must have sizes \(4,\) as the model, got \(3,\)"
    ):
        act_in(env, seeker, model, jax.random.key(0), 1)
    env.observation_space = gymnasium.spaces.Box(0, 1)
    with pytest.raises(ValueError, match=r"observation_space must be Discrete, .* got Box"):
        act_in(env, seeker, model, jax.random.key(0), 1)

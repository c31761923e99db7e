"""Episodes: an agent and a world that take turns, as one scan, and learning from many of them."""

from typing import NamedTuple

import jax

from vfejax.inference.active_inference import Agent, Decision
from vfejax.inference.learning_agents import Learner
from vfejax.inference.pomdp.learning import Counts
from vfejax.problems.environments import Environment
from vfejax.types import Array, PyTree

__all__ = ["Episode", "learn_episode", "run_episode", "run_episodes"]


class Episode(NamedTuple):
    """What happened.

    Attributes:
        states: of the world, integers ``[t, f]``.
        observations: integers ``[t, m]``.
        decisions: what happened inside the agent at each observation, ``[t, ...]``.
    """

    states: Array
    observations: Array
    decisions: Decision


def _play(agent: Agent, world: Environment, key: Array, num_steps: int) -> tuple[PyTree, Episode]:
    """The agent's last state, and the episode."""
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    first, rest = jax.random.split(key)

    def step(
        carry: tuple[PyTree, Array, Array], key: Array
    ) -> tuple[tuple[PyTree, Array, Array], tuple[Array, Array, Decision]]:
        own, state, observation = carry
        chosen, moved = jax.random.split(key)
        own, decision = agent.step(own, observation, chosen)
        after = world.step(state, decision.action, moved)
        return (own, *after), (state, observation, decision)

    start = (agent.init(), *world.init(first))
    (own, *_), history = jax.lax.scan(step, start, jax.random.split(rest, num_steps))
    return own, Episode(*history)


def run_episode(agent: Agent, world: Environment, key: Array, num_steps: int) -> Episode:
    """One episode of observations and actions.

    Args:
        agent: its ``init`` and ``step``.
        world: its ``init`` and ``step``.
        key: a random key; many keys under ``vmap`` are a batch of episodes.
        num_steps: observations, at least 1.

    >>> from vfejax.inference.active_inference import agent, sophisticated_planner
    >>> from vfejax.problems.environments import process, t_maze
    >>> maze = t_maze()
    >>> seeker = agent(maze, sophisticated_planner(2), temperature=0)
    >>> episode = jax.jit(lambda key: run_episode(seeker, process(maze), key, 3))(jax.random.key(0))
    >>> episode.states[:2, 0].tolist(), episode.observations[2, 1].tolist()  # cue, then reward
    ([0, 3], 1)
    """
    return _play(agent, world, key, num_steps)[1]


def learn_episode(
    learner: Learner, world: Environment, counts: Counts, key: Array, num_steps: int
) -> tuple[Counts, Episode]:
    """One episode, and the counts after it.

    Args:
        learner: makes the agent from the counts, and counts what it lived through.
        world: its ``init`` and ``step``.
        counts: from before; many of them under ``vmap`` are learners side by side.
        key: a random key.
        num_steps: observations, at least 1.

    >>> from vfejax.inference.active_inference import utility_planner
    >>> from vfejax.inference.learning_agents import step_learner
    >>> from vfejax.inference.policies import enumerate_policies
    >>> from vfejax.inference.pomdp.learning import counts_of
    >>> from vfejax.problems.environments import process, t_maze
    >>> maze = t_maze()
    >>> plan, prior = utility_planner(enumerate_policies(maze, 1)), counts_of(maze, "D", 2.0)
    >>> learner = step_learner(maze, lambda counts: plan, prior)
    >>> counts, _ = learn_episode(learner, process(maze), prior, jax.random.key(0), 2)
    >>> [round(float(x), 2) for x in counts.D[1]]  # before it looked, either side
    [1.5, 1.5]
    """
    own, episode = _play(learner.agent(counts), world, key, num_steps)
    return learner.learn(counts, own, episode.observations, episode.decisions), episode


def run_episodes(
    learner: Learner,
    world: Environment,
    counts: Counts,
    key: Array,
    *,
    num_episodes: int,
    num_steps: int,
) -> tuple[Counts, Episode]:
    """Episodes one after the other, with what was learned carried along, as one scan.

    Args:
        learner: makes the agent from the counts, and counts what it lived through.
        world: its ``init`` and ``step``; a state is drawn anew for every episode.
        counts: from before the first episode; many keys under ``vmap`` are learners side by side.
        key: a random key.
        num_episodes: at least 1.
        num_steps: observations of each, at least 1.

    Returns:
        The counts after the last episode, and all episodes ``[num_episodes, t, ...]``.

    >>> import jax.numpy as jnp
    >>> from vfejax.inference.active_inference import utility_planner
    >>> from vfejax.inference.learning_agents import episode_learner
    >>> from vfejax.inference.policies import enumerate_policies
    >>> from vfejax.inference.pomdp.learning import counts_of
    >>> from vfejax.problems.environments import bandit, process
    >>> truth, start = bandit(jnp.array([0.0, 1.0]), start_known=True), bandit(jnp.array([0.0, 1]))
    >>> plan, prior = utility_planner(enumerate_policies(start, 1)), counts_of(start, "D", 2.0)
    >>> learner = episode_learner(start, lambda counts: plan, prior)
    >>> counts, _ = run_episodes(
    ...     learner, process(truth), prior, jax.random.key(0), num_episodes=10, num_steps=3)
    >>> [round(float(x), 2) for x in counts.D[1]]  # one pull says which arm pays
    [11.0, 1.0]
    """
    if num_episodes < 1:
        raise ValueError(f"num_episodes must be at least 1, got {num_episodes}")

    def step(counts: Counts, key: Array) -> tuple[Counts, Episode]:
        return learn_episode(learner, world, counts, key, num_steps)

    return jax.lax.scan(step, counts, jax.random.split(key, num_episodes))

"""Episodes: an agent and a world that take turns, as one scan."""

from typing import NamedTuple

import jax

from vfejax.inference.active_inference import Agent, AgentState, Decision
from vfejax.problems.environments import Environment
from vfejax.types import Array

__all__ = ["Episode", "run_episode"]


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
    if num_steps < 1:
        raise ValueError(f"num_steps must be at least 1, got {num_steps}")
    first, rest = jax.random.split(key)

    def step(
        carry: tuple[AgentState, Array, Array], key: Array
    ) -> tuple[tuple[AgentState, Array, Array], tuple[Array, Array, Decision]]:
        own, state, observation = carry
        chosen, moved = jax.random.split(key)
        own, decision = agent.step(own, observation, chosen)
        after = world.step(state, decision.action, moved)
        return (own, *after), (state, observation, decision)

    start = (agent.init(), *world.init(first))
    return Episode(*jax.lax.scan(step, start, jax.random.split(rest, num_steps))[1])

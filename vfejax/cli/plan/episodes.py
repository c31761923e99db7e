"""The episodes of ``vfejax plan`` as the loop runs them: one step is one of all agents."""

import math
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli.plan import agents
from vfejax.cli.plan.agents import Moment
from vfejax.cli.plan.config import PlanConfig
from vfejax.cli.plan.problem import Problem
from vfejax.inference.active_inference import Agent
from vfejax.problems.environments import Environment, process
from vfejax.problems.episodes import Episode, run_episode
from vfejax.runs import loop
from vfejax.runs.seeds import random_key
from vfejax.types import Array, PyTree

__all__ = ["COLUMNS", "Score", "Shown", "play", "program", "score"]

COLUMNS = (
    *("success_rate", "reward", "steps_to_goal", "free_energy", "expected_utility"),
    *("state_information_gain", "parameter_information_gain", "risk", "ambiguity"),
    "policy_entropy",
)
"""Of ``metrics.csv``; energies in nats."""
_WATCHED = ("free_energy", "reward", "expected_utility", "policy_entropy")


class Score(NamedTuple):
    """How an agent did in an episode.

    Attributes:
        success: whether its last observation was the goal.
        reward: log preferences of its observations after the first, summed, in nats.
        steps: actions until the goal was observed first; NaN where it never was.
    """

    success: Array
    reward: Array
    steps: Array


def score(problem: Problem, observations: Array) -> Score:
    """How well it went, from observations ``[t, m]``."""
    modality, wanted = problem.goal
    preferred = [c[observations[1:, m]] for m, c in enumerate(problem.world.C)]
    reward = jnp.sum(jnp.stack(preferred))
    reached = observations[:, modality] == wanted
    first = jnp.argmax(reached).astype(problem.world.D[0].dtype)
    return Score(reached[-1], reward, jnp.where(jnp.any(reached), first, jnp.nan))


def play(agent: Agent, world: Environment, config: PlanConfig, number: Array) -> Episode:
    """One episode of all agents of the batch ``[b, t, ...]``: its worlds depend on the seed and the
    number alone, so that other agents meet the same.

    Args:
        agent: who plays.
        world: where.
        config: the seed, the batch and the length.
        number: of the episode, from 0.
    """
    key = jax.random.fold_in(random_key(config.seed), number)
    keys = jax.random.split(key, config.batch)
    return jax.vmap(lambda key: run_episode(agent, world, key, config.length))(keys)


class Shown(NamedTuple):
    """What is kept of the last episode.

    Attributes:
        states: of the worlds, integers ``[b, t, f]``.
        observations: integers ``[b, t, m]``.
        first: what the first agent told, ``[t, ...]``.
    """

    states: Array
    observations: Array
    first: Moment


class _Info(NamedTuple):
    """What the loop keeps of one episode: means over agents, and the first agent."""

    row: dict[str, Array]
    shown: Shown


def _row(problem: Problem, episode: Episode) -> dict[str, Array]:
    """Means over agents (and moments) of one episode; energies in nats."""
    scores = jax.vmap(lambda seen: score(problem, seen))(episode.observations)
    told = cast(Moment, episode.decisions)
    terms = told.terms
    numbers = {
        "free_energy": told.free_energy,
        "expected_utility": terms.utility,
        "state_information_gain": cast(Array, terms.joint),
        "parameter_information_gain": terms.parameters,
        "risk": terms.risk,
        "ambiguity": terms.ambiguity,
        "policy_entropy": told.entropy,
    }
    return {
        "success_rate": jnp.mean(scores.success.astype(scores.reward.dtype)),
        "reward": jnp.mean(scores.reward),
        "steps_to_goal": jnp.nanmean(scores.steps),
        **{name: jnp.mean(x) for name, x in numbers.items()},
    }


def program(config: PlanConfig, problem: Problem) -> loop.Program:
    """All episodes, one for each step of the loop."""
    agent = agents.build(config, problem.world, config.planner)
    world = process(problem.world)

    def step(state: PyTree, number: Array) -> tuple[PyTree, _Info]:
        episode = play(agent, world, config, number)
        first = jax.tree.map(lambda x: x[0], episode.decisions)
        shown = Shown(episode.states, episode.observations, first)
        return state, _Info(_row(problem, episode), shown)

    blank = jax.eval_shape(lambda: step((), jnp.uint32(0))[1])

    def observe(step: int, state: PyTree, infos: Any, memory: PyTree) -> loop.Observation:
        if infos is None:
            return loop.Observation(dict.fromkeys(COLUMNS, math.nan), memory)
        row = {name: _mean(np.asarray(infos.row[name])) for name in COLUMNS}
        last = jax.tree.map(lambda x: np.asarray(x[-1]), infos.shown)
        return loop.Observation(row, last, {name: row[name] for name in ("success_rate", "reward")})

    return loop.Program(
        init=lambda: (),
        step=step,
        observe=observe,
        memory=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), blank.shown),
        inputs=lambda step, num_steps: np.arange(step, step + num_steps, dtype=np.uint32),
        watched=lambda infos: {name: infos.row[name] for name in _WATCHED},
        advice="try a smaller --gamma or --precision float64",
    )


def _mean(values: np.ndarray) -> float:
    """Over the numbers that are there; NaN without any."""
    known = values[~np.isnan(values)]
    return float(np.mean(known, dtype=np.float64)) if known.size else math.nan

"""The episodes of ``vfejax plan`` as the loop runs them: one step is one of all agents."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.categorical import entropy
from vfejax.cli import executable_cache
from vfejax.cli.plan.agents import Player
from vfejax.cli.plan.config import PlanConfig
from vfejax.cli.plan.problem import Problem
from vfejax.errors import UserError
from vfejax.inference.expected_free_energy import expected_free_energy
from vfejax.inference.pomdp.learning import Counts, expected_model
from vfejax.inference.pomdp.model import POMDP
from vfejax.problems.environments import process
from vfejax.problems.episodes import Episode, learn_episode, run_episode
from vfejax.runs import loop
from vfejax.runs.seeds import random_key
from vfejax.types import Array

__all__ = ["COLUMNS", "TERMS", "Moments", "Score", "Shown", "play", "program", "score"]

TERMS = ("utility", "state_information_gain", "parameter_information_gain", "risk", "ambiguity")
COLUMNS = ("success_rate", "reward", "steps_to_goal", "free_energy", *TERMS, "policy_entropy")
"""Of ``metrics.csv``: means over agents and moments; energies in nats."""


class Score(NamedTuple):
    """How an agent did in an episode.

    Attributes:
        success: whether it ever observed the goal.
        reward: log preferences of its observations after the first, summed, in nats.
        steps: actions until it first observed the goal; NaN where it never did.
    """

    success: Array
    reward: Array
    steps: Array


def score(problem: Problem, observations: Array) -> Score:
    """How well it went, from observations ``[t, m]``."""
    modality, wanted = problem.goal
    preferred = [c[observations[1:, m]] for m, c in enumerate(problem.world.C)]
    reached = observations[:, modality] == wanted
    first = jnp.argmax(reached).astype(problem.world.D[0].dtype)
    success = jnp.any(reached)
    return Score(success, jnp.sum(jnp.stack(preferred)), jnp.where(success, first, jnp.nan))


def play(
    config: PlanConfig, problem: Problem, player: Player, counts: Counts, number: Array
) -> tuple[Counts, Episode]:
    """One episode of all agents of the batch: its worlds depend on the seed and the number alone,
    so that other agents meet the same.

    Args:
        config: the seed, the batch and the length.
        problem: the world.
        player: the agent.
        counts: of each agent, ``[b, ...]``.
        number: of the episode, from 0.

    Returns:
        The counts after it, and the episode, ``[b, t, ...]``.
    """
    world = process(problem.world)
    key = jax.random.fold_in(random_key(config.seed), number)

    def one(counts: Counts, key: Array) -> tuple[Counts, Episode]:
        if config.learn is None:
            return counts, run_episode(player.learner.agent(counts), world, key, config.length)
        return learn_episode(player.learner, world, counts, key, config.length)

    return jax.vmap(one)(counts, jax.random.split(key, config.batch))


class Moments(NamedTuple):
    """What went on in an agent at each observation.

    Attributes:
        beliefs: about the present states, ``[t, s_f]`` for each factor.
        controls: probabilities of the next control of factor 0, ``[t, u]``.
        action: the control that it took of it, ``[t]``.
        free_energy: of the observation, in nats, ``[t]``.
        policy_entropy: of the policy posterior, in nats, ``[t]``.
        terms: of minus the expected free energy of the next step under the action that was taken,
            ``[t]`` each.
    """

    beliefs: tuple[Array, ...]
    controls: Array
    action: Array
    free_energy: Array
    policy_entropy: Array
    terms: dict[str, Array]


def _moments(model: POMDP, counts: Counts, episode: Episode) -> Moments:
    """What one agent did and expected; the model is what it knew before the episode."""
    known, decisions = expected_model(model, counts), episode.decisions

    def expected(beliefs: tuple[Array, ...], action: Array) -> dict[str, Array]:
        found = expected_free_energy(
            known, beliefs, action[None, None], A_counts=counts.A, B_counts=counts.B
        )
        return {name: getattr(found, name)[0, 0] for name in TERMS}

    return Moments(
        decisions.beliefs,
        decisions.plan.controls[0],
        decisions.action[:, 0],
        decisions.free_energy,
        entropy(decisions.plan.posterior),
        jax.vmap(expected)(decisions.beliefs, decisions.action),
    )


class Shown(NamedTuple):
    """What is kept of the last episode.

    Attributes:
        states: of the worlds, integers ``[b, t, f]``.
        observations: integers ``[b, t, m]``.
        first: what went on in the first agent.
    """

    states: Array
    observations: Array
    first: Moments


class _Info(NamedTuple):
    """What the loop keeps of one episode: means over agents, and the first agent."""

    row: dict[str, Array]
    num_successes: Array
    shown: Shown


def _told(problem: Problem, episode: Episode, moments: Moments) -> _Info:
    scores = jax.vmap(lambda seen: score(problem, seen))(episode.observations)
    row = {
        "success_rate": jnp.mean(scores.success.astype(scores.reward.dtype)),
        "reward": jnp.mean(scores.reward),
        "steps_to_goal": jnp.nanmean(scores.steps),
        "free_energy": jnp.mean(moments.free_energy),
        "policy_entropy": jnp.mean(moments.policy_entropy),
        **{name: jnp.mean(x) for name, x in moments.terms.items()},
    }
    first = jax.tree.map(lambda x: x[0], moments)
    return _Info(row, jnp.sum(scores.success), Shown(episode.states, episode.observations, first))


def program(config: PlanConfig, problem: Problem, player: Player) -> loop.Program:
    """All episodes, one for each step of the loop, whose state is what agents have counted.

    Args:
        config: the command's options.
        problem: the world.
        player: the agent.

    Raises:
        UserError: when such agents cannot plan in such a world.
    """

    def init() -> Counts:
        return jax.tree.map(lambda x: jnp.tile(x, (config.batch,) + (1,) * x.ndim), player.prior)

    def step(counts: Counts, number: Array) -> tuple[Counts, _Info]:
        after, episode = play(config, problem, player, counts, number)
        moments = jax.vmap(lambda c, e: _moments(player.model, c, e))(counts, episode)
        return after, _told(problem, episode, moments)

    try:
        blank = executable_cache.shapes(lambda: step(init(), jnp.uint32(0))[1])
    except ValueError as error:
        raise UserError(f"--planner {config.planner}, --env {config.env}: {error}") from None

    def observe(step: int, state: Counts, infos: Any, memory: Shown) -> loop.Observation:
        if infos is None:
            return loop.Observation(dict.fromkeys(COLUMNS, math.nan), memory)
        row = _means(infos)
        last = jax.tree.map(lambda x: np.array(np.asarray(x)[-1]), infos.shown)
        return loop.Observation(row, last, {name: row[name] for name in ("success_rate", "reward")})

    return loop.Program(
        init=init,
        step=step,
        observe=observe,
        memory=jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), blank.shown),
        inputs=lambda step, num_steps: np.arange(step, step + num_steps, dtype=np.uint32),
        watched=lambda infos: {n: x for n, x in infos.row.items() if n != "steps_to_goal"},
        advice="try a smaller --gamma, --reward or --punishment, or --precision float64",
    )


def _means(infos: _Info) -> dict[str, float]:
    """Over the episodes of a chunk; steps to the goal over those who reached it."""
    row = {name: float(np.asarray(infos.row[name], np.float64).mean()) for name in COLUMNS}
    weights = np.asarray(infos.num_successes, np.float64)
    steps = np.nan_to_num(np.asarray(infos.row["steps_to_goal"], np.float64))
    total = weights.sum()
    row["steps_to_goal"] = float(weights @ steps / total) if total else math.nan
    return row

"""References for a run of ``vfejax plan``: a greedy agent in the same worlds, and the optimal
policy.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli import executable_cache
from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.options import essentials
from vfejax.cli.plan import agents
from vfejax.cli.plan.config import PlanConfig
from vfejax.cli.plan.episodes import Score, play, score
from vfejax.cli.plan.problem import Problem
from vfejax.problems.belief_mdp import evaluate, solve
from vfejax.types import Array

__all__ = ["Fare", "Greedy", "begin", "best", "greedy", "of_run", "since"]

_MOST_BELIEFS = 5000


class Fare(NamedTuple):
    """How agents fared.

    Attributes:
        success: share of episodes in which the goal was observed.
        reward: mean log preferences of what was observed, in nats.
        steps: mean actions until the goal, where it was observed; NaN where it never was.
    """

    success: float
    reward: float
    steps: float


class Greedy(NamedTuple):
    """A greedy agent in the worlds of a run.

    Attributes:
        fare: how it fared.
        states: of the worlds of the last episode, integers ``[b, t, f]``.
    """

    fare: Fare
    states: np.ndarray


def since(config: PlanConfig, episodes: int) -> int:
    """The first episode that counts in the summary: all do, or those of the last quarter of a run
    that learns.
    """
    return 0 if config.learn is None else episodes - math.ceil(episodes / 4)


def of_run(metrics: dict[str, np.ndarray], first: int) -> Fare:
    """How the agents of a run fared in the rows behind an episode, from ``metrics.csv``."""
    rows = metrics["step"][1:] > first
    sizes = np.diff(metrics["step"])[rows]
    success, reward, steps = (
        metrics[name][1:][rows] for name in ("success_rate", "reward", "steps_to_goal")
    )
    reached = sizes * success
    total = reached.sum()
    mean = float(np.nansum(reached * steps) / total) if total > 0 else math.nan
    return Fare(float(sizes @ success / sizes.sum()), float(sizes @ reward / sizes.sum()), mean)


def _numbers(first: int, episodes: int) -> np.ndarray:
    return np.arange(first, episodes, dtype=np.uint32)


def begin(config: PlanConfig, problem: Problem) -> None:
    """Compile the greedy agent in a thread, while the agents of the run act.

    Args:
        config: the options of the run.
        problem: the world.
    """
    if config.steps:
        numbers = _numbers(since(config, config.steps), config.steps)
        executable_cache.begin(_greedy_episodes(config, problem), numbers)


def greedy(config: PlanConfig, problem: Problem, first: int, episodes: int) -> Greedy:
    """An agent that looks one step ahead and learns nothing, in the same worlds.

    Args:
        config: the options of the run.
        problem: the world.
        first: the first episode that counts.
        episodes: how many there were.
    """
    states, scores = _greedy_episodes(config, problem)(_numbers(first, episodes))
    success, reward, steps = (np.asarray(x, np.float64) for x in scores)
    mean = float(np.nanmean(steps)) if success.any() else math.nan
    return Greedy(Fare(float(success.mean()), float(reward.mean()), mean), np.asarray(states))


def _greedy_episodes(config: PlanConfig, problem: Problem) -> Callable[[np.ndarray], Any]:
    """``numbers of episodes -> (states of the last, scores of all)``, compiled."""
    told = dataclasses.replace(essentials(config), learn=None)
    player = agents.build(told, problem, "greedy")

    def one(_: Array, number: Array) -> tuple[Array, Score]:
        episode = play(told, problem, player, player.prior, number)[1]
        return episode.states, jax.vmap(lambda seen: score(problem, seen))(episode.observations)

    def every(numbers: Array) -> tuple[Array, Score]:
        states = jax.eval_shape(one, jnp.zeros(()), numbers[0])[0]
        return jax.lax.scan(one, jnp.zeros(states.shape, states.dtype), numbers)

    return compiled_once(every)


def best(config: PlanConfig, problem: Problem) -> Fare | None:
    """What the best agent can expect that knows the world, by its belief MDP; None where there are
    too many beliefs, or no action is followed by an observation.
    """
    if config.length < 2:
        return None
    try:
        solution = solve(problem.world, config.length - 1, max_beliefs=_MOST_BELIEFS)
    except ValueError:
        return None
    found = evaluate(problem.world, solution, problem.goal)
    return Fare(float(found.success[-1]), float(found.utility.sum()), found.steps)

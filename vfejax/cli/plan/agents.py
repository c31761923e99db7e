"""The agents of ``vfejax plan``: how they plan, and what they know and learn."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli.plan.config import LISTED, PlanConfig, learned
from vfejax.cli.plan.problem import Problem
from vfejax.errors import UserError
from vfejax.inference import active_inference
from vfejax.inference.active_inference import Plan, Planner
from vfejax.inference.inductive import Intention, goals_of_observations, intention
from vfejax.inference.learning_agents import Learner, episode_learner
from vfejax.inference.planning import plan_by_gradient
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp.learning import Counts, counts_of
from vfejax.inference.pomdp.model import POMDP
from vfejax.inference.tree_search import tree_search_planner
from vfejax.runs.seeds import random_key
from vfejax.types import Array

__all__ = ["Player", "build", "planner"]

PlannerFn = Callable[[Counts], Planner]


class Player(NamedTuple):
    """An agent that may learn.

    Attributes:
        model: what it believes about the world before all episodes.
        prior: its counts then; without any it learns nothing.
        learner: makes the agent of an episode from counts, and counts from an episode.
    """

    model: POMDP
    prior: Counts
    learner: Learner


def _policies(config: PlanConfig, problem: Problem, listed: np.ndarray) -> PlannerFn:
    def plan(counts: Counts) -> Planner:
        return active_inference.policy_planner(listed, gamma=config.gamma, counts=counts)

    return plan


def _induction(config: PlanConfig, problem: Problem, listed: np.ndarray) -> PlannerFn:
    modality, value = problem.goal
    wanted: list[Array | None] = [None] * len(problem.model.A)
    wanted[modality] = jnp.arange(problem.model.num_observations[modality]) == value
    goals = goals_of_observations(problem.model, wanted)
    intended = intention(problem.model, goals)
    if config.slip is not None and not _leads(intended, goals):
        raise UserError(
            f"--slip {config.slip:g} leaves no move that the induction planner relies on, and no "
            "way to the goal; take a --slip of at most 0.89, or another --planner"
        )

    def plan(counts: Counts) -> Planner:
        return active_inference.policy_planner(
            listed, gamma=config.gamma, counts=counts, intention=intended
        )

    return plan


def _leads(intended: Intention, goals: Sequence[Array]) -> bool:
    """Whether a way leads to the goals of every factor from some state that is none."""
    return all(
        bool(jnp.any(jnp.isfinite(steps) & ~wanted)) or bool(jnp.all(wanted))
        for steps, wanted in zip(intended.distances, goals, strict=True)
    )


def _utility(config: PlanConfig, problem: Problem, listed: np.ndarray) -> PlannerFn:
    return lambda counts: active_inference.utility_planner(listed, gamma=config.gamma)


def _greedy(config: PlanConfig, problem: Problem, listed: np.ndarray) -> PlannerFn:
    return lambda counts: active_inference.sophisticated_planner(1, gamma=config.gamma)


def _sophisticated(config: PlanConfig, problem: Problem, listed: np.ndarray) -> PlannerFn:
    return lambda counts: active_inference.sophisticated_planner(
        config.horizon, gamma=config.gamma, num_outcomes=config.outcomes
    )


def _gradient(config: PlanConfig, problem: Problem, listed: np.ndarray) -> PlannerFn:
    def plan(model: POMDP, beliefs: Sequence[Array]) -> Plan:
        # Equal controls at first can be a saddle.
        key = random_key(config.seed)
        found = plan_by_gradient(model, beliefs, config.horizon, gamma=config.gamma, key=key)
        first = tuple(x[0] for x in found.controls)
        return Plan(first[0], jnp.broadcast_to(found.neg_efe[-1], first[0].shape), first)

    return lambda counts: plan


def _tree_search(config: PlanConfig, problem: Problem, listed: np.ndarray) -> PlannerFn:
    plan = tree_search_planner(
        config.horizon, random_key(config.seed), num_simulations=config.simulations or 512
    )
    return lambda counts: plan


_PLANNERS: dict[str, Callable[[PlanConfig, Problem, np.ndarray], PlannerFn]] = {
    "policies": _policies,
    "induction": _induction,
    "sophisticated": _sophisticated,
    "greedy": _greedy,
    "utility": _utility,
    "gradient": _gradient,
    "mcts": _tree_search,
}


def _start(config: PlanConfig, model: POMDP, names: str, num_policies: int) -> POMDP:
    """The model with what is to be learned blurred: all is as probable where nothing is known."""

    def blurred(x: Array) -> Array:
        known = config.prior_knowledge
        return known * x + (1 - known) / x.shape[0]

    arrays = {n: tuple(map(blurred, getattr(model, n))) for n in "AD" if n in names}
    if "B" in names:
        # Agents that think that what is hidden may move at any moment ask for ever.
        moves = zip(model.B, model.num_controls, strict=True)
        arrays["B"] = tuple(x if controls == 1 else blurred(x) for x, controls in moves)
    if "E" in names:
        habits = jnp.full(num_policies, 1 / num_policies, model.D[0].dtype)
        return model.replace(**arrays, E=habits)
    return model.replace(**arrays)


def _listed(config: PlanConfig, problem: Problem, name: str) -> np.ndarray:
    """The policies that a planner values; one for a planner that lists none."""
    if name in LISTED:
        return enumerate_policies(problem.model, config.horizon)
    return np.zeros((1, 1, len(problem.model.B)), np.int32)


def planner(config: PlanConfig, problem: Problem, name: str) -> Planner:
    """How an agent plans that learns nothing.

    Args:
        config: the horizon and the other options of planning.
        problem: the world, and what is known about it.
        name: as ``--planner`` has them.
    """
    plan = _PLANNERS[name](config, problem, _listed(config, problem, name))
    return plan(counts_of(problem.model, "", config.prior_counts))


def build(config: PlanConfig, problem: Problem, name: str) -> Player:
    """An agent of the options.

    Args:
        config: how it plans, and what it learns.
        problem: the world, and what is known about it.
        name: of its planner, as ``--planner`` has them.
    """
    names, listed = learned(config), _listed(config, problem, name)
    model = _start(config, problem.model, names, len(listed))
    prior = counts_of(model, names, config.prior_counts)
    learner = episode_learner(
        model,
        _PLANNERS[name](config, problem, listed),
        prior,
        policies=listed,
        rate=config.learning_rate,
        keep=1 - config.forgetting,
        temperature=config.temperature,
    )
    return Player(model, jax.tree.map(jnp.asarray, prior), learner)

"""The agents of ``vfejax plan``: how they plan, and what they tell of every moment."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax.numpy as jnp

from vfejax.beliefs.categorical import entropy
from vfejax.cli.plan.config import PlanConfig
from vfejax.inference import active_inference
from vfejax.inference.active_inference import Agent, AgentState, Plan, Planner
from vfejax.inference.expected_free_energy import StepTerms, step_terms
from vfejax.inference.planning import plan_by_gradient
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp.model import POMDP
from vfejax.runs.seeds import random_key
from vfejax.types import Array

__all__ = ["Moment", "build", "planner"]


class Moment(NamedTuple):
    """What an agent tells of one observation.

    Attributes:
        beliefs: about the present states, ``[s_f]`` for each factor.
        free_energy: F of the observation, in nats.
        controls: probabilities of the first control of each factor, ``[u_f]``.
        entropy: of the policy posterior, in nats.
        terms: of the expected free energy of the next step under the action that was taken.
        action: the controls that were taken, ``[f]``.
    """

    beliefs: tuple[Array, ...]
    free_energy: Array
    controls: tuple[Array, ...]
    entropy: Array
    terms: StepTerms
    action: Array


def _policies(config: PlanConfig, model: POMDP) -> Planner:
    listed = enumerate_policies(model, config.horizon)
    return active_inference.policy_planner(listed, gamma=config.gamma)


def _utility(config: PlanConfig, model: POMDP) -> Planner:
    listed = enumerate_policies(model, config.horizon)
    return active_inference.utility_planner(listed, gamma=config.gamma)


def _greedy(config: PlanConfig, model: POMDP) -> Planner:
    return active_inference.sophisticated_planner(1, gamma=config.gamma)


def _sophisticated(config: PlanConfig, model: POMDP) -> Planner:
    return active_inference.sophisticated_planner(
        config.horizon, gamma=config.gamma, num_outcomes=config.outcomes
    )


def _gradient(config: PlanConfig, model: POMDP) -> Planner:
    def plan(model: POMDP, beliefs: Sequence[Array]) -> Plan:
        # Equal controls at first can be a saddle.
        key = random_key(config.seed)
        found = plan_by_gradient(model, beliefs, config.horizon, gamma=config.gamma, key=key)
        first = tuple(x[0] for x in found.controls)
        return Plan(first[0], jnp.broadcast_to(found.neg_efe[-1], first[0].shape), first)

    return plan


_PLANNERS: dict[str, Callable[[PlanConfig, POMDP], Planner]] = {
    "policies": _policies,
    "sophisticated": _sophisticated,
    "greedy": _greedy,
    "utility": _utility,
    "gradient": _gradient,
}


def planner(config: PlanConfig, model: POMDP, name: str) -> Planner:
    """How an agent plans.

    Args:
        config: the horizon, the precision and the outcomes that are followed.
        model: of the agent.
        name: of a planner, as ``--planner`` has them.
    """
    return _PLANNERS[name](config, model)


def build(config: PlanConfig, model: POMDP, name: str) -> Agent:
    """An agent that tells a :class:`Moment` of every observation.

    Args:
        config: the options of planning, and the temperature.
        model: what it believes about the world.
        name: of its planner, as ``--planner`` has them.
    """
    agent = active_inference.agent(
        model, planner(config, model, name), temperature=config.temperature
    )

    def step(
        state: AgentState, observation: Array, key: Array, mask: Array | None = None
    ) -> tuple[AgentState, Moment]:
        after, decision = agent.step(state, observation, key, mask)
        plan = decision.plan
        terms = step_terms(model, after.prior)
        told = Moment(
            decision.beliefs,
            decision.free_energy,
            plan.controls,
            entropy(plan.posterior),
            terms,
            decision.action,
        )
        return after, told

    return Agent(agent.init, cast(Callable[..., Any], step))

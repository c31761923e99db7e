"""An agent that perceives, plans and acts: beliefs about the present, a choice, a prediction.

The loop is one pure function from a state and an observation to the next state and an action, so
that an episode is a scan, a batch of agents a ``vmap``, and a gradient goes through all of it but
the drawing of actions. How it plans is an argument: a function from a model and beliefs to the
probabilities of policies.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.inference.expected_free_energy import expected_free_energy
from vfejax.inference.inductive import Intention
from vfejax.inference.planning import sophisticated
from vfejax.inference.policies import (
    action_marginals,
    enumerate_policies,
    policy_posterior,
    sample_action,
)
from vfejax.inference.pomdp.learning import Counts
from vfejax.inference.pomdp.model import POMDP
from vfejax.inference.pomdp.prediction import predict_states
from vfejax.inference.pomdp.states import infer_states
from vfejax.types import Array

__all__ = [
    "Agent",
    "AgentState",
    "Decision",
    "DrawFn",
    "Plan",
    "agent",
    "draw_controls",
    "first_controls",
    "policy_planner",
    "sophisticated_planner",
    "utility_planner",
    "whole_policies",
]


class Plan(NamedTuple):
    """What a planner found.

    Attributes:
        posterior: probabilities of policies, ``[p]``, or of joint first controls.
        neg_efe: their values in nats, ``[p]``.
        controls: probabilities of the first control of each factor, ``[u_f]``.
    """

    posterior: Array
    neg_efe: Array
    controls: tuple[Array, ...]


Planner = Callable[[POMDP, Sequence[Array]], Plan]
DrawFn = Callable[[Array, Plan, Array | float], Array]


class AgentState(NamedTuple):
    """What an agent carries from one observation to the next: its prediction for each factor."""

    prior: tuple[Array, ...]


class Decision(NamedTuple):
    """What happened inside an agent at one observation.

    Attributes:
        beliefs: about the present states, ``[s_f]`` for each factor.
        free_energy: F of the observation, in nats.
        plan: what the planner found.
        action: the controls that were taken, ``[f]``.
    """

    beliefs: tuple[Array, ...]
    free_energy: Array
    plan: Plan
    action: Array


class Agent(NamedTuple):
    """An agent as two pure functions; what its state is made of is its own affair.

    Attributes:
        init: ``init() -> state``.
        step: ``step(state, observation, key, mask=None) -> (state, decision)``.
    """

    init: Callable[[], Any]
    step: Callable[..., tuple[Any, Decision]]


def policy_planner(
    policies: np.ndarray,
    *,
    gamma: Array | float = 16.0,
    joint: bool = True,
    counts: Counts | None = None,
    intention: Intention | None = None,
    window: Array | float | None = None,
    entropies: Sequence[Array] | None = None,
) -> Planner:
    """Plan by the expected free energy of listed policies, with the habits E of the model.

    Args:
        policies: integers ``[p, horizon, f]``, as of
            :func:`vfejax.inference.policies.enumerate_policies`.
        gamma: precision of the choice.
        joint: whether information about states is that of all modalities together.
        counts: with those of A and B, what is learned about them counts as well.
        intention: goals of :func:`vfejax.inference.inductive.intention`, which add the inductive
            term.
        window: policies that are this many nats less probable than the best are pruned.
        entropies: of observations, see
            :func:`vfejax.inference.expected_free_energy.expected_free_energy`.

    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([1.0, 0.0])])
    >>> plan = policy_planner(enumerate_policies(model, 1), gamma=1.0)(model, model.D)
    >>> [round(float(p), 3) for p in plan.posterior]  # softmax(0, 3)
    [0.047, 0.953]
    """

    known = Counts() if counts is None else counts

    def plan(model: POMDP, beliefs: Sequence[Array]) -> Plan:
        values = expected_free_energy(
            model,
            beliefs,
            policies,
            joint=joint,
            A_counts=known.A,
            B_counts=known.B,
            intention=intention,
            entropies=entropies,
        ).neg_efe
        posterior = policy_posterior(values, gamma, model.E, window=window)
        return Plan(posterior, values, action_marginals(model, policies, posterior))

    return plan


def utility_planner(policies: np.ndarray, *, gamma: Array | float = 16.0) -> Planner:
    """Plan by preferences alone, without any value of information: the baseline.

    Args:
        policies: integers ``[p, horizon, f]``.
        gamma: precision of the choice.

    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([1.0, 0.0])])
    >>> utility_planner(enumerate_policies(model, 1))(model, model.D).neg_efe.tolist()
    [0.0, 3.0]
    """

    def plan(model: POMDP, beliefs: Sequence[Array]) -> Plan:
        found = expected_free_energy(model, beliefs, policies, joint=False)
        values = jnp.sum(found.utility, axis=1)
        posterior = policy_posterior(values, gamma, model.E)
        return Plan(posterior, values, action_marginals(model, policies, posterior))

    return plan


def sophisticated_planner(horizon: int, *, gamma: Array | float = 16.0, **options: Any) -> Planner:
    """Plan by :func:`vfejax.inference.planning.sophisticated`, with the habits E of the model.

    Args:
        horizon: steps.
        gamma: precision of the choice, and of those that the agent expects of itself.
        **options: the other options of that function.

    Raises:
        TypeError: for an option that it does not have.

    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([1.0, 0.0])])
    >>> plan = sophisticated_planner(2, hard=True)(model, model.D)
    >>> [round(float(g), 2) for g in plan.neg_efe]
    [3.0, 6.0]
    """
    inspect.signature(sophisticated).bind(None, None, horizon, gamma=gamma, **options)

    def plan(model: POMDP, beliefs: Sequence[Array]) -> Plan:
        values = sophisticated(model, beliefs, horizon, gamma=gamma, **options)
        posterior = policy_posterior(values, gamma, model.E)
        return Plan(
            posterior, values, action_marginals(model, enumerate_policies(model, 1), posterior)
        )

    return plan


def draw_controls(key: Array, plan: Plan, temperature: Array | float) -> Array:
    """A control for each factor by itself, weighed over all policies, integers ``[f]``.

    Args:
        key: of the draw.
        plan: what a planner found.
        temperature: of the probabilities of the controls; 0 takes the most probable.

    >>> import jax
    >>> plan = Plan(jnp.ones(2) / 2, jnp.zeros(2), (jnp.array([0.0, 1.0]), jnp.array([0.9, 0.1])))
    >>> draw_controls(jax.random.key(0), plan, 0.0).tolist()
    [1, 0]
    """
    return sample_action(key, plan.controls, temperature)


def whole_policies(policies: Array | np.ndarray) -> DrawFn:
    """Draws a policy and takes its first controls: what it combines stays together.

    Where factors must be moved in step, controls that are drawn factor by factor can make a pair
    that no policy has.

    Args:
        policies: integers ``[p, horizon, f]``, those of the planner;
            :func:`vfejax.inference.policies.enumerate_policies` of horizon 1 for planners of joint
            first controls.

    Returns:
        ``draw_fn`` of :func:`agent`. A temperature of 0 takes the most probable policy.

    >>> import jax
    >>> both = whole_policies(np.array([[[0, 0]], [[1, 1]]]))
    >>> plan = Plan(jnp.array([0.4, 0.6]), jnp.zeros(2), ())
    >>> both(jax.random.key(0), plan, 0.0).tolist()
    [1, 1]
    """

    def draw(key: Array, plan: Plan, temperature: Array | float) -> Array:
        first = first_controls(policies, plan)
        (which,) = sample_action(key, (plan.posterior,), temperature)
        return first[which]

    return draw


def first_controls(policies: Array | np.ndarray, plan: Plan) -> Array:
    """What each policy of a plan does first, integers ``[p, f]``.

    Args:
        policies: integers ``[p, horizon, f]``.
        plan: of the planner that has these policies.

    Raises:
        ValueError: when there are not as many policies as the plan values.

    >>> plan = Plan(jnp.array([0.4, 0.6]), jnp.zeros(2), ())
    >>> first_controls(np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]]), plan).tolist()
    [[0, 0], [1, 1]]
    """
    if len(policies) != len(plan.posterior):
        raise ValueError(
            f"policies must be the {len(plan.posterior)} of the planner, got {len(policies)}"
        )
    return jnp.asarray(policies)[:, 0]


def agent(
    model: POMDP,
    planner: Planner,
    *,
    temperature: Array | float = 1.0,
    num_sweeps: int | None = None,
    draw_fn: DrawFn = draw_controls,
) -> Agent:
    """An agent with a model of its world and a way to plan.

    Args:
        model: what it believes about the world.
        planner: ``planner(model, beliefs) -> Plan``.
        temperature: of the drawn actions; 0 takes the most probable control of each factor.
        num_sweeps: of :func:`vfejax.inference.pomdp.states.infer_states`.
        draw_fn: ``(key, plan, temperature) -> action``; :func:`whole_policies` makes one that draws
            the controls of all factors together.

    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([0.5, 0.5])])
    >>> import jax
    >>> chooser = agent(model, policy_planner(enumerate_policies(model, 1)), temperature=0)
    >>> state, decision = chooser.step(chooser.init(), jnp.array([0]), jax.random.key(0))
    >>> decision.action.tolist()
    [1]
    """

    def init() -> AgentState:
        return AgentState(model.D)

    def step(
        state: AgentState, observation: Array, key: Array, mask: Array | None = None
    ) -> tuple[AgentState, Decision]:
        beliefs, info = infer_states(
            model, list(observation), state.prior, mask=mask, num_sweeps=num_sweeps
        )
        plan = planner(model, beliefs)
        action = draw_fn(key, plan, temperature)
        after = AgentState(predict_states(model, beliefs, list(action)))
        return after, Decision(beliefs, info.free_energy, plan, action)

    return Agent(init, step)

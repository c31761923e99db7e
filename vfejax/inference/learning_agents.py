"""Agents that learn: Dirichlet counts that are carried from episode to episode.

A learner makes an agent from what has been counted, for an episode, and counts what that agent
lived through. It comes in two forms:

- :func:`episode_learner` looks back when the episode is over. Its events come from the structured
  posterior over the whole episode, so that what was seen last is credited to the states of the
  beginning as well: with one factor they are the expected counts of the Baum-Welch algorithm.
- :func:`step_learner` counts at every moment what it then believes, before it plans. It learns
  within the episode at the cost of a product of beliefs, and never changes its mind about the past.

How it plans is an argument that is told the counts, ``planner_fn(counts) -> Planner``: with the
counts in :func:`vfejax.inference.active_inference.policy_planner` what can be learned about A and B
has a value of its own; without them only preferences and beliefs about states move the agent.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.active_inference import (
    Agent,
    Decision,
    DrawFn,
    Planner,
    agent,
    draw_controls,
)
from vfejax.inference.policies import count_policies
from vfejax.inference.pomdp.learning import (
    Counts,
    count_likelihoods,
    count_observations,
    count_transitions,
    count_window,
    expected_model,
    update_counts,
)
from vfejax.inference.pomdp.model import POMDP
from vfejax.inference.pomdp.prediction import predict_states
from vfejax.inference.pomdp.states import infer_states
from vfejax.inference.pomdp.windows import smooth_states
from vfejax.types import Array

__all__ = ["Learner", "LearnerState", "episode_learner", "step_learner"]

PlannerFn = Callable[[Counts], Planner]


class Learner(NamedTuple):
    """An agent that learns, as two pure functions.

    Attributes:
        agent: ``agent(counts) -> Agent`` for one episode.
        learn: ``learn(counts, state, observations, decisions, mask=None) -> counts`` after it:
            ``counts`` are those from before, ``state`` the last of the agent, observations are
            integers ``[t, m]``, decisions ``[t, ...]`` and the mask booleans ``[t, m]``.
    """

    agent: Callable[[Counts], Agent]
    learn: Callable[..., Counts]


class LearnerState(NamedTuple):
    """What a learner carries within an episode when it learns at every step.

    Attributes:
        prior: its prediction for each factor, ``[s_f]``.
        counts: what it has counted.
        before: what it believed at the moment before, ``[s_f]``.
        action: the controls that it took then, ``[f]``.
        begun: whether there was a moment before.
    """

    prior: tuple[Array, ...]
    counts: Counts
    before: tuple[Array, ...]
    action: Array
    begun: Array


def _chosen(counts: Counts, events: Counts) -> Counts:
    """The events of what is learned."""
    dropped = {name: None for name, old in counts._asdict().items() if old is None}
    return events._replace(**dropped)


def _check_habits(prior: Counts, policies: np.ndarray | None) -> None:
    if prior.E is None:
        return
    if policies is None:
        raise ValueError("counts of E need the policies that they are of")
    if len(policies) != len(prior.E):
        raise ValueError(f"E must have counts of {len(policies)} policies, got {len(prior.E)}")


def _events(
    model: POMDP,
    state: LearnerState,
    seen: list[Array],
    beliefs: tuple[Array, ...],
    mask: Array | None,
) -> Counts:
    """What a moment counts for: its observations, the move to it, and that it was the first."""
    return Counts(
        A=count_likelihoods(model, seen, beliefs, mask),
        B=count_transitions(model, list(state.action), state.before, beliefs),
        C=count_observations(model, seen, mask),
        D=beliefs,
    )


def _of_this_moment(counts: Counts, state: LearnerState) -> Counts:
    """A start is an event of the first moment only, a transition one of all others."""
    old = state.counts
    return counts._replace(
        B=jax.tree.map(lambda x, y: jnp.where(state.begun, x, y), counts.B, old.B),
        D=jax.tree.map(lambda x, y: jnp.where(state.begun, y, x), counts.D, old.D),
    )


def _all_observations(model: POMDP, observations: Array, mask: Array | None) -> tuple[Array, ...]:
    """What an episode counts for in C: what was observed, by modality."""
    there = jnp.ones(observations.shape, bool) if mask is None else mask
    moments = jax.vmap(lambda o, m: count_observations(model, o, m))(observations, there)
    return jax.tree.map(lambda x: jnp.sum(x, axis=0), moments)


def _all_policies(policies: np.ndarray, decisions: Decision) -> Array:
    """What an episode counts for in E: the policies that were followed, ``[p]``."""
    listed = jnp.asarray(policies)
    moments = jax.vmap(lambda q, u: count_policies(listed, q, u))
    return jnp.sum(moments(decisions.plan.posterior, decisions.action), axis=0)


def episode_learner(
    model: POMDP,
    planner_fn: PlannerFn,
    prior: Counts,
    *,
    policies: np.ndarray | None = None,
    rate: Array | float = 1.0,
    keep: Array | float = 1.0,
    temperature: Array | float = 1.0,
    num_sweeps: int | None = None,
    draw_fn: DrawFn = draw_controls,
) -> Learner:
    """A learner that looks back over the episode when it is over.

    Args:
        model: what it does not learn, and all sizes.
        planner_fn: ``planner_fn(counts) -> Planner``.
        prior: counts before all data, of what is learned, as of
            :func:`vfejax.inference.pomdp.learning.counts_of`.
        policies: integers ``[p, horizon, f]``, those of the planner; needed to learn E.
        rate: weight of an event.
        keep: share of what was counted that survives an episode; the rest returns to the prior.
        temperature: of the drawn actions.
        num_sweeps: sweeps over the factors, of a moment and of the episode.
        draw_fn: as :func:`vfejax.inference.active_inference.agent` takes it.

    Raises:
        ValueError: when E has counts and there are no policies, or as many as there are counts.

    >>> from vfejax.inference.active_inference import utility_planner
    >>> from vfejax.inference.policies import enumerate_policies
    >>> from vfejax.inference.pomdp.learning import counts_of
    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([0.5, 0.5])])
    >>> plan = utility_planner(enumerate_policies(model, 1))
    >>> learner = episode_learner(model, lambda counts: plan, counts_of(model, "D", 2.0))
    >>> player = learner.agent(counts_of(model, "D", 2.0))
    >>> state, decision = player.step(player.init(), jnp.array([1]), jax.random.key(0))
    >>> history = jax.tree.map(lambda x: x[None], decision)
    >>> learner.learn(counts_of(model, "D", 2.0), state, jnp.array([[1]]), history).D[0].tolist()
    [1.0, 2.0]
    """
    _check_habits(prior, policies)

    def make(counts: Counts) -> Agent:
        known = expected_model(model, counts)
        return agent(
            known,
            planner_fn(counts),
            temperature=temperature,
            num_sweeps=num_sweeps,
            draw_fn=draw_fn,
        )

    def learn(
        counts: Counts,
        state: NamedTuple,
        observations: Array,
        decisions: Decision,
        mask: Array | None = None,
    ) -> Counts:
        known, seen = expected_model(model, counts), list(observations.T)
        actions = decisions.action
        smoothed = smooth_states(known, seen, actions[:-1], mask=mask, num_sweeps=num_sweeps)
        events = count_window(known, seen, actions[:-1], smoothed, mask)
        if prior.C is not None:
            events = events._replace(C=_all_observations(known, observations, mask))
        if policies is not None and prior.E is not None:
            events = events._replace(E=_all_policies(policies, decisions))
        return update_counts(counts, _chosen(prior, events), rate, keep, prior=prior)

    return Learner(make, learn)


def step_learner(
    model: POMDP,
    planner_fn: PlannerFn,
    prior: Counts,
    *,
    policies: np.ndarray | None = None,
    rate: Array | float = 1.0,
    keep: Array | float = 1.0,
    temperature: Array | float = 1.0,
    num_sweeps: int | None = None,
    draw_fn: DrawFn = draw_controls,
) -> Learner:
    """A learner that counts at every moment what it then believes, and plans with the new counts.

    Args:
        model: what it does not learn, and all sizes.
        planner_fn: ``planner_fn(counts) -> Planner``, with the counts of the moment.
        prior: counts before all data, of what is learned.
        policies: integers ``[p, horizon, f]``, those of the planner; needed to learn E.
        rate: weight of an event.
        keep: share of what was counted that survives an event; the rest returns to the prior.
        temperature: of the drawn actions.
        num_sweeps: sweeps over the factors.
        draw_fn: as :func:`vfejax.inference.active_inference.agent` takes it.

    Raises:
        ValueError: when E has counts and there are no policies, or as many as there are counts.

    >>> from vfejax.inference.active_inference import utility_planner
    >>> from vfejax.inference.policies import enumerate_policies
    >>> from vfejax.inference.pomdp.learning import counts_of
    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([0.5, 0.5])])
    >>> plan, prior = utility_planner(enumerate_policies(model, 1)), counts_of(model, "D", 2.0)
    >>> player = step_learner(model, lambda counts: plan, prior).agent(prior)
    >>> state, decision = player.step(player.init(), jnp.array([1]), jax.random.key(0))
    >>> state.counts.D[0].tolist()
    [1.0, 2.0]
    """
    _check_habits(prior, policies)

    def updated(counts: Counts, events: Counts) -> Counts:
        return update_counts(counts, _chosen(prior, events), rate, keep, prior=prior)

    def step(
        state: LearnerState, observation: Array, key: Array, mask: Array | None = None
    ) -> tuple[LearnerState, Decision]:
        beliefs, info = infer_states(
            expected_model(model, state.counts),
            list(observation),
            state.prior,
            mask=mask,
            num_sweeps=num_sweeps,
        )
        events = _events(model, state, list(observation), beliefs, mask)
        counts = _of_this_moment(updated(state.counts, events), state)
        known = expected_model(model, counts)
        plan = planner_fn(counts)(known, beliefs)
        action = draw_fn(key, plan, temperature)
        if policies is not None and prior.E is not None:
            followed = count_policies(jnp.asarray(policies), plan.posterior, action)
            counts = updated(counts, Counts(E=followed))
        after = LearnerState(
            predict_states(known, beliefs, list(action)), counts, beliefs, action, jnp.array(True)
        )
        return after, Decision(beliefs, info.free_energy, plan, action)

    def make(counts: Counts) -> Agent:
        def init() -> LearnerState:
            start = expected_model(model, counts).D
            nothing = jnp.zeros(len(start), int)
            return LearnerState(start, counts, start, nothing, jnp.array(False))

        return Agent(init, step)

    return Learner(make, _carried)


def _carried(
    counts: Counts,
    state: LearnerState,
    observations: Array,
    decisions: Decision,
    mask: Array | None = None,
) -> Counts:
    """What was counted within the episode: all of it is in the state."""
    del counts, observations, decisions, mask
    return state.counts

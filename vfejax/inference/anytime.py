"""An agent that can plan less deeply, from one step to the next, without losing what it believes.

All of its steps perceive alike and share one state; they differ in how they choose. Where time is
short, a loop takes a step of smaller depth (:mod:`vfejax.runs.real_time`).
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.inference.active_inference import DrawFn, Planner, draw_controls
from vfejax.inference.pomdp.model import POMDP
from vfejax.inference.pomdp.prediction import predict_states
from vfejax.inference.pomdp.states import infer_states
from vfejax.types import Array

__all__ = ["AnytimeAgent", "AnytimeState", "Choice", "anytime_agent"]


class AnytimeState(NamedTuple):
    """What the agent carries from one observation to the next.

    Attributes:
        prior: its prediction for each factor, ``[s_f]``.
        action: the controls that it took last, ``[f]``.
    """

    prior: tuple[Array, ...]
    action: Array


class Choice(NamedTuple):
    """What the agent did at one observation.

    Attributes:
        action: the controls, ``[f]``.
        beliefs: about the present states, ``[s_f]`` for each factor.
        free_energy: F of the observation, in nats.
        fall: by how much the last sweep over the factors lowered F, in nats: 0 to rounding where
            the beliefs have settled.
    """

    action: Array
    beliefs: tuple[Array, ...]
    free_energy: Array
    fall: Array


class AnytimeAgent(NamedTuple):
    """An agent as pure functions.

    Attributes:
        init: ``init() -> state``.
        steps: one for each planner, and one that repeats the last action; each is
            ``step(state, observation, key, mask=None) -> (state, choice)``.
    """

    init: Callable[[], AnytimeState]
    steps: tuple[Callable[..., tuple[AnytimeState, Choice]], ...]


def anytime_agent(
    model: POMDP,
    planners: Sequence[Planner],
    *,
    temperature: Array | float = 1.0,
    num_sweeps: int | None = None,
    draw_fn: DrawFn = draw_controls,
) -> AnytimeAgent:
    """An agent with a step for each of several planners, and a last one without any.

    The last step perceives, and repeats the action before; before any action that is control 0 of
    each factor.

    Args:
        model: what it believes about the world.
        planners: ``planner(model, beliefs) -> Plan``, the deepest first.
        temperature: of the drawn actions; 0 takes the most probable control of each factor.
        num_sweeps: over the factors; by default 16, or 2 where one is exact and the second shows
            it.
        draw_fn: as :func:`vfejax.inference.active_inference.agent` takes it.

    >>> from vfejax.inference.active_inference import policy_planner
    >>> from vfejax.inference.policies import enumerate_policies
    >>> import jax
    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([0.5, 0.5])])
    >>> planner = policy_planner(enumerate_policies(model, 1))
    >>> agent = anytime_agent(model, [planner], temperature=0)
    >>> plan, repeat = agent.steps
    >>> state, choice = plan(agent.init(), jnp.array([0]), jax.random.key(0))
    >>> state, choice = repeat(state, jnp.array([1]), jax.random.key(1))
    >>> choice.action.tolist(), state.prior[0].tolist()  # change, where staying were better
    ([1], [1.0, 0.0])
    """
    exact = all(len(factors) == 1 for factors in model.A_dependencies)
    sweeps = (2 if exact else 16) if num_sweeps is None else num_sweeps

    def init() -> AnytimeState:
        return AnytimeState(model.D, jnp.zeros(len(model.B), int))

    def step_with(planner: Planner | None) -> Callable[..., tuple[AnytimeState, Choice]]:
        def step(
            state: AnytimeState, observation: Array, key: Array, mask: Array | None = None
        ) -> tuple[AnytimeState, Choice]:
            beliefs, info = infer_states(
                model, list(observation), state.prior, mask=mask, num_sweeps=sweeps
            )
            action = state.action
            if planner is not None:
                plan = planner(model, beliefs)
                action = draw_fn(key, plan, temperature).astype(action.dtype)
            after = AnytimeState(predict_states(model, beliefs, list(action)), action)
            fall = info.free_energies[-2] - info.free_energies[-1]
            return after, Choice(action, beliefs, info.free_energy, fall)

        return step

    return AnytimeAgent(init, tuple(step_with(planner) for planner in (*planners, None)))

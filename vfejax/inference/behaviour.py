"""The likelihood of observed behaviour under an agent, by which its parameters are fitted.

    log p(a_1, ..., a_T | o_1, ..., o_T, theta) = sum_t sum_f log pi_f(a_t,f | o_1..o_t, a_1..a_t-1)

or, of an agent that draws a policy whole, with log sum of q(pi) over the policies that begin with
a_t in place of the sum over factors.

The agent is told what it would have observed and what it did, and asked at every moment how
probable that was. This is a function of its model, its precision and whatever else makes it, so
that gradients and any optimiser fit them.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.categorical import safe_log
from vfejax.inference.active_inference import Plan, Planner, first_controls
from vfejax.inference.policies import check_policies
from vfejax.inference.pomdp.model import POMDP
from vfejax.inference.pomdp.prediction import predict_states
from vfejax.inference.pomdp.states import infer_states
from vfejax.types import Array

__all__ = ["BehaviourLikelihood", "behaviour_log_likelihood"]


class BehaviourLikelihood(NamedTuple):
    """How probable a history of actions is.

    Attributes:
        log_likelihood: of all actions, in nats.
        steps: of the action at each moment, ``[t]``.
        controls: probabilities that the agent gave to the controls of each factor, ``[t, u_f]``.
    """

    log_likelihood: Array
    steps: Array
    controls: tuple[Array, ...]


def behaviour_log_likelihood(
    model: POMDP,
    planner: Planner,
    observations: Array,
    actions: Array,
    *,
    mask: Array | None = None,
    policies: Array | np.ndarray | None = None,
) -> BehaviourLikelihood:
    """Log probability of the actions of an agent that draws them from its plans.

    Args:
        model: what the agent believes about the world.
        planner: ``planner(model, beliefs) -> Plan``.
        observations: integers ``[t, m]``, as the agent had them before each action.
        actions: the control of each factor at each moment, integers ``[t, f]``. One that does not
            exist makes NaN from there on.
        mask: booleans ``[t]``, True where an action counts; None where all do.
        policies: those of the planner, integers ``[p, horizon, f]``, where the agent draws one
            whole (:func:`vfejax.inference.active_inference.whole_policies`); None where it draws
            the control of each factor by itself.

    Returns:
        The log likelihood, differentiable in what the model and the planner were made of.

    Raises:
        ValueError: when there are not as many actions as observations, or policies do not fit.

    >>> import numpy as np
    >>> from vfejax.inference.active_inference import policy_planner
    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([1.0, 0.0])])
    >>> plan = policy_planner(np.array([[[0]], [[1]]]), gamma=1.0)
    >>> found = behaviour_log_likelihood(model, plan, jnp.array([[0]]), jnp.array([[1]]))
    >>> round(float(found.log_likelihood), 4)  # -log(1 + exp(-3))
    -0.0486
    """
    if len(actions) != len(observations):
        raise ValueError(
            f"there must be as many actions as observations, got {len(actions)} and "
            f"{len(observations)}"
        )
    if policies is not None:
        check_policies(model, policies)

    def step(prior: tuple[Array, ...], xs: tuple[Array, Array]) -> tuple[tuple[Array, ...], tuple]:
        observation, action = xs
        beliefs, _ = infer_states(model, list(observation), prior)
        plan = planner(model, beliefs)
        numbers = jnp.asarray(model.num_controls)
        if policies is None:
            log = _log_by_factors(plan, action)
        else:
            log = _log_of_policies(plan, action, policies)
        log = jnp.where(jnp.all((action >= 0) & (action < numbers)), log, jnp.nan)
        return predict_states(model, beliefs, list(action)), (log, plan.controls)

    history = jnp.asarray(observations), jnp.asarray(actions)
    _, (steps, controls) = jax.lax.scan(step, model.D, history)
    counted = steps if mask is None else jnp.where(mask, steps, 0.0)
    return BehaviourLikelihood(jnp.sum(counted), steps, controls)


def _log_by_factors(plan: Plan, action: Array) -> Array:
    logs = [safe_log(p)[a] for p, a in zip(plan.controls, action, strict=True)]
    return functools.reduce(jnp.add, logs)


def _log_of_policies(plan: Plan, action: Array, policies: Array | np.ndarray) -> Array:
    begins = jnp.all(first_controls(policies, plan) == action[None], axis=-1)
    return safe_log(jnp.sum(jnp.where(begins, plan.posterior, 0.0)))

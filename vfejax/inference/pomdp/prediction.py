"""Predictions of the next states and observations from a belief, and beliefs along a history."""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from vfejax.inference.pomdp.model import POMDP, contract
from vfejax.inference.pomdp.states import StateInfo, infer_states
from vfejax.types import Array

__all__ = [
    "filter_states",
    "joint_outcomes",
    "outcome_probabilities",
    "predict_observations",
    "predict_states",
]

_LARGEST_LIKELIHOOD = 2**15  # entries, as many as products for each belief


def predict_states(
    model: POMDP, beliefs: Sequence[Array], action: Sequence[Any]
) -> tuple[Array, ...]:
    """Beliefs about the next states: ``sum_s B_f[s_f', s_deps, u_f] prod_d q_d(s_d)``.

    Args:
        model: the model.
        beliefs: probabilities for each factor, ``[s_f]``.
        action: the control of each factor, integers ``[f]``; one that does not exist gives NaN.

    >>> turn = jnp.array([[0.0, 1.0], [1.0, 0.0]])[..., None]
    >>> model = POMDP([jnp.eye(2)], [turn], [jnp.zeros(2)], [jnp.array([1.0, 0.0])])
    >>> predict_states(model, model.D, [0])[0].tolist()
    [0.0, 1.0]
    """
    if len(action) != len(model.B):
        raise ValueError(f"action must have {len(model.B)} entries, got {len(action)}")
    found = []
    for f, transition in enumerate(model.B):
        taken = jax.lax.dynamic_index_in_dim(transition, action[f], axis=-1, keepdims=False)
        after = contract(
            taken, {axis + 1: beliefs[d] for axis, d in enumerate(model.B_dependencies[f])}
        )
        exists = (action[f] >= 0) & (action[f] < transition.shape[-1])
        found.append(jnp.where(exists, after, jnp.nan))
    return tuple(found)


def predict_observations(model: POMDP, beliefs: Sequence[Array]) -> tuple[Array, ...]:
    """Probabilities of each modality's observations under beliefs about states, ``[o_m]``.

    >>> see, stay = jnp.eye(2), jnp.eye(2)[..., None]
    >>> model = POMDP([see], [stay], [jnp.zeros(2)], [jnp.array([1.0, 0.0])])
    >>> predict_observations(model, model.D)[0].tolist()
    [1.0, 0.0]
    """
    return tuple(
        contract(likelihood, {axis + 1: beliefs[d] for axis, d in enumerate(factors)})
        for likelihood, factors in zip(model.A, model.A_dependencies, strict=True)
    )


def outcome_probabilities(model: POMDP, beliefs: Sequence[Array]) -> Array:
    """``q(o_1, ..., o_M)`` of all joint outcomes, ``[o]``; the last modality changes fastest.

    >>> see, stay, flat = jnp.eye(2), jnp.eye(2)[..., None], jnp.zeros(2)
    >>> twice = POMDP([see, see], [stay], [flat, flat], [jnp.array([0.25, 0.75])])
    >>> outcome_probabilities(twice, twice.D).tolist()
    [0.25, 0.0, 0.0, 0.75]
    """
    return joint_outcomes(model, beliefs, range(len(model.A)))


def joint_outcomes(model: POMDP, beliefs: Sequence[Array], modalities: Sequence[int]) -> Array:
    """``q(o_m, ...)`` of the joint outcomes of some modalities.

    Args:
        model: the model.
        beliefs: probabilities of the states for each factor, ``[s_f]``.
        modalities: their numbers.

    Returns:
        ``[o]``, with the product of their numbers of outcomes as o; the last one changes fastest.

    >>> see, stay, flat = jnp.eye(2), jnp.eye(2)[..., None], jnp.zeros(2)
    >>> twice = POMDP([see, see], [stay], [flat, flat], [jnp.array([0.25, 0.75])])
    >>> joint_outcomes(twice, twice.D, [1]).tolist()
    [0.25, 0.75]
    """
    einsum = partial(jnp.einsum, precision=jax.lax.Precision.HIGHEST)
    factors = sorted({f for m in modalities for f in model.A_dependencies[m]})
    outcomes = [len(model.D) + m for m in modalities]
    tables: list = []
    for m, axis in zip(modalities, outcomes, strict=True):
        tables += [model.A[m], [axis, *model.A_dependencies[m]]]
    states: list = []
    for f in factors:
        states += [beliefs[f], [f]]
    num_outcomes = math.prod(model.num_observations[m] for m in modalities)
    num_states = math.prod(model.num_states[f] for f in factors)
    if not factors or num_outcomes * num_states > _LARGEST_LIKELIHOOD:
        return einsum(*tables, *states, outcomes).reshape(-1)
    # One matrix of the model alone, which all beliefs that are mapped over share.
    likelihood = einsum(*tables, [*factors, *outcomes]).reshape(num_states, num_outcomes)
    together = einsum(*states, factors).reshape(-1)
    return jnp.matmul(together, likelihood, precision=jax.lax.Precision.HIGHEST)


def filter_states(
    model: POMDP, observations: Sequence[Array], actions: Array, *, mask: Array | None = None
) -> tuple[tuple[Array, ...], StateInfo]:
    """Beliefs along a history, each moment's prior being the prediction from the one before.

    Args:
        model: the model.
        observations: integers ``[t]`` for each modality.
        actions: controls of each factor between the moments, integers ``[t - 1, f]``.
        mask: booleans ``[t, m]``, True where there is an observation; None where all are.

    Returns:
        Beliefs for each factor ``[t, s_f]``, and the free energy of every moment ``[t]``.

    >>> see = jnp.array([[0.9, 0.2], [0.1, 0.8]])
    >>> model = POMDP([see], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.array([0.5, 0.5])])
    >>> (q,), info = filter_states(model, [jnp.array([0, 0, 0])], jnp.zeros((2, 1), int))
    >>> [round(float(x), 3) for x in q[:, 0]]
    [0.818, 0.953, 0.989]
    """
    seen = tuple(jnp.asarray(o) for o in observations)
    steps = seen[0].shape[0]
    actions = jnp.asarray(actions)
    if actions.shape != (steps - 1, len(model.B)):
        raise ValueError(
            f"actions must have shape [{steps - 1}, {len(model.B)}], got {list(actions.shape)}"
        )
    rows = jnp.ones((steps, len(model.A)), bool) if mask is None else jnp.asarray(mask)

    def step(prior: tuple[Array, ...], xs: tuple) -> tuple[tuple[Array, ...], tuple]:
        observation, there, action = xs
        found = infer_states(model, observation, prior, mask=there)
        return predict_states(model, found[0], action), found

    # The prediction behind the last moment is not used.
    actions = jnp.concatenate([actions, jnp.zeros_like(actions, shape=(1, len(model.B)))])
    return jax.lax.scan(step, model.D, (seen, rows, actions))[1]

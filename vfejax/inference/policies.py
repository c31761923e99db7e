"""Policies as data: sequences of controls, the tree of their shared beginnings, and the choice of
an action from their values.

A policy is a row of integers ``[horizon, f]``, one control for each factor at each step; the first
step leads to the first future state.
"""

import itertools
import math
import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.categorical import safe_log
from vfejax.inference._ranges import check_at_least_0
from vfejax.inference.pomdp.model import POMDP
from vfejax.numerics import as_floating, cast_like
from vfejax.types import Array

__all__ = [
    "PolicyTree",
    "action_marginals",
    "check_habits",
    "check_horizon",
    "check_policies",
    "count_policies",
    "enumerate_policies",
    "policy_posterior",
    "policy_tree",
    "sample_action",
]


class PolicyTree(NamedTuple):
    """The distinct beginnings of a set of policies: what they share is computed once.

    Attributes:
        parents: for each step, the node of the step before that each node follows, ``[n_h]``.
        actions: for each step, the controls that lead to each node, ``[n_h, f]``.
        nodes: for each step, the node that each policy passes, ``[p]``.
    """

    parents: tuple[Array | np.ndarray, ...]
    actions: tuple[Array | np.ndarray, ...]
    nodes: tuple[Array | np.ndarray, ...]


def check_horizon(horizon: int) -> None:
    """Refuse a number of steps that is no whole number or below 1.

    >>> check_horizon(1.5)
    Traceback (most recent call last):
        ...
    ValueError: horizon must be a whole number of steps, got 1.5
    """
    try:
        operator.index(horizon)
    except TypeError as error:
        raise ValueError(f"horizon must be a whole number of steps, got {horizon}") from error
    if horizon < 1:
        raise ValueError(f"horizon must be at least 1, got {horizon}")


def enumerate_policies(model: POMDP, horizon: int) -> np.ndarray:
    """All sequences of controls, ``[p, horizon, f]``; the last step changes fastest.

    Args:
        model: gives the number of controls of each factor.
        horizon: steps, at least 1.

    Raises:
        ValueError: when the horizon is no whole number of at least 1, or there are more than 2^20
            policies.

    >>> see, move = jnp.eye(2), jnp.ones((2, 2, 2)) / 2
    >>> model = POMDP([see], [move], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> enumerate_policies(model, 2)[:, :, 0].tolist()
    [[0, 0], [0, 1], [1, 0], [1, 1]]
    """
    check_horizon(horizon)
    steps = list(itertools.product(*(range(u) for u in model.num_controls)))
    if len(steps) ** horizon > 2**20:
        raise ValueError(
            f"there are {len(steps)}^{horizon} policies, more than 2^20; shorten the horizon, name "
            "the policies that matter, or plan by sophisticated inference"
        )
    single = np.asarray(steps, np.int32)
    order = np.indices((len(steps),) * horizon).reshape(horizon, -1).T
    return single[order]


def check_policies(model: POMDP, policies: Array | np.ndarray) -> None:
    """Refuse policies of the wrong shape, or concrete ones with controls that do not exist.

    >>> see, move = jnp.eye(2), jnp.ones((2, 2, 2)) / 2
    >>> model = POMDP([see], [move], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> check_policies(model, np.array([[[0]], [[1]]]))
    """
    wanted = f"[p, horizon, {len(model.B)}]"
    if not hasattr(policies, "ndim"):
        raise ValueError(f"policies must be an array {wanted}, got {type(policies).__name__}")
    if policies.ndim != 3 or policies.shape[2] != len(model.B) or 0 in policies.shape[:2]:
        raise ValueError(f"policies must have shape {wanted}, got {list(policies.shape)}")
    if not jnp.issubdtype(policies.dtype, jnp.integer):
        raise ValueError(f"policies must be integers {wanted}, got {policies.dtype}")
    if isinstance(policies, jax.core.Tracer):
        return
    given = np.asarray(policies)
    wrong = np.argwhere((given < 0) | (given >= np.asarray(model.num_controls)))
    if len(wrong):
        p, h, f = (int(i) for i in wrong[0])
        raise ValueError(
            f"policies[{p}, {h}, {f}] must be a control of factor {f}, 0 to "
            f"{model.num_controls[f] - 1}, got {given[p, h, f]}"
        )


def check_habits(model: POMDP) -> None:
    """Refuse habits that are not those of single joint controls.

    Args:
        model: E must be None or have one entry for each joint control, in the order of
            ``enumerate_policies(model, 1)``.

    >>> see, move = jnp.eye(2), jnp.ones((2, 2, 2)) / 2
    >>> check_habits(POMDP([see], [move], [jnp.zeros(2)], [jnp.ones(2) / 2], jnp.ones(2) / 2))
    """
    wanted = math.prod(model.num_controls)
    if model.E is not None and model.E.size != wanted:
        raise ValueError(
            f"E must have shape [{wanted}], a habit for each joint control, got "
            f"[{model.E.size}]; model.replace(E=None) has none"
        )


def policy_tree(policies: Array | np.ndarray) -> PolicyTree:
    """Distinct beginnings of policies ``[p, horizon, f]``: with U joint controls and all policies,
    ``U + U^2 + ... + U^H`` nodes where a copy for each policy has ``H U^H``.

    Policies that are known when the program is made (NumPy arrays, constants) share; traced ones
    have a node each at every step. A policy that is listed twice costs nothing more and has twice
    the probability in the end, as a habit of twice the weight.

    >>> tree = policy_tree(np.array([[[0], [0]], [[0], [1]], [[1], [0]]]))
    >>> [len(parents) for parents in tree.parents]
    [2, 3]
    """
    num, horizon, _ = policies.shape
    if isinstance(policies, jax.core.Tracer):
        each = np.arange(num)
        parents = (np.zeros(num, int), *[each] * (horizon - 1))
        actions = tuple(policies[:, h] for h in range(horizon))
        return PolicyTree(parents, actions, (each,) * horizon)
    given, above = np.asarray(policies), np.zeros(num, int)
    levels = []
    for h in range(horizon):
        rows = np.concatenate([above[:, None], given[:, h]], axis=1)
        distinct, below = np.unique(rows, axis=0, return_inverse=True)
        above = below.reshape(-1)
        levels.append((distinct[:, 0], distinct[:, 1:], above))
    return PolicyTree(*(tuple(column) for column in zip(*levels, strict=True)))


def policy_posterior(
    neg_efe: Array,
    gamma: Array | float = 1.0,
    E: Array | None = None,
    *,
    window: Array | float | None = None,
) -> Array:
    """``softmax(gamma neg_efe + log E)``: probabilities of policies, ``[p]``.

    Args:
        neg_efe: minus expected free energy, ``[p]``, in nats; -inf for a policy that is pruned.
        gamma: precision, at least 0.
        E: habits, probabilities ``[p]``; None for equal ones.
        window: policies whose log probability lies more than this below that of the best, in nats,
            are pruned; None for none.

    Raises:
        ValueError: when E has another shape, or for a concrete gamma or window below 0.

    >>> policy_posterior(jnp.array([1.0, 1.0])).tolist()
    [0.5, 0.5]
    """
    check_at_least_0("gamma", gamma)
    check_at_least_0("window", 0.0 if window is None else window)
    neg_efe = as_floating(neg_efe, "neg_efe")
    habits = jnp.zeros_like(neg_efe) if E is None else safe_log(E)
    if habits.shape != neg_efe.shape:
        raise ValueError(f"E must have shape {list(neg_efe.shape)}, got {list(habits.shape)}")
    # -inf times a precision of 0 would be NaN.
    pruned = neg_efe == -jnp.inf
    precision = cast_like(gamma, neg_efe)
    scaled = jnp.where(pruned, -jnp.inf, precision * jnp.where(pruned, 0.0, neg_efe))
    logits = scaled + habits
    if window is not None:
        bar = jnp.max(logits) - cast_like(window, logits)
        logits = jnp.where(logits < bar, -jnp.inf, logits)
    return jax.nn.softmax(logits)


def action_marginals(
    model: POMDP, policies: Array | np.ndarray, posterior: Array
) -> tuple[Array, ...]:
    """Probabilities of the first control of each factor, ``[u_f]``.

    Args:
        model: gives the number of controls of each factor.
        policies: ``[p, horizon, f]``.
        posterior: probabilities of the policies, ``[p]``.

    >>> see, move = jnp.eye(2), jnp.ones((2, 2, 2)) / 2
    >>> model = POMDP([see], [move], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> action_marginals(model, enumerate_policies(model, 1), jnp.array([0.25, 0.75]))[0].tolist()
    [0.25, 0.75]
    """
    check_policies(model, policies)
    return tuple(
        jnp.zeros(size, posterior.dtype).at[policies[:, 0, f]].add(posterior)
        for f, size in enumerate(model.num_controls)
    )


def count_policies(policies: Array, posterior: Array, action: Array) -> Array:
    """Which policy was followed, from what was done: ``q(pi | u_1) ~ q(pi) [pi begins with u_1]``.

    Args:
        policies: integers ``[p, horizon, f]``.
        posterior: probabilities of the policies before the action, ``[p]``.
        action: the controls that were taken, integers ``[f]``.

    Returns:
        ``[p]``, with sum 1; zeros where no policy begins so.

    >>> both = jnp.array([[[0]], [[1]]])
    >>> count_policies(both, jnp.array([0.25, 0.75]), jnp.array([0])).tolist()
    [1.0, 0.0]
    """
    first = jnp.asarray(policies, action.dtype)[:, 0]
    begins = jnp.all(first == action[None], axis=1)
    weights = jnp.where(begins, posterior, 0.0)
    total = jnp.sum(weights)
    return weights / jnp.where(total == 0, 1.0, total)


def sample_action(
    key: Array, marginals: tuple[Array, ...], temperature: Array | float = 1.0
) -> Array:
    """A control for each factor, drawn independently, integers ``[f]``.

    Args:
        key: a random key.
        marginals: probabilities of the controls of each factor, ``[u_f]``.
        temperature: probabilities are raised to its inverse; 0 takes the most probable control.

    Raises:
        ValueError: for a concrete temperature below 0.

    >>> sample_action(jax.random.key(0), (jnp.array([0.0, 1.0]),)).tolist()
    [1]
    """
    check_at_least_0("temperature", temperature)
    keys = jax.random.split(key, len(marginals))
    cold = jnp.asarray(temperature) == 0
    drawn = [
        jnp.where(
            cold,
            jnp.argmax(p),
            jax.random.categorical(k, safe_log(p) / jnp.where(cold, 1.0, temperature)),
        )
        for k, p in zip(keys, marginals, strict=True)
    ]
    return jnp.stack(drawn)

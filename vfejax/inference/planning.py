"""Planning beyond the list of policies: sophisticated inference and relaxed policies.

Sophisticated inference asks what the agent would believe, and then do, after each outcome:

    G(u, q) = g(q_u) + E_q(o | u) sum_u' pi(u' | q_o) G(u', q_o),    pi = softmax(gamma G)

where ``q_u`` is the belief after the control u, ``q_o`` what it becomes when o is observed, and g
minus the expected free energy of one step. Habits E weigh the actions of every choice, now and
later: ``pi ~ E exp(gamma G)``. A policy that is fixed beforehand cannot use what it will see; this
one does. Its tree has a fixed shape: all controls, and the most probable outcomes.
"""

import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference import information_gain
from vfejax.inference.expected_free_energy import (
    check_preferences,
    predict_all_controls,
    step_terms,
)
from vfejax.inference.inductive import Intention, inductive_value
from vfejax.inference.policies import (
    check_habits,
    check_horizon,
    enumerate_policies,
    policy_posterior,
)
from vfejax.inference.pomdp.learning import Counts
from vfejax.inference.pomdp.model import POMDP, check_beliefs, contract
from vfejax.inference.pomdp.prediction import outcome_probabilities
from vfejax.inference.pomdp.states import infer_states
from vfejax.types import Array

__all__ = ["RelaxedPlan", "plan_by_gradient", "relaxed_neg_efe", "sophisticated"]

_LARGEST_TREE = 2**22


class _Search(NamedTuple):
    """What stays the same over the tree."""

    controls: np.ndarray  # [u, f]: joint controls
    outcomes: np.ndarray  # [o, m]: joint outcomes
    horizon: int
    branches: int  # outcomes that are followed
    gamma: Array | float
    hard: bool
    joint: bool
    min_probability: float
    min_action_probability: float
    intention: Intention | None
    counts: Counts


def sophisticated(
    model: POMDP,
    belief: Sequence[Array],
    horizon: int,
    *,
    gamma: Array | float = 16.0,
    hard: bool = False,
    joint: bool = True,
    num_outcomes: int | None = None,
    min_probability: float = 0.0,
    min_action_probability: float = 0.0,
    intention: Intention | None = None,
    counts: Counts | None = None,
) -> Array:
    """Minus the expected free energy of each first action, by a search over actions and outcomes.

    Args:
        model: the model; habits E are those of its joint controls, ``[u]``.
        belief: probabilities of the present states for each factor, ``[s_f]``.
        horizon: steps, at least 1; 1 is greedy.
        gamma: precision of the choices that the agent expects of itself.
        hard: whether it expects to take its most probable action rather than to draw one.
        joint: whether information about states is that of all modalities together.
        num_outcomes: how many of the most probable joint outcomes are followed after each action;
            None for all.
        min_probability: outcomes that are less probable are left out, unless they are the most
            probable. The rest share their weight.
        min_action_probability: later actions whose probability by one step alone,
            ``softmax(gamma g)``, is smaller are not considered, unless it is the largest.
        intention: goals of :func:`vfejax.inference.inductive.intention`; with them the inductive
            term of each step counts, from the belief before it.
        counts: with those of A and B, what is learned about them counts; they stay as they are.

    Returns:
        ``[u]``, higher is better, for the joint controls in the order of
        ``enumerate_policies(model, 1)``.

    Raises:
        ValueError: when arguments do not fit, preferences have fewer steps than the horizon, E has
            not one entry for each joint control, or the tree would have more than 2^22 nodes.

    Source: Friston, Da Costa, Hafner, Hesp and Parr, Sophisticated inference, Neural Computation 33
    (2021) 713.

    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([1.0, 0.0])])
    >>> [round(float(g), 2) for g in sophisticated(model, model.D, 2, hard=True)]
    [3.0, 6.0]
    """
    start = check_beliefs(model, belief, "belief")
    check_horizon(horizon)
    check_preferences(model, horizon)
    controls = enumerate_policies(model, 1)[:, 0]
    check_habits(model)
    sizes = model.num_observations
    branches = _outcomes_followed(math.prod(sizes), num_outcomes, len(controls), horizon)
    outcomes = np.asarray(list(itertools.product(*(range(n) for n in sizes))), np.int32)
    least = min_probability, min_action_probability
    known = Counts() if counts is None else counts
    search = _Search(
        controls, outcomes, horizon, branches, gamma, hard, joint, *least, intention, known
    )
    return _values(model, search, tuple(q[None] for q in start), 0)[0]


def _outcomes_followed(
    total: int, num_outcomes: int | None, num_controls: int, horizon: int
) -> int:
    """How many of all joint outcomes are followed after each action, in a tree that fits."""
    branches = total if num_outcomes is None else min(num_outcomes, total)
    if branches < 1:
        raise ValueError(f"num_outcomes must be at least 1, got {num_outcomes}")
    nodes = num_controls**horizon * branches ** (horizon - 1)
    if total > _LARGEST_TREE or nodes > _LARGEST_TREE:
        raise ValueError(
            f"the tree has {nodes} nodes for {num_controls} actions, {branches} of {total} "
            f"outcomes and horizon {horizon}, more than 2^22; follow fewer outcomes (num_outcomes) "
            "or shorten the horizon"
        )
    return branches


def _values(model: POMDP, search: _Search, beliefs: tuple[Array, ...], step: int) -> Array:
    """G of every action at every node: beliefs ``[n, s_f]`` to ``[n, u]``."""
    after = jax.vmap(lambda *q: predict_all_controls(model, q))(*beliefs)
    own = tuple(x[:, search.controls[:, f]] for f, x in enumerate(after))  # [n, u, s_f]
    n, u = own[0].shape[:2]
    flat = tuple(x.reshape(n * u, -1) for x in own)
    now = jax.vmap(lambda *q: step_terms(model, q, step, search.joint).neg_efe)(*flat)
    now = now.reshape(n, u)
    if (intended := search.intention) is not None:
        value = jax.vmap(lambda q, after: inductive_value(intended, q, after), (None, 0))
        now += jax.vmap(value)(beliefs, own)
    if (known := search.counts).A is not None:
        learned = partial(information_gain.likelihood_information_gain, model, known.A)
        now += jax.vmap(lambda *q: learned(q))(*flat).reshape(n, u)
    if known.B is not None:
        moved = partial(information_gain.transition_information_gain, model, known.B)
        for f, gain in enumerate(jax.vmap(lambda *q: moved(q))(*beliefs)):
            now += gain[:, search.controls[:, f]]
    if step + 1 == search.horizon:
        return now

    chances = jax.vmap(lambda *q: outcome_probabilities(model, q))(*flat)
    weights, which = jax.lax.top_k(chances, search.branches)
    if search.min_probability > 0:
        bar = jnp.minimum(weights[:, :1], search.min_probability)  # the first is the largest
        weights = jnp.where(weights < bar, 0.0, weights)
    weights = weights / jnp.sum(weights, axis=1, keepdims=True)

    def observed(prior: tuple[Array, ...], outcome: Array) -> tuple[Array, ...]:
        return infer_states(model, list(outcome), prior)[0]

    seen = jnp.asarray(search.outcomes)[which]  # [n * u, k, m]
    later = jax.vmap(jax.vmap(observed, in_axes=(None, 0)))(flat, seen)
    later = tuple(q.reshape(n * u * search.branches, -1) for q in later)
    values = _expected_value(
        search, _values(model, search, later, step + 1), model, later, step + 1
    )
    ahead = jnp.sum(weights * values.reshape(weights.shape), axis=1)
    return now + ahead.reshape(n, u)


def _expected_value(
    search: _Search, values: Array, model: POMDP, beliefs: tuple[Array, ...], step: int
) -> Array:
    """Value of a node from those of its actions ``[n, u]``: the best, or the mean under pi."""

    def chances(values: Array) -> Array:
        return jax.vmap(lambda row: policy_posterior(row, search.gamma, model.E))(values)

    if search.min_action_probability > 0:
        greedy = _values(model, search._replace(horizon=step + 1), beliefs, step)
        likely = chances(greedy)
        bar = jnp.minimum(jnp.max(likely, axis=1), search.min_action_probability)
        values = jnp.where(likely < bar[:, None], -jnp.inf, values)
    if search.hard and model.E is None:
        return jnp.max(values, axis=1)
    chosen = chances(values)
    if search.hard:
        best = jnp.argmax(chosen, axis=1)
        return jnp.take_along_axis(values, best[:, None], axis=1)[:, 0]
    # Values of -inf are left out before the product: their chances would have slopes of NaN.
    return jnp.sum(chosen * jnp.where(chosen == 0, 0.0, values), axis=1)


def relaxed_neg_efe(model: POMDP, beliefs: Sequence[Array], controls: Sequence[Array]) -> Array:
    """Minus the expected free energy of a policy whose controls are drawn independently.

    Linear predictions mix the controls, ``q' = sum_u pi(u) B_u q``; for a policy without chance it
    is :func:`vfejax.inference.expected_free_energy.expected_free_energy`.

    Args:
        model: the model.
        beliefs: probabilities of the present states for each factor, ``[s_f]``.
        controls: probabilities of the controls of each factor at each step, ``[horizon, u_f]``.

    Returns:
        A scalar in nats, differentiable in all arguments.

    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([1.0, 0.0])])
    >>> float(relaxed_neg_efe(model, model.D, [jnp.array([[0.0, 1.0]])]))
    3.0
    """
    nodes = check_beliefs(model, beliefs, "beliefs")
    if len(controls) != len(model.B):
        raise ValueError(f"controls must have {len(model.B)} entries, got {len(controls)}")
    horizon = controls[0].shape[0]
    check_preferences(model, horizon)
    total = jnp.zeros((), nodes[0].dtype)
    for step in range(horizon):
        after = predict_all_controls(model, nodes)
        nodes = tuple(
            contract(x, {0: row[step].astype(x.dtype)})
            for x, row in zip(after, controls, strict=True)
        )
        total += step_terms(model, nodes, step).neg_efe
    return total


class RelaxedPlan(NamedTuple):
    """A policy found by gradient.

    Attributes:
        controls: probabilities of the controls of each factor at each step, ``[horizon, u_f]``.
        neg_efe: minus its expected free energy along the way, ``[iterations]``.
    """

    controls: tuple[Array, ...]
    neg_efe: Array


def plan_by_gradient(
    model: POMDP,
    beliefs: Sequence[Array],
    horizon: int,
    *,
    gamma: Array | float = 16.0,
    step_size: float = 0.5,
    num_iterations: int = 100,
    key: Array | None = None,
) -> RelaxedPlan:
    """A relaxed policy by mirror ascent on ``neg_efe + H / gamma``.

    ``log pi <- log pi + eta (d neg_efe / d pi - log pi / gamma)``, normalised: its fixed points are
    ``pi ~ exp(gamma d neg_efe / d pi)``. It costs one gradient of a single policy for each
    iteration, whatever the number of policies, and finds a local optimum. A relaxed policy takes
    its own chance for uncertainty about the world, so that information about states rewards
    mixtures; take the most probable controls, and compare them by ``expected_free_energy``.

    Args:
        model: the model.
        beliefs: probabilities of the present states for each factor, ``[s_f]``.
        horizon: steps.
        gamma: precision.
        step_size: eta times the horizon.
        num_iterations: updates.
        key: where given, first controls are drawn at random rather than all equal: equal ones can
            be a saddle.

    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([1.0, 0.0])])
    >>> plan_by_gradient(model, model.D, 1).controls[0].argmax(axis=1).tolist()
    [1]
    """
    check_horizon(horizon)
    start = check_beliefs(model, beliefs, "beliefs")
    dtype = start[0].dtype
    logits = tuple(jnp.zeros((horizon, u), dtype) for u in model.num_controls)
    if key is not None:
        keys = jax.random.split(key, len(logits))
        drawn = [jax.random.normal(k, x.shape, dtype) for k, x in zip(keys, logits, strict=True)]
        logits = tuple(drawn)

    def value(controls: tuple[Array, ...]) -> Array:
        return relaxed_neg_efe(model, start, controls)

    precision, move = (jnp.asarray(x, dtype) for x in (gamma, step_size / horizon))

    def update(logits: tuple[Array, ...], _: None) -> tuple[tuple[Array, ...], Array]:
        controls = tuple(jax.nn.softmax(x, axis=1) for x in logits)
        found, slopes = jax.value_and_grad(value)(controls)
        after = tuple(
            jax.nn.log_softmax(x + move * (slope - x / precision), axis=1)
            for x, slope in zip(logits, slopes, strict=True)
        )
        return after, found

    logits, found = jax.lax.scan(update, logits, None, length=num_iterations)
    return RelaxedPlan(tuple(jax.nn.softmax(x, axis=1) for x in logits), found)

"""Monte Carlo tree search over beliefs, for horizons that no full tree reaches; by mctx, an extra.

A node is a belief and a step. An action leads to the predicted belief, which pays minus the
expected free energy of the step, and an outcome from there to the posterior belief; outcomes are
followed in proportion to their probability. Where the tree ends, what is still to come counts as
nothing. Values of an agent that knows its state, a usual guess there, promise that what is unknown
will be known for nothing, and keep a search from asking. Actions are tried in proportion to
``E exp(g)`` at first, with g what one step of them pays, and then where they were found good.
"""

import inspect
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.beliefs.categorical import safe_log
from vfejax.errors import UserError
from vfejax.inference.active_inference import Plan, Planner
from vfejax.inference.expected_free_energy import (
    check_preferences,
    predict_all_controls,
    step_terms,
)
from vfejax.inference.inductive import Intention, inductive_value
from vfejax.inference.policies import (
    action_marginals,
    check_habits,
    check_horizon,
    enumerate_policies,
)
from vfejax.inference.pomdp.model import POMDP, check_beliefs
from vfejax.inference.pomdp.prediction import outcome_probabilities
from vfejax.inference.pomdp.states import infer_states
from vfejax.types import Array

__all__ = ["TreeSearch", "tree_search", "tree_search_planner"]

_LARGEST_TREE = 2**26


def _library() -> Any:
    try:
        import mctx
    except ImportError as error:
        raise UserError(
            "Monte Carlo tree search needs the library mctx; "
            "install it with pip install 'vfejax[mctx]'"
        ) from error
    return mctx


class TreeSearch(NamedTuple):
    """What a search found about the first actions.

    Attributes:
        visits: share of the simulations that began with each joint control, ``[u]``: the choice.
        neg_efe: mean of what they found, in nats, ``[u]``; -inf where none began so.
    """

    visits: Array
    neg_efe: Array


class _Choice(NamedTuple):
    """Where an action is chosen: the step, and for each action the predicted beliefs and what they
    pay.
    """

    step: Array
    after: tuple[Array, ...]  # [u, s_f]
    pay: Array  # [u]


class _Chance(NamedTuple):
    """Where an outcome is drawn: the step, the predicted beliefs, and what they paid."""

    step: Array
    beliefs: tuple[Array, ...]
    paid: Array


def _choice(
    model: POMDP,
    beliefs: tuple[Array, ...],
    step: Array,
    joint: bool,
    intention: Intention | None,
) -> _Choice:
    controls = enumerate_policies(model, 1)[:, 0]
    each = predict_all_controls(model, beliefs)
    after = tuple(x[controls[:, f]] for f, x in enumerate(each))
    pay = jax.vmap(lambda *q: step_terms(model, q, step, joint).neg_efe)(*after)
    if intention is not None:
        pay += jax.vmap(lambda *q: inductive_value(intention, beliefs, q))(*after)
    return _Choice(step, after, pay)


def _check_search(model: POMDP, horizon: int, num_simulations: int) -> None:
    check_horizon(horizon)
    if num_simulations < 1:
        raise ValueError(f"num_simulations must be at least 1, got {num_simulations}")
    check_habits(model)
    check_preferences(model, horizon)
    branches = math.prod(model.num_controls) + math.prod(model.num_observations)
    if branches * num_simulations > _LARGEST_TREE:
        raise ValueError(
            f"a tree of {num_simulations} nodes with {branches} actions and joint outcomes has "
            "more than 2^26 branches; use fewer simulations"
        )


def _moves(
    mctx: Any,
    model: POMDP,
    horizon: int,
    joint: bool,
    intention: Intention | None,
    habits: Array | float,
    nothing: Array,
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """The two moves of the search, as mctx asks for them: from a choice by an action to a chance,
    and from a chance by an outcome to the next choice. What is left after the horizon is worth
    ``nothing``.
    """
    outcomes = jnp.asarray(list(itertools.product(*map(range, model.num_observations))), jnp.int32)

    def act(_: Any, key: Array, action: Array, node: _Choice) -> tuple[Any, _Chance]:
        own = tuple(q[action] for q in node.after)
        after = _Chance(node.step + 1, own, node.pay[action])
        chances = safe_log(outcome_probabilities(model, own))
        return mctx.DecisionRecurrentFnOutput(
            chance_logits=chances, afterstate_value=after.paid
        ), after

    def observe(_: Any, key: Array, outcome: Array, node: _Chance) -> tuple[Any, _Choice]:
        seen, _ = infer_states(model, list(outcomes[outcome]), node.beliefs)
        after = _choice(model, seen, node.step, joint, intention)
        return mctx.ChanceRecurrentFnOutput(
            action_logits=after.pay + habits,
            value=nothing,
            reward=node.paid,
            discount=(node.step < horizon).astype(nothing.dtype),
        ), after

    return act, observe


def tree_search(
    model: POMDP,
    belief: Sequence[Array],
    horizon: int,
    key: Array,
    *,
    num_simulations: int = 256,
    exploration: float = 1.25,
    joint: bool = True,
    intention: Intention | None = None,
) -> TreeSearch:
    """Minus the expected free energy of each first action, by Monte Carlo tree search.

    Its work is that of ``num_simulations`` steps of inference, whatever the horizon. A value is a
    mean over simulations, some of which explore: it lies below that of the best continuation.

    Args:
        model: the model; habits E are those of its joint controls, ``[u]``.
        belief: probabilities of the present states for each factor, ``[s_f]``.
        horizon: steps, at least 1.
        key: a random key, which decides between equals.
        num_simulations: nodes of the tree; each action and each outcome is one.
        exploration: how much untried actions are preferred.
        joint: whether information about states is that of all modalities together.
        intention: goals of :func:`vfejax.inference.inductive.intention`; with them the inductive
            term of each step counts, from the belief before it.

    Raises:
        UserError: when mctx is not installed.
        ValueError: when arguments do not fit, or the tree would have more than 2^26 branches.

    Source: Silver and Veness, Monte-Carlo planning in large POMDPs (2010), on beliefs and with the
    chance nodes of Antonoglou, Schrittwieser, Ozair, Hubert and Silver, Planning in stochastic
    environments with a learned model (2022).

    >>> move = jnp.stack([jnp.eye(2), 1 - jnp.eye(2)], axis=-1)  # stay, change
    >>> model = POMDP([jnp.eye(2)], [move], [jnp.array([0.0, 3.0])], [jnp.array([1.0, 0.0])])
    >>> found = tree_search(model, model.D, 2, jax.random.key(0), num_simulations=64)
    >>> int(found.visits.argmax()), round(float(found.neg_efe[1]))
    (1, 6)
    """
    mctx, start = _library(), check_beliefs(model, belief, "belief")
    _check_search(model, horizon, num_simulations)
    habits = 0.0 if model.E is None else safe_log(model.E)
    nothing = jnp.zeros((), start[0].dtype)
    act, observe = _moves(mctx, model, horizon, joint, intention, habits, nothing)
    root = _choice(model, start, jnp.zeros((), jnp.int32), joint, intention)
    # mctx mixes precisions and ranks on its way.
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        found = mctx.stochastic_muzero_policy(
            (),
            key,
            mctx.RootFnOutput(
                prior_logits=(root.pay + habits)[None],
                value=nothing[None],
                embedding=jax.tree.map(lambda x: x[None], root),
            ),
            jax.vmap(act, (None, None, 0, 0)),
            jax.vmap(observe, (None, None, 0, 0)),
            num_simulations,
            max_depth=2 * horizon,
            dirichlet_fraction=0.0,
            pb_c_init=exploration,
        )
        summary = found.search_tree.summary()
    values = jnp.where(summary.visit_counts[0] > 0, summary.qvalues[0], -jnp.inf)
    return TreeSearch(summary.visit_probs[0].astype(nothing.dtype), values.astype(nothing.dtype))


def tree_search_planner(horizon: int, key: Array, **options: Any) -> Planner:
    """Plan by :func:`tree_search`: actions are as probable as they were tried.

    Args:
        horizon: steps.
        key: a random key, the same at every moment: it decides between equals only.
        **options: the other options of that function.

    Raises:
        TypeError: for an option that it does not have.

    >>> from vfejax.problems.environments import t_maze
    >>> maze = t_maze()
    >>> plan = tree_search_planner(2, jax.random.key(0), num_simulations=64)(maze, maze.D)
    >>> int(plan.controls[0].argmax())  # the cue
    3
    """
    inspect.signature(tree_search).bind(None, None, horizon, key, **options)

    def plan(model: POMDP, beliefs: Sequence[Array]) -> Plan:
        found = tree_search(model, beliefs, horizon, key, **options)
        every = enumerate_policies(model, 1)
        return Plan(found.visits, found.neg_efe, action_marginals(model, every, found.visits))

    return plan

"""Learning the arrays of a POMDP by Dirichlet counts.

A column theta of A, B, D or E with counts a is a belief Dir(a); an event that is believed with
probability w adds w to the count of what happened:

    a <- f a + eta w        f: what is kept (1 keeps all), eta: learning rate

With ``f = eta = 1`` and states that are known this is Bayes' rule. What is forgotten can return to
the counts before all data instead of vanishing. Preferences C are learned from
what was observed, as log probabilities of their counts. An entry whose count is 0 cannot happen and
is never learned.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.beliefs.categorical import safe_log
from vfejax.inference._ranges import check_at_least_0
from vfejax.inference.pomdp.model import POMDP
from vfejax.inference.pomdp.windows import Smoothed
from vfejax.numerics import cast_like, floating_tree
from vfejax.types import Array

__all__ = [
    "Counts",
    "count_likelihoods",
    "count_observations",
    "count_transitions",
    "count_window",
    "counts_of",
    "expected_model",
    "update_counts",
]


class Counts(NamedTuple):
    """Dirichlet counts of the arrays of a POMDP; None for what is not learned.

    Attributes:
        A: of observations, the shapes of A.
        B: of transitions, the shapes of B.
        C: of preferred observations, ``[o_m]``.
        D: of first states, ``[s_f]``.
        E: of policies, ``[p]``.
    """

    A: tuple[Array, ...] | None = None
    B: tuple[Array, ...] | None = None
    C: tuple[Array, ...] | None = None
    D: tuple[Array, ...] | None = None
    E: Array | None = None


def counts_of(model: POMDP, names: str, scale: Array | float = 1.0) -> Counts:
    """Counts whose expectation is the model: its probabilities times ``scale``.

    Args:
        model: the model; with ``E`` in the names, it must have habits.
        names: which arrays are learned, letters of ``ABCDE``.
        scale: how many observations the model is worth in each column.

    Raises:
        ValueError: for another letter, habits that are not there, preferences that change with the
            step, or a scale that is not above 0.

    >>> see = jnp.array([[0.9, 0.2], [0.1, 0.8]])
    >>> model = POMDP([see], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> counts_of(model, "D", 4.0).D[0].tolist()
    [2.0, 2.0]
    """
    unknown = sorted(set(names) - set("ABCDE"))
    if unknown:
        raise ValueError(f"names must be letters of ABCDE, got {unknown[0]!r}")
    if not isinstance(scale, jax.core.Tracer) and not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    if "E" in names and model.E is None:
        raise ValueError("the model has no habits E; give it equal ones to learn them")
    if "C" in names and any(c.ndim > 1 for c in model.C):
        raise ValueError("preferences that change with the step cannot be learned")
    arrays = {"A": model.A, "B": model.B, "D": model.D, "E": model.E}
    if "C" in names:
        arrays["C"] = tuple(jax.nn.softmax(c) for c in model.C)
    return Counts(
        **{
            name: jax.tree.map(lambda x: cast_like(scale, x) * x, arrays[name])
            for name in sorted(set(names))
        }
    )


def expected_model(model: POMDP, counts: Counts) -> POMDP:
    """The model with the expectation of what is learned, ``a / sum a``.

    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> expected_model(model, Counts(D=(jnp.array([3.0, 1.0]),))).D[0].tolist()
    [0.75, 0.25]
    """
    known = {name: value for name, value in counts._asdict().items() if value is not None}
    means = jax.tree.map(lambda a: a / jnp.sum(a, axis=0, keepdims=True), known)
    if "C" in means:
        means["C"] = tuple(safe_log(c) for c in means["C"])
    return model.replace(**means)


def _outer(arrays: Sequence[Array]) -> Array:
    """Products of all combinations of entries."""
    product = arrays[0]
    for array in arrays[1:]:
        product = product[..., None] * array.reshape((1,) * product.ndim + (-1,))
    return product


def _indicator(value: Array, num: int, dtype: jnp.dtype) -> Array:
    """1 at one of ``num`` values and 0 at the others, ``[num]``; NaN for none of them."""
    inside = (value >= 0) & (value < num)
    return jnp.where(inside, jax.nn.one_hot(value, num, dtype=dtype), jnp.nan)


def count_likelihoods(
    model: POMDP, observation: Sequence[Array], beliefs: Sequence[Array], mask: Array | None = None
) -> tuple[Array, ...]:
    """How often each observation came in each state at one moment: ``o_m (x) q(s_deps)``.

    Args:
        model: gives sizes and dependencies.
        observation: for each modality an integer; one that is no value of it gives NaN.
        beliefs: probabilities of the states for each factor, ``[s_f]``.
        mask: booleans ``[m]``, True where there is an observation.

    Returns:
        Arrays of the shapes of A, whose entries sum to 1, or to 0 where the observation is missing.

    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> count_likelihoods(model, [1], [jnp.array([0.25, 0.75])])[0].tolist()
    [[0.0, 0.0], [0.25, 0.75]]
    """
    counts = []
    for m, (likelihood, factors) in enumerate(zip(model.A, model.A_dependencies, strict=True)):
        seen = _indicator(observation[m], likelihood.shape[0], likelihood.dtype)
        there = seen if mask is None else jnp.where(mask[m], seen, 0.0)
        counts.append(_outer([there, *(beliefs[f] for f in factors)]))
    return tuple(counts)


def count_observations(
    model: POMDP, observation: Sequence[Array], mask: Array | None = None
) -> tuple[Array, ...]:
    """How often each observation came at one moment, whatever the state: events of C, ``[o_m]``.

    Args:
        model: gives sizes.
        observation: for each modality an integer; one that is no value of it gives NaN.
        mask: booleans ``[m]``, True where there is an observation.

    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> count_observations(model, [1])[0].tolist()
    [0.0, 1.0]
    """
    counts = []
    for m, (value, c) in enumerate(zip(observation, model.C, strict=True)):
        seen = _indicator(value, c.shape[-1], c.dtype)
        counts.append(seen if mask is None else jnp.where(mask[m], seen, 0.0))
    return tuple(counts)


def count_transitions(
    model: POMDP, action: Sequence[Array], before: Sequence[Array], after: Sequence[Array]
) -> tuple[Array, ...]:
    """How often each transition was taken: ``q(s') (x) q(s_deps) (x) u``.

    The product of the beliefs before and after counts a state that is not known well as if it
    changed; :func:`count_window` has pairs instead, and is exact with one factor.

    Args:
        model: gives sizes and dependencies.
        action: the control of each factor, integers; one that does not exist gives NaN.
        before: probabilities of the states before for each factor, ``[s_f]``.
        after: of the states after.

    Returns:
        Arrays of the shapes of B, whose entries sum to 1.

    >>> model = POMDP([jnp.eye(2)], [jnp.eye(2)[..., None]], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> count_transitions(model, [0], [jnp.array([1.0, 0.0])], [jnp.array([0.0, 1.0])])[0].tolist()
    [[[0.0], [0.0]], [[1.0], [0.0]]]
    """
    return tuple(
        _outer(
            [
                after[f],
                *(before[d] for d in factors),
                _indicator(action[f], model.num_controls[f], after[f].dtype),
            ]
        )
        for f, factors in enumerate(model.B_dependencies)
    )


def count_window(
    model: POMDP,
    observations: Sequence[Array],
    actions: Array,
    smoothed: Smoothed,
    mask: Array | None = None,
) -> Counts:
    """Counts of A, B and D over a window, from its structured posterior.

    With one factor they are the expected counts of the Baum-Welch algorithm.

    Args:
        model: gives sizes and dependencies.
        observations: integers ``[t]`` for each modality.
        actions: controls of each factor between the moments, integers ``[t - 1, f]``.
        smoothed: of :func:`vfejax.inference.pomdp.windows.smooth_states`.
        mask: booleans ``[t, m]``, True where there is an observation; None where all are.

    >>> from vfejax.inference.pomdp.windows import smooth_states
    >>> model = POMDP([jnp.eye(2)], [jnp.ones((2, 2, 1)) / 2], [jnp.zeros(2)], [jnp.ones(2) / 2])
    >>> seen, actions = [jnp.array([0, 1, 1])], jnp.zeros((2, 1), int)
    >>> count_window(model, seen, actions, smooth_states(model, seen, actions)).A[0].tolist()
    [[1.0, 0.0], [0.0, 2.0]]
    """
    seen = tuple(jnp.asarray(o) for o in observations)
    there = jnp.ones((len(seen[0]), len(seen)), bool) if mask is None else jnp.asarray(mask)
    moments = jax.vmap(lambda o, q, m: count_likelihoods(model, o, q, m))(
        seen, smoothed.states, there
    )
    moves = []
    for f, factors in enumerate(model.B_dependencies):
        taken = jax.nn.one_hot(jnp.asarray(actions)[:, f], model.num_controls[f])
        time, control = len(model.D) + 1, len(model.D) + 2
        after = len(model.D)
        operands: list = [taken.astype(model.D[f].dtype), [time, control]]
        if f in factors:
            operands += [smoothed.pairs[f], [time, after, f]]
        else:
            operands += [smoothed.states[f][1:], [time, after]]
        for d in factors:
            if d != f:
                operands += [smoothed.states[d][:-1], [time, d]]
        moves.append(
            jnp.einsum(*operands, [after, *factors, control], precision=jax.lax.Precision.HIGHEST)
        )
    return Counts(
        A=tuple(jnp.sum(x, axis=0) for x in moments),
        B=tuple(moves),
        D=tuple(q[0] for q in smoothed.states),
    )


def _updated(
    rate: Array | float, keep: Array | float, before: Array, event: Array, first: Array
) -> Array:
    kept = first + cast_like(keep, before) * (before - first)
    return jnp.where(before == 0, before, kept + cast_like(rate, event) * event)


def update_counts(
    counts: Counts,
    events: Counts,
    rate: Array | float = 1.0,
    keep: Array | float = 1.0,
    *,
    prior: Counts | None = None,
) -> Counts:
    """``a <- a' + keep (a - a') + rate w`` where the count is above 0, ``a' = 0`` without a prior.

    Args:
        counts: Dirichlet counts.
        events: what happened, with the same arrays; None where nothing is to be learned.
        rate: learning rate.
        keep: share of what was counted that is kept, at most 1; below 1 the past is forgotten.
        prior: counts that forgetting leads back to.

    Raises:
        ValueError: when there are events of something that has no counts or another shape, counts
            without prior, or for a concrete rate below 0 or keep that is no share.

    >>> old, new = Counts(D=(jnp.array([1.0, 0.0]),)), Counts(D=(jnp.array([0.5, 0.5]),))
    >>> update_counts(old, new).D[0].tolist()  # a count of 0 stays
    [1.5, 0.0]
    """
    check_at_least_0("rate", rate)
    check_at_least_0("keep", keep, most=1)
    found = {}
    for name, old in counts._asdict().items():
        new = getattr(events, name)
        if old is None and new is not None:
            raise ValueError(f"there are events of {name} but no counts of it")
        if old is None or new is None:
            found[name] = old
            continue
        shapes, wanted = ([list(x.shape) for x in jax.tree.leaves(xs)] for xs in (new, old))
        if shapes != wanted:
            raise ValueError(f"events of {name} must have the shapes {wanted}, got {shapes}")
        first = jax.tree.map(jnp.zeros_like, old) if prior is None else getattr(prior, name)
        if first is None:
            raise ValueError(f"there are counts of {name} but no prior of it")

        before, new, first = (floating_tree(xs, f"counts of {name}") for xs in (old, new, first))
        found[name] = jax.tree.map(partial(_updated, rate, keep), before, new, first)
    return Counts(**found)

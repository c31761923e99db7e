"""Inductive inference: planning backwards from a goal at any distance.

Reasoning runs backwards from the goals of a factor. A state has distance 0 where it is a goal, and
else one more than the nearest state that some control may lead to:

    d(s) = 0 at goals,    d(s) = 1 + min {d(s') : max_u p(s' | s, u) > threshold} elsewhere

A policy stays on the way while the distance falls with every step. Step t of a policy that begins
in the most probable state ``s*`` is charged for the probability of being off it,

    value_t = log(epsilon) q_t(d(s) > max(d(s*) - t, 0)),

so that one step of planning is enough for a goal that is many steps away.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference.pomdp.model import POMDP, contract
from vfejax.types import Array

__all__ = ["Intention", "goals_of_observations", "inductive_value", "intention"]


class Intention(NamedTuple):
    """Where an agent intends to be.

    Attributes:
        distances: fewest transitions from each state to a goal of its factor, ``[s_f]``; inf where
            there is no way.
        penalty: what a step off the way costs, in nats.
    """

    distances: tuple[Array, ...]
    penalty: Array


def _check_goals(given: Sequence[Array | None], sizes: Sequence[int], name: str) -> list:
    """One array of booleans or None for each size."""
    if len(given) != len(sizes):
        raise ValueError(f"{name} must have {len(sizes)} entries, got {len(given)}")
    found = [None if x is None else jnp.asarray(x) for x in given]
    for i, (x, size) in enumerate(zip(found, sizes, strict=True)):
        if x is not None and (x.shape != (size,) or x.dtype != bool):
            raise ValueError(
                f"{name}[{i}] must be booleans [{size}] or None, got {x.dtype} {list(x.shape)}"
            )
    return found


def _check_known(arrays: Sequence[Array], name: str) -> None:
    """Booleans cannot hold NaN, so where values are known it is refused."""
    for i, x in enumerate(arrays):
        if not isinstance(x, jax.core.Tracer) and bool(jnp.any(jnp.isnan(x))):
            raise ValueError(f"{name}[{i}] must hold no NaN, of which no goal can be told")


def _possible(model: POMDP, f: int, threshold: Array | float) -> Array:
    """Whether some controls, and some states of other factors, lead from s to s', ``[s', s]``."""
    factors, size = model.B_dependencies[f], model.num_states[f]
    own = factors.index(f) + 1 if f in factors else None
    others = tuple(axis for axis in range(1, model.B[f].ndim) if axis != own)
    reachable = jnp.any(model.B[f] > threshold, axis=others)
    return jnp.broadcast_to(reachable if reachable.ndim == 2 else reachable[:, None], (size, size))


def _distances(possible: Array, goals: Array, depth: int, dtype: jnp.dtype) -> Array:
    """Fewest transitions to a goal, up to ``depth``."""

    def unsettled(carry: tuple[Array, Array, Array]) -> Array:
        step, _, changed = carry
        return changed & (step < depth)

    def extend(carry: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        step, before, _ = carry
        onward = jnp.min(jnp.where(possible, before[:, None], jnp.inf), axis=0)
        after = jnp.minimum(before, 1 + onward)
        return step + 1, after, jnp.any(after < before)

    start = jnp.where(goals, 0.0, jnp.inf).astype(dtype)
    carry = (jnp.asarray(0), start, jnp.asarray(True))
    return jax.lax.while_loop(unsettled, extend, carry)[1]


def intention(
    model: POMDP,
    goals: Sequence[Array | None],
    *,
    threshold: Array | float = 0.1,
    depth: int | None = None,
    epsilon: Array | float = 1e-3,
) -> Intention:
    """Distances of all states from the goals, by backward reachability in each factor.

    A transition that depends on other factors counts as possible where it is in some of their
    states. The work is that of the longest way times ``sum_f s_f^2``; do it once for a model.

    Args:
        model: the model.
        goals: for each factor booleans ``[s_f]``, True at its goals, or None where any state will
            do.
        threshold: transitions that are no more probable are not relied on.
        depth: distances above it are taken for inf; None for no limit.
        epsilon: a step off the way costs ``-log(epsilon)`` nats.

    Returns:
        What the planners take as ``intention``.

    Raises:
        ValueError: when the goals do not fit the model, the depth is negative, or epsilon is none.

    Source: Friston, Salvatori, Isomura, Tschantz, Kiefer, Verbelen, Koudahl, Paul, Parr, Razi,
    Kagan, Buckley and Ramstead, Active inference and intentional behaviour (2023). There a way must
    take an exact number of steps; from the most probable state both sets of ways are the same.

    >>> onward = jnp.eye(4, k=-1).at[3, 3].set(1.0)  # a row of four places, the last one keeps
    >>> move = jnp.stack([jnp.eye(4), onward], axis=-1)
    >>> row = POMDP([jnp.eye(4)], [move], [jnp.zeros(4)], [jnp.eye(4)[0]])
    >>> intention(row, [jnp.arange(4) == 3]).distances[0].tolist()
    [3.0, 2.0, 1.0, 0.0]
    """
    given = _check_goals(goals, model.num_states, "goals")
    if depth is not None and depth < 0:
        raise ValueError(f"depth must not be negative, got {depth}")
    if not isinstance(epsilon, jax.core.Tracer) and not 0 < epsilon <= 1:
        raise ValueError(f"epsilon must be above 0 and at most 1, got {epsilon}")
    dtype = model.D[0].dtype
    distances = []
    for f, (wanted, size) in enumerate(zip(given, model.num_states, strict=True)):
        if wanted is None:
            distances.append(jnp.zeros(size, dtype))
        else:
            limit = size if depth is None else depth
            steps = _distances(_possible(model, f, threshold), wanted, limit, dtype)
            distances.append(jnp.where(jnp.any(jnp.isnan(model.B[f] - threshold)), jnp.nan, steps))
    return Intention(tuple(distances), -jnp.log(jnp.asarray(epsilon, dtype)))


def goals_of_observations(
    model: POMDP,
    wanted: Sequence[Array | None] | None = None,
    *,
    threshold: Array | float = 0.1,
) -> tuple[Array, ...]:
    """Goal states from observations: where all that is wanted can be seen.

    A state of a factor is a goal when every wanted modality that depends on the factor shows a
    wanted outcome with more than the threshold's probability, in some states of the others.

    Args:
        model: the model.
        wanted: for each modality booleans ``[o_m]``, or None where anything will do; without it,
            the most preferred outcomes by C, which are all of them where C is flat.
        threshold: probability above which an outcome counts.

    Returns:
        Booleans ``[s_f]`` for each factor, as :func:`intention` takes them.

    Raises:
        ValueError: when ``wanted`` does not fit, C changes with the step and it is not given, or an
            array that is known holds NaN, of which no goal can be told.

    >>> see = jnp.eye(3)[jnp.array([0, 0, 1])].T  # the last of three places looks different
    >>> model = POMDP([see], [jnp.eye(3)[..., None]], [jnp.array([0.0, 1, 0])], [jnp.ones(3) / 3])
    >>> goals_of_observations(model)[0].tolist()
    [False, False, True]
    """
    if wanted is None:
        for m, preferences in enumerate(model.C):
            if preferences.ndim > 1:
                raise ValueError(f"C[{m}] changes with the step; name the wanted observations")
        wanted = [c == jnp.max(c) for c in model.C]
        _check_known(model.C, "C")
    _check_known(model.A, "A")
    goals = [jnp.ones(size, bool) for size in model.num_states]
    given = _check_goals(wanted, model.num_observations, "wanted")
    for m, (outcomes, factors) in enumerate(zip(given, model.A_dependencies, strict=True)):
        if outcomes is None:
            continue
        shown = contract(model.A[m], {0: outcomes.astype(model.A[m].dtype)})
        for axis, f in enumerate(factors):
            others = tuple(a for a in range(len(factors)) if a != axis)
            goals[f] &= jnp.any(shown > threshold, axis=others)
    return tuple(goals)


def inductive_value(
    intended: Intention, beliefs: Sequence[Array], predicted: Sequence[Array], step: int | Array = 0
) -> Array:
    """``log(epsilon) sum_f q_f(d > max(d(s*) - step - 1, 0))``: 0 on the way, negative off it.

    A factor whose most probable state has no way to a goal says nothing.

    Args:
        intended: goals and their distances.
        beliefs: about the state where the policy begins, ``[s_f]`` for each factor.
        predicted: after ``step + 1`` steps, likewise.
        step: from 0.

    Returns:
        A scalar in nats.

    >>> intended = Intention((jnp.array([2.0, 1.0, 0.0]),), jnp.array(7.0))
    >>> here, there = jnp.array([0.9, 0.1, 0.0]), jnp.array([0.2, 0.8, 0.0])
    >>> round(float(inductive_value(intended, [here], [there])), 3)
    -1.4
    """
    total = jnp.zeros_like(intended.penalty)
    for distances, now, later in zip(intended.distances, beliefs, predicted, strict=True):
        here = jnp.where(jnp.any(jnp.isnan(now)), jnp.nan, distances[jnp.argmax(now)])
        behind = distances > jnp.maximum(here - jnp.asarray(step + 1, here.dtype), 0)
        # A product lets NaN of the prediction through, where a choice would not.
        astray = jnp.where(jnp.isnan(here), jnp.nan, jnp.sum(behind.astype(later.dtype) * later))
        total -= intended.penalty * jnp.where(jnp.isinf(here), 0.0, astray)
    return total

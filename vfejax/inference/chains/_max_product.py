"""The most probable path of a discrete chain: one step after the other, or as a tree.

A score is the log probability of the best path to a state, relative to that of the best state, so
that single precision tells paths apart however long they are. Of equal scores the lowest state
counts. As a tree, scores are products in the algebra of maxima and sums, and the path is a
composition of the maps from each state to the best one before it.
"""

import jax
import jax.numpy as jnp

from vfejax.inference._logarithms import safe_log
from vfejax.numerics import transpose
from vfejax.types import Array

__all__ = ["associative", "sequential"]


def _relative(score: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Scores with maximum 0, and the maximum, 0 where all are -inf."""
    highest = jax.lax.stop_gradient(jnp.max(score, axis=axes, keepdims=True))
    highest = jnp.where(highest == -jnp.inf, 0.0, highest)
    return score - highest, jnp.squeeze(highest, axes)


def sequential(initial: Array, transition: Array, log_likelihood: Array) -> tuple[Array, ...]:
    """Viterbi's recursion, O(t) steps.

    Args:
        initial: ``[k]``.
        transition: ``[k, k]`` or ``[t - 1, k, k]``.
        log_likelihood: ``[t, k]``.

    Returns:
        States ``[t]``, log probability, and which steps are impossible ``[t]``.

    >>> sequential(jnp.ones(1), jnp.eye(1), jnp.full((2, 1), -1.5))[1].tolist()
    -3.0
    """
    # A maximum over the first axis is vectorised. The best states before are looked for on the way
    # back, along the path alone.
    table = transpose(safe_log(transition))
    tables = table if table.ndim == 3 else None

    def take_in(score: Array, row: Array) -> tuple[Array, Array, Array]:
        joint = score + row
        lost = jnp.all(joint == -jnp.inf)
        return *_relative(jnp.where(lost, score, joint), (0,)), lost

    def step(score: Array, xs: tuple) -> tuple[Array, tuple[Array, ...]]:
        row, varying = xs
        score, highest, lost = take_in(score, row)
        onward = jnp.max((table if varying is None else varying) + score[:, None], axis=0)
        return onward, (score, highest, lost)

    def back(state: Array, xs: tuple) -> tuple[Array, Array]:
        score, varying = xs
        into = jax.lax.dynamic_index_in_dim(
            table if varying is None else varying, state, 1, keepdims=False
        )
        before = jnp.argmax(into + score)
        return before, before

    score, (scores, highest, lost) = jax.lax.scan(
        step, safe_log(initial), (log_likelihood[:-1], tables)
    )
    score, last_highest, last_lost = take_in(score, log_likelihood[-1])
    last = jnp.argmax(score)
    _, states = jax.lax.scan(back, last, (scores, tables), reverse=True)
    impossible = jnp.append(lost, last_lost)
    best = jnp.sum(highest) + last_highest + jnp.max(score)
    best = jnp.where(jnp.any(impossible), -jnp.inf, best)
    return jnp.append(states, last), best, impossible


def _product(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
    """``max_j (second[i, j] + first[j, l])`` for stacks, and the sum of the maxima taken out."""
    product = jnp.max(second[0][..., None] + first[0][..., None, :, :], axis=-2)
    product, highest = _relative(product, (-2, -1))
    return product, first[1] + second[1] + highest


def associative(initial: Array, transition: Array, log_likelihood: Array) -> tuple[Array, ...]:
    """The same by two associative scans, O(log t) steps; as :func:`sequential` where an observation
    is impossible. Sums of scores are rounded in another order: of paths that are equally probable
    to rounding either may come back.

    Args:
        initial, transition, log_likelihood: as :func:`sequential` takes them.

    >>> associative(jnp.ones(1), jnp.eye(1), jnp.full((2, 1), -1.5))[1].tolist()
    -3.0
    """
    t, k = log_likelihood.shape
    table = jnp.broadcast_to(safe_log(transition), (t - 1, k, k))
    first = jnp.broadcast_to(safe_log(initial)[None, :, None], (1, k, k))
    maps = jnp.concatenate([first, table]) + log_likelihood[..., None]
    scores, offset = jax.lax.associative_scan(_product, _relative(maps, (-2, -1)))
    scores = scores[..., 0]
    links = jnp.argmax(table + scores[:-1, None], axis=-1)
    last = jnp.argmax(scores[-1])
    onward = jax.lax.associative_scan(
        lambda late, early: jnp.take_along_axis(early, late, axis=-1), links, reverse=True
    )
    found = (
        jnp.append(onward[:, last], last),
        offset[-1] + jnp.max(scores[-1]),
        jnp.zeros_like(log_likelihood[:, 0], bool),
    )
    return jax.lax.cond(
        jnp.all(scores[-1] == -jnp.inf),
        lambda: sequential(initial, transition, log_likelihood),
        lambda: found,
    )

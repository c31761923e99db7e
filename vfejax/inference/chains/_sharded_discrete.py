"""Discrete chains whose time the devices of a mesh share, inside ``shard_map``.

The element of a shard is ``L[a, j]``, the log probability of its observations and of its last state
a, given the last state j before it. Each device filters, smooths or decodes its shard by the
algorithm of one device: what is known from before it is added to its first row of log likelihoods,
and what is known from behind it to its last one.
"""

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference._logarithms import log_matvec, log_sum, safe_log
from vfejax.inference.chains._discrete import DiscretePasses
from vfejax.inference.chains._shard_elements import Shard, element
from vfejax.inference.chains._shards import Way, starts
from vfejax.numerics import transpose
from vfejax.types import Array

__all__ = ["decode_shard", "filter_shard", "smooth_shard"]


class _Known(NamedTuple):
    """What a device knows of its shard's surroundings.

    Attributes:
        lost: the observations that no possible state explains, ``[l]``.
        rows: log likelihoods without these, less ``heights``, ``[l, k]``.
        heights: the largest of each row, ``[l]``.
        before: log probabilities of the first state given all before the shard, ``[k]``.
        behind: that of what is behind the shard given its last state, ``[k]``.
    """

    lost: Array
    rows: Array
    heights: Array
    before: Array
    behind: Array | None


def _normalised(x: Array) -> Array:
    total = log_sum(x, axis=0)
    return x - jnp.where(total == -jnp.inf, 0.0, total)


def _onward(belief: Array, shard: Shard) -> Array:
    """Log probabilities of the last state given those of the last one before the shard."""
    table = safe_log(shard.links)

    @jax.checkpoint
    def step(belief: Array, xs: tuple) -> tuple[Array, None]:
        row, link = xs
        return _normalised(log_matvec(table if link is None else link, belief) + row), None

    first = _normalised(log_matvec(safe_log(shard.into), belief) + shard.rows[0])
    return jax.lax.scan(step, first, (shard.rows[1:], table if table.ndim == 3 else None))[0]


def _backward(message: Array, shard: Shard) -> Array:
    """Log likelihood of a shard and all behind it given the last state before it."""
    table = transpose(safe_log(shard.links))

    @jax.checkpoint
    def step(message: Array, xs: tuple) -> tuple[Array, None]:
        row, link = xs
        return _normalised(log_matvec(table if link is None else link, message + row)), None

    xs = (shard.rows[1:], table if table.ndim == 3 else None)
    first, _ = jax.lax.scan(step, message, xs, reverse=True)
    return _normalised(log_matvec(transpose(safe_log(shard.into)), first + shard.rows[0]))


def _through(element: Array, belief: Array) -> Array:
    return _normalised(log_matvec(element, belief))


def _back(element: Array, message: Array) -> Array:
    return _through(transpose(element), message)


def _push(apply: Any, element: Array, before: Array, _: Array, tangent: Array) -> Array:
    return jax.jvp(partial(apply, element), (before,), (tangent,))[1]


def _element_itself(_belief: Array, _shard: Shard, element: Array) -> Array:
    return element


FORWARD = Way(_through, _onward, _element_itself, partial(_push, _through))
BACKWARD = Way(_back, _backward, _element_itself, partial(_push, _back), True)


def _lost_in_turn(shard: Shard, axis_name: str) -> Array:
    """Which observations are impossible, ``[l]``: one shard after the other."""
    here, size = jax.lax.axis_index(axis_name), jax.lax.axis_size(axis_name)
    table, into, rows = shard.links != 0, shard.into != 0, shard.rows != -jnp.inf

    def take_in(support: Array, row: Array) -> tuple[Array, Array]:
        joint = support & row
        lost = ~jnp.any(joint)
        return jnp.where(lost, support, joint), lost

    def step(support: Array, xs: tuple) -> tuple[Array, Array]:
        row, link = xs
        return take_in(jnp.any((table if link is None else link) & support[None], axis=1), row)

    def sweep(support: Array) -> tuple[Array, Array]:
        support, first = take_in(jnp.any(into & support[None], axis=1), rows[0])
        xs = (rows[1:], table if table.ndim == 3 else None)
        support, lost = jax.lax.scan(step, support, xs)
        return support, jnp.concatenate([first[None], lost])

    def turn(_: Any, support: Array) -> Array:
        route = [(i, (i + 1) % size) for i in range(size)]
        came = jax.lax.ppermute(sweep(support)[0], axis_name, route)
        return jnp.where(here == 0, jnp.ones_like(came), came)

    anything = jnp.ones_like(shard.rows[0], bool)
    return sweep(jax.lax.fori_loop(1, size, turn, anything))[1]


def _first(shard: Shard) -> Array:
    """Belief before the first shard, whose link forgets it."""
    return jnp.full_like(shard.rows[0], -math.log(shard.rows.shape[1]))


def _lost(shard: Shard, axis_name: str) -> Array:
    """Which observations are impossible, ``[l]``. Without a log likelihood of -inf there are none,
    and mostly there are none with some.
    """
    shard = jax.lax.stop_gradient(shard)
    none = jnp.zeros_like(shard.rows[:, 0], bool)

    def anywhere(x: Array) -> Array:
        return jax.lax.pmax(jnp.any(x).astype(jnp.int32), axis_name) > 0

    def look() -> Array:
        own = element(shard)
        (belief,) = starts((FORWARD,), lambda _: own, axis_name, (_first(shard),), shard)
        found = anywhere(jnp.all(log_matvec(own, belief) == -jnp.inf))
        return jax.lax.cond(found, lambda: _lost_in_turn(shard, axis_name), lambda: none)

    return jax.lax.cond(anywhere(shard.rows == -jnp.inf), look, lambda: none)


def _without(lost: Array, rows: Array) -> tuple[Array, Array]:
    """Rows without those that are lost, relative to the largest entry of each, and that entry: what
    is common to all states must not cost the digits of what they differ by.
    """
    rows = jnp.where(jnp.broadcast_to(lost[:, None], rows.shape), 0.0, rows)
    heights = jax.lax.stop_gradient(jnp.max(rows, axis=1))
    return rows - heights[:, None], heights


def _known(shard: Shard, axis_name: str, ways: tuple[Way, ...]) -> _Known:
    lost = _lost(shard, axis_name)
    rows, heights = _without(lost, shard.rows)
    shard = shard._replace(rows=rows)
    firsts = (_first(shard),) * len(ways)
    belief, *behind = starts(ways, element, axis_name, firsts, shard)
    before = log_matvec(safe_log(shard.into), belief)
    return _Known(lost, rows, heights, before, behind[0] if behind else None)


def _filtered(shard: Shard, known: _Known, passes: DiscretePasses) -> tuple[Array, ...]:
    # Weights of 1 for all states: their probabilities are part of the first row, as logarithms.
    ones, rows = jnp.ones_like(known.before), known.rows.at[0].add(known.before)
    predicted, after, steps, _ = passes.filter(ones, shard.links, rows)
    steps = jnp.where(known.lost, -jnp.inf, steps + known.heights)
    return predicted.at[0].set(jnp.exp(known.before)), after, steps, known.lost


def filter_shard(shard: Shard, axis_name: str, passes: DiscretePasses) -> tuple[Array, ...]:
    """What ``DiscretePasses.filter`` returns, of a shard.

    Args:
        shard: of this device.
        axis_name: axis of the mesh along the chain.
        passes: the algorithm within a shard.

    >>> from vfejax.inference.chains._discrete import SEQUENTIAL
    >>> run = lambda x: filter_shard(Shard(jnp.eye(1), jnp.eye(1), x), "time", SEQUENTIAL)[2]
    >>> jax.jit(jax.vmap(run, axis_name="time"))(jnp.array([[[-1.0]], [[-2.0]]])).tolist()
    [[-1.0], [-2.0]]
    """
    return _filtered(shard, _known(shard, axis_name, (FORWARD,)), passes)


def smooth_shard(shard: Shard, axis_name: str, passes: DiscretePasses) -> tuple[Array, ...]:
    """What ``DiscretePasses.smooth`` returns, of a shard.

    Args:
        shard, axis_name, passes: as :func:`filter_shard` takes them.

    >>> from vfejax.inference.chains._discrete import SEQUENTIAL
    >>> run = lambda x: smooth_shard(Shard(jnp.eye(1), jnp.eye(1), x), "time", SEQUENTIAL)[4]
    >>> jax.jit(jax.vmap(run, axis_name="time"))(jnp.array([[[-1.0]], [[-2.0]]])).tolist()
    [[[1.0]], [[1.0]]]
    """
    known = _known(shard, axis_name, (FORWARD, BACKWARD))
    rows = known.rows.at[0].add(known.before).at[-1].add(known.behind)
    smoothed = passes.smooth(jnp.ones_like(known.before), shard.links, rows)[-1]
    return *_filtered(shard, known, passes), smoothed


def _best_into(table: Array, scores: Array) -> Array:
    """``max_b (table[a, b] + scores[b, j])``, relative to the best of all."""
    best = jnp.max(table[:, :, None] + scores[None], axis=1)
    highest = jnp.max(best)
    return best - jnp.where(highest == -jnp.inf, 0.0, highest)


def _best_element(shard: Shard) -> Array:
    """Score of the best path from each last state before the shard to each last one in it."""
    table = safe_log(shard.links)

    def step(scores: Array, xs: tuple) -> tuple[Array, None]:
        row, link = xs
        return _best_into(table if link is None else link, scores) + row[:, None], None

    xs = (shard.rows[1:], table if table.ndim == 3 else None)
    return jax.lax.scan(step, safe_log(shard.into) + shard.rows[0][:, None], xs)[0]


def _last_states(elements: Array) -> Array:
    """Last states of all shards on the best path, ``[p]``."""

    def onward(score: Array, element: Array) -> tuple[Array, Array]:
        behind = jnp.max(element + score[None], axis=1)
        return behind - jnp.max(behind), score

    def back(state: Array, xs: tuple[Array, Array]) -> tuple[Array, Array]:
        element, score = xs
        return jnp.argmax(element[state] + score), state

    end, scores = jax.lax.scan(onward, jnp.zeros_like(elements[0, 0]), elements)
    return jax.lax.scan(back, jnp.argmax(end), (elements, scores), reverse=True)[1]


def decode_shard(shard: Shard, axis_name: str, passes: DiscretePasses) -> tuple[Array, ...]:
    """What ``DiscretePasses.decode`` returns, of a shard; the log probability of the whole path.

    The devices agree on the last states of their shards. Each then looks for the best path from the
    last one before its shard to its own.

    Args:
        shard, axis_name, passes: as :func:`filter_shard` takes them.

    >>> from vfejax.inference.chains._discrete import SEQUENTIAL
    >>> run = lambda x: decode_shard(Shard(jnp.eye(1), jnp.eye(1), x), "time", SEQUENTIAL)[1]
    >>> jax.jit(jax.vmap(run, axis_name="time"))(jnp.array([[[-1.0]], [[-2.0]]])).tolist()
    [-3.0, -3.0]
    """
    here = jax.lax.axis_index(axis_name)
    lost = _lost(shard, axis_name)
    rows, heights = _without(lost, shard.rows)
    shard = shard._replace(rows=rows)
    own = _best_element(jax.lax.stop_gradient(shard))
    states = _last_states(jax.lax.all_gather(own, axis_name))
    # Every state before the first shard leads to the same.
    start = safe_log(shard.into)[:, states[jnp.maximum(here - 1, 0)]]
    ends = jnp.arange(start.shape[0]) == states[here]
    rows = shard.rows.at[0].add(start)
    rows = rows.at[-1].set(jnp.where(ends, rows[-1], -jnp.inf))
    path, best, _ = passes.decode(jnp.ones_like(start), shard.links, rows)
    best = best + jnp.sum(heights)
    # The path may pass by what is NaN.
    best = jax.lax.psum(jnp.where(jnp.any(jnp.isnan(own)), jnp.nan, best), axis_name)
    anything = jax.lax.psum(jnp.sum(lost), axis_name) > 0
    return path, jnp.where(anything, -jnp.inf, best), lost

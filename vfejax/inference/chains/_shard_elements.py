"""The map from any belief before a shard of a discrete chain to the belief behind it.

It is found on probabilities, in one column for each state before the shard. Zeros that come of
underflow are kept apart from states that cannot be reached by a floor, which no number that counts
may come near. Otherwise everything is computed from logarithms.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference._logarithms import log_matvec, safe_log
from vfejax.inference.chains._underflow import negligible
from vfejax.numerics import matmul
from vfejax.types import Array

__all__ = ["Shard", "element"]


class Shard(NamedTuple):
    """A stretch of a chain. The link into the first one of all has the initial probabilities in
    every column.
    """

    links: Array  # [k, k], or [l - 1, k, k] between the sites
    into: Array  # [k, k], to the first site
    rows: Array  # log likelihoods [l, k]


def _relative(logs: Array) -> Array:
    """Logarithms relative to the largest one: what is common to all must not cost their digits."""
    highest = jax.lax.stop_gradient(jnp.max(logs))
    return logs - jnp.where(highest == -jnp.inf, 0.0, highest)


def _columns(shard: Shard) -> tuple[Array, Array]:
    """The element, and whether underflow did not matter."""
    links, into, rows = shard
    floor, enough = negligible(rows.dtype, rows.shape[1])
    highest = jnp.max(rows, axis=1)
    highest = jnp.where(highest == -jnp.inf, 0.0, highest)
    weights = jnp.maximum(jnp.exp(rows - highest[:, None]), floor)
    weights = jnp.where(rows == -jnp.inf, 0.0, weights)

    def lowest(x: Array) -> Array:
        return jnp.min(jnp.where(x == 0, 1.0, x), initial=1.0)

    def step(carry: tuple[Array, ...], xs: tuple) -> tuple[tuple, None]:
        moved, logs, worst = carry
        row, link = xs
        joint = row[:, None] * moved
        total = jnp.sum(joint, axis=0, keepdims=True)
        after = joint / jnp.where(total <= enough, 1.0, total)
        possible = (row != 0)[:, None] & (moved != 0)
        after = jnp.where(possible, jnp.maximum(after, floor), 0.0)
        moved = matmul(links if link is None else link, after)
        worst = jnp.minimum(worst, jnp.minimum(lowest(moved), lowest(total)))
        return (moved, _relative(logs + safe_log(total)), worst), None

    start = into, jnp.zeros_like(rows[:1]), lowest(into) * jnp.ones_like(rows[0, 0])
    xs = (weights[:-1], links if links.ndim == 3 else None)
    (moved, logs, worst), _ = jax.lax.scan(step, start, xs)
    safe = (worst > enough) & (lowest(links) >= float(jnp.finfo(rows.dtype).eps))
    return safe_log(moved) + logs + rows[-1][:, None], safe


def _log_columns(shard: Shard) -> Array:
    table = safe_log(shard.links)

    def step(columns: Array, xs: tuple) -> tuple[Array, None]:
        row, link = xs
        moved = jax.vmap(log_matvec, (None, 1), 1)(table if link is None else link, columns)
        return _relative(moved + row[:, None]), None

    first = safe_log(shard.into) + shard.rows[0][:, None]
    return jax.lax.scan(step, first, (shard.rows[1:], table if table.ndim == 3 else None))[0]


def element(shard: Shard) -> Array:
    """Log probability ``L[a, j]`` of the observations of a shard and of its last state a, given the
    last state j before it, up to a number common to all.

    Args:
        shard: a stretch of a chain.

    >>> half = jnp.full((2, 2), 0.5)
    >>> print(jnp.exp(element(Shard(half, half, jnp.zeros((3, 2))))))
    [[0.5 0.5]
     [0.5 0.5]]
    """
    columns, safe = _columns(shard)
    return jax.lax.cond(safe, lambda: columns, lambda: _log_columns(shard))

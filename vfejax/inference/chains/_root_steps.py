"""The steps of filters and smoothers on roots of covariances, which all their algorithms share.

A mean is the last of the columns ``[n, q]``. Those before it are what the mean depends on, such as
a state that is not known yet.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import matmul, transpose, triangular_solve, triangularize
from vfejax.types import Array

__all__ = [
    "SEQUENTIAL",
    "BackwardChain",
    "RootPasses",
    "Sites",
    "filtered_sites",
    "in_last_column",
    "onward",
    "over_sites",
    "pull",
    "smoothed_links",
]

Belief = tuple[Array, Array]


class Sites(NamedTuple):
    """Observations of a chain with the transitions behind them, time first; 1 in its place where
    nothing changes.
    """

    transition: Array  # [t or 1, n, n]
    noise: Array  # [t or 1, n, n], a root
    drift: Array  # [t or 1, n]
    emission: Array  # [t or 1, o, n], whitened
    values: Array  # [t, o], whitened


class BackwardChain(NamedTuple):
    """The posterior as a chain that runs backwards: ``x_i = gain_i x_{i+1} + offset_i + chol_i
    N(0, 1)``, with ``gain [t, n, n]`` (the last is 0), ``offset [t, n]``, ``chol [t, n, n]``.
    """

    gain: Array
    offset: Array
    chol: Array


class RootPasses(NamedTuple):
    """An algorithm on roots of covariances as two pure functions.

    Attributes:
        filter: ``filter((mean, root) of the first state, sites) -> (means [t, n], roots [t, n, n],
            log densities [t])``, the latter but for constants of the whitening.
        smooth: ``smooth(backward chain) -> (means [t, n], roots [t, n, n])``.
    """

    filter: Callable[..., tuple[Array, ...]]
    smooth: Callable[..., tuple[Array, ...]]


def in_last_column(vector: Array, like: Array) -> Array:
    """``vector [m]`` behind columns of zeros, as many as ``like [n, q]`` has.

    >>> in_last_column(jnp.ones(1), jnp.zeros((2, 3))).tolist()
    [[0.0, 0.0, 1.0]]
    """
    return jnp.pad(vector[:, None], ((0, 0), (like.shape[1] - 1, 0)))


def _update(mean: Array, root: Array, emission: Array, value: Array) -> tuple[Array, ...]:
    """Condition on all whitened entries: ``[[1, C S], [0, S]]`` triangularised. Its first block is
    a root of the covariance of the observation, the others are the gain and the new root.
    """
    o, n = emission.shape
    seen = transpose(matmul(emission, root))
    top = jnp.eye(o, o + n, dtype=root.dtype)
    factor = triangularize(jnp.concatenate([top, jnp.concatenate([seen, transpose(root)], 1)]))
    spread = factor[:o, :o]
    error = triangular_solve(spread, in_last_column(value, mean) - matmul(emission, mean))
    return mean + matmul(factor[o:, :o], error), factor[o:, o:], error, jnp.diagonal(spread)


def onward(belief: Belief, site: Sites) -> tuple[Belief, tuple[Array, ...]]:
    """One observation, then one transition.

    Args:
        belief: columns ``[n, q]`` and root ``[n, n]`` before the observation.
        site: without time.

    Returns:
        The belief about the next state; columns, root, whitened errors ``[o, q]`` and the diagonal
        of their root, given the observation.

    >>> one = jnp.ones((1, 1))
    >>> site = Sites(one, 0 * one, jnp.zeros(1), one, jnp.array([2.0]))
    >>> round(onward((0 * one, one), site)[0][0].item(), 3)
    1.0
    """
    mean, root, error, spread = _update(*belief, site.emission, site.values)
    rows = [transpose(matmul(site.transition, root)), transpose(site.noise)]
    moved = matmul(site.transition, mean) + in_last_column(site.drift, mean)
    return (moved, triangularize(jnp.concatenate(rows))), (mean, root, error, spread)


def over_sites(step: Callable, carry: Any, sites: Sites) -> tuple[Any, Any]:
    """Scan ``step(carry, site)``.

    Args:
        step: returns the carry and what is stacked.
        carry: the first one.
        sites: the chain.

    >>> one = jnp.ones((1, 1, 1))
    >>> sites = Sites(one, one, one[0], one, jnp.array([[2.0], [3.0]]))
    >>> over_sites(lambda total, site: (total + site.values[0], None), 0.0, sites)[0].item()
    5.0
    """
    model = sites.transition, sites.noise, sites.drift, sites.emission
    varying = [x if x.shape[0] > 1 else None for x in model]

    def run(carry: Any, xs: tuple[list, Array]) -> tuple[Any, Any]:
        changing, value = xs
        now = [x[0] if y is None else y for x, y in zip(model, changing, strict=True)]
        return step(carry, Sites(now[0], now[1], now[2], now[3], value))

    return jax.lax.scan(run, carry, (varying, sites.values))


def filtered_sites(first: Belief, sites: Sites) -> tuple[Array, ...]:
    """``RootPasses.filter``, one step after the other.

    Args:
        first: mean ``[n]`` and root ``[n, n]`` of the first state before its observation.
        sites: the chain.

    >>> one = jnp.ones((1, 1, 1))
    >>> sites = Sites(one, one, one[0], one, jnp.array([[2.0]]))
    >>> round(filtered_sites((jnp.zeros(1), one[0]), sites)[0].item(), 3)
    1.0
    """
    mean, root = first
    _, (means, roots, errors, spreads) = over_sites(onward, (mean[:, None], root), sites)
    scores = -jnp.sum(jnp.log(spreads), axis=-1) - 0.5 * jnp.sum(errors**2, axis=(-2, -1))
    return means[..., 0], roots, scores


def pull(belief: Belief, link: BackwardChain) -> Belief:
    """Columns and root of a state given those of the one after it.

    Args:
        belief: columns ``[n, q]`` and root ``[n, n]``.
        link: without time.

    >>> one = jnp.ones((1, 1))
    >>> round(pull((one, 0 * one), BackwardChain(0.5 * one, one[0], one))[0].item(), 3)
    1.5
    """
    mean, root = belief
    rows = jnp.concatenate([transpose(matmul(link.gain, root)), transpose(link.chol)])
    return matmul(link.gain, mean) + in_last_column(link.offset, mean), triangularize(rows)


def smoothed_links(chain: BackwardChain, last: Belief | None = None) -> tuple[Array, ...]:
    """``RootPasses.smooth``, one step after the other.

    Args:
        chain: the backward chain.
        last: mean ``[n]`` and root of the state behind the chain; None where there is none.

    >>> one = jnp.ones((1, 1, 1))
    >>> round(smoothed_links(BackwardChain(0 * one, one[0], one))[0].item(), 3)
    1.0
    """

    def step(belief: Belief, link: BackwardChain) -> tuple[Belief, Belief]:
        now = pull(belief, link)
        return now, now

    if last is None:
        last = jnp.zeros_like(chain.offset[-1]), jnp.zeros_like(chain.chol[-1])
    _, (mean, root) = jax.lax.scan(step, (last[0][:, None], last[1]), chain, reverse=True)
    return mean[..., 0], root


SEQUENTIAL = RootPasses(filtered_sites, smoothed_links)

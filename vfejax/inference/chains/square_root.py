"""The Kalman filter and smoother on square roots of covariances: accurate in float32.

A covariance ``S S^T`` is never formed. Its roots keep the digits that the product would lose: a
ratio of variances of 1e10 is one of 1e5 here. Every step is one triangularisation by Householder's
reflections. Roots are positive semidefinite whatever the rounding.

Source: Kailath, Sayed and Hassibi, Linear Estimation (2000), chapter 12; one array holds the update
and the smoother's gain.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference._chain import Chain, checked, prepare
from vfejax.inference.chains._root_steps import SEQUENTIAL, BackwardChain, RootPasses, Sites
from vfejax.inference.chains.linear_gaussian import LinearGaussian
from vfejax.numerics import matmul, matvec, transpose, triangularize
from vfejax.types import Array

__all__ = [
    "BackwardChain",
    "SquareRootFiltered",
    "SquareRootSmoothed",
    "backward_chain",
    "semidefinite_root",
    "square_root_filter",
    "square_root_smoother",
]


class SquareRootFiltered(NamedTuple):
    """Means ``[t, n]`` and lower triangular roots ``[t, n, n]`` of the covariances given the
    observations up to each, the log evidence in nats, and that of each step ``[t]``.
    """

    mean: Array
    chol: Array
    log_evidence: Array
    step_log_evidence: Array


class SquareRootSmoothed(NamedTuple):
    """Means ``[t, n]`` and roots ``[t, n, n]`` given all observations, the log evidence in nats,
    and the filter's result.
    """

    mean: Array
    chol: Array
    log_evidence: Array
    filtered: SquareRootFiltered


def semidefinite_root(cov: Array) -> Array:
    """A lower triangular root of positive semidefinite ``cov [k, k]``; the column of a pivot that
    vanishes to rounding is 0, and one that is negative beyond it gives NaN.

    >>> semidefinite_root(jnp.array([[4.0, 0.0], [0.0, 0.0]])).tolist()
    [[2.0, 0.0], [0.0, 0.0]]
    """
    k = cov.shape[-1]
    limits = 4.0 * k * float(jnp.finfo(cov.dtype).eps) * jnp.diagonal(cov)

    def step(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, root = carry
        pivot = rest[j, j]
        vanishes = jnp.abs(pivot) <= limits[j]
        scale = jnp.where(vanishes, 0.0, 1.0 / jnp.sqrt(jnp.where(vanishes, 1.0, pivot)))
        column = jnp.where(jnp.arange(k) >= j, rest[:, j] * scale, 0.0)
        return rest - column[:, None] * column[None], root.at[:, j].set(column)

    return jax.lax.fori_loop(0, k, step, (cov, jnp.zeros_like(cov)))[1]


def _roots(noise: Array) -> Array:
    """``[n, n, t or 1]`` to roots ``[t or 1, n, n]``."""
    return jax.vmap(semidefinite_root)(jnp.moveaxis(noise, -1, 0))


def _filter(chain: Chain, passes: RootPasses) -> SquareRootFiltered:
    first = chain.initial_mean, semidefinite_root(chain.initial_cov)
    transition, drift, emission = (
        jnp.moveaxis(x, -1, 0) for x in (chain.transition, chain.drift, chain.emission)
    )
    sites = Sites(transition, _roots(chain.noise), drift, emission, chain.values.T)
    mean, root, scores = passes.filter(first, sites)
    steps = scores + chain.constant
    return SquareRootFiltered(mean, root, jnp.sum(steps), steps)


def square_root_filter(
    model: LinearGaussian,
    observations: Array,
    mask: Array | None = None,
    controls: Array | None = None,
    *,
    passes: RootPasses = SEQUENTIAL,
) -> SquareRootFiltered:
    """The Kalman filter on roots of covariances. O(t (n + o)^3).

    Args:
        model, observations, mask, controls: as
            :func:`vfejax.inference.chains.linear_gaussian.kalman_filter` takes them.
        passes: the algorithm; the default takes one step after the other.

    Returns:
        Means, roots and log evidence.

    Raises:
        ValueError: naming the argument whose shape or dtype does not fit.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> print(square_root_filter(model, jnp.array([[2.0], [0.0]])).mean[:, 0].round(3))
    [1.  0.4]
    """
    model, y, mask, controls = checked(model, observations, mask, controls)
    return _filter(prepare(model, y, mask, controls), passes)


def _divide(rows: Array, factor: Array) -> Array:
    """``rows factor^-`` for a lower triangular factor; 0 in the columns of vanishing pivots."""
    k = factor.shape[-1]
    limit = 4.0 * k * float(jnp.finfo(factor.dtype).eps) * jnp.max(jnp.abs(factor), initial=0.0)

    def step(i: Array, out: Array) -> Array:
        j = k - 1 - i
        pivot = factor[j, j]
        vanishes = jnp.abs(pivot) <= limit
        rest = rows[:, j] - matvec(out, factor[:, j])
        column = jnp.where(vanishes, 0.0, rest / jnp.where(vanishes, 1.0, pivot))
        return out.at[:, j].set(column)

    return jax.lax.fori_loop(0, k, step, jnp.zeros_like(rows))


def backward_chain(
    model: LinearGaussian,
    observations: Array,
    mask: Array | None = None,
    controls: Array | None = None,
    *,
    passes: RootPasses = SEQUENTIAL,
) -> tuple[BackwardChain, SquareRootFiltered]:
    """The posterior of all states as a Markov chain from the last state to the first.

    Args:
        model, observations, mask, controls: as
            :func:`vfejax.inference.chains.linear_gaussian.kalman_filter` takes them.
        passes: the algorithm of the filter; the default takes one step after the other.

    Returns:
        The chain, and the filter's result.

    Raises:
        ValueError: naming the argument whose shape or dtype does not fit.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> print(backward_chain(model, jnp.array([[2.0], [0.0]]))[0].gain[:, 0, 0].round(3))
    [0.333 0.   ]
    """
    model, y, mask, controls = checked(model, observations, mask, controls)
    chain = prepare(model, y, mask, controls)
    filtered = _filter(chain, passes)
    t, n = filtered.mean.shape

    def back(mean: Array, root: Array, push: Array, noise: Array, drift: Array) -> tuple:
        above = jnp.concatenate([transpose(matmul(push, root)), transpose(root)], axis=1)
        below = jnp.concatenate([transpose(noise), jnp.zeros((n, n), root.dtype)], axis=1)
        factor = triangularize(jnp.concatenate([above, below]))
        gain = _divide(factor[n:, :n], factor[:n, :n])
        return gain, mean - matvec(gain, matvec(push, mean) + drift), factor[n:, n:]

    moves = (jnp.moveaxis(chain.transition, -1, 0), _roots(chain.noise), chain.drift.T)
    steps = [jnp.broadcast_to(x, (t, *x.shape[1:])) for x in moves]
    gain, offset, root = jax.vmap(back)(filtered.mean, filtered.chol, *steps)
    return BackwardChain(
        gain.at[-1].set(0.0),
        offset.at[-1].set(filtered.mean[-1]),
        root.at[-1].set(filtered.chol[-1]),
    ), filtered


def square_root_smoother(
    model: LinearGaussian,
    observations: Array,
    mask: Array | None = None,
    controls: Array | None = None,
    *,
    passes: RootPasses = SEQUENTIAL,
) -> SquareRootSmoothed:
    """The smoother on roots of covariances. O(t n^3).

    Args:
        model, observations, mask, controls: as
            :func:`vfejax.inference.chains.linear_gaussian.kalman_filter` takes them.
        passes: the algorithm; the default takes one step after the other.

    Returns:
        Means, roots, log evidence and the filter's result.

    Raises:
        ValueError: naming the argument whose shape or dtype does not fit.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> print(square_root_smoother(model, jnp.array([[2.0], [0.0]])).mean[:, 0].round(3))
    [0.8 0.4]
    """
    back, filtered = backward_chain(model, observations, mask, controls, passes=passes)
    mean, root = passes.smooth(back)
    return SquareRootSmoothed(mean, root, filtered.log_evidence, filtered)

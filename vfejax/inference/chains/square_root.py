"""The Kalman filter and smoother on square roots of covariances: accurate in float32.

A covariance ``S S^T`` is never formed. Its roots keep the digits that the product would lose: a
ratio of variances of 1e10 is one of 1e5 here. Every step is one triangularisation by Householder's
reflections. Roots are positive semidefinite whatever the rounding.

Source: Kailath, Sayed and Hassibi, Linear Estimation (2000), chapter 12; one array holds the update
and the smoother's gain.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference.chains._chain import Chain, checked, prepare
from vfejax.inference.chains.linear_gaussian import LinearGaussian
from vfejax.numerics import matmul, matvec, transpose, triangular_solve, triangularize
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


class BackwardChain(NamedTuple):
    """The posterior as a chain that runs backwards: ``x_i = gain_i x_{i+1} + offset_i + chol_i
    N(0, 1)``, with ``gain [t, n, n]`` (the last is 0), ``offset [t, n]``, ``chol [t, n, n]``.
    """

    gain: Array
    offset: Array
    chol: Array


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


def _update(mean: Array, root: Array, emission: Array, value: Array) -> tuple[Array, ...]:
    """Condition on all whitened entries: ``[[1, C S], [0, S]]`` triangularised. Its first block is
    a root of the covariance of the observation, the others are the gain and the new root.
    """
    o, n = emission.shape
    seen = transpose(matmul(emission, root))
    top = jnp.eye(o, o + n, dtype=root.dtype)
    factor = triangularize(jnp.concatenate([top, jnp.concatenate([seen, transpose(root)], 1)]))
    spread = factor[:o, :o]
    error = triangular_solve(spread, (value - matvec(emission, mean))[:, None])[:, 0]
    score = -jnp.sum(jnp.log(jnp.diagonal(spread))) - 0.5 * jnp.sum(error**2)
    return mean + matvec(factor[o:, :o], error), factor[o:, o:], score


def _at(x: Array) -> tuple[Any, Any]:
    """Time first: what changes, or None, and what does not."""
    x = jnp.moveaxis(x, -1, 0)
    return (x, x[0]) if x.shape[0] > 1 else (None, x[0])


def _present(varying: Any, constant: Any) -> Any:
    return constant if varying is None else varying


def _filter(chain: Chain) -> SquareRootFiltered:
    roots = jnp.moveaxis(_roots(chain.noise), 0, -1)
    given = [_at(x) for x in (chain.transition, roots, chain.drift, chain.emission)]
    varying, constant = ([pair[i] for pair in given] for i in range(2))

    def step(belief: tuple[Array, Array], xs: tuple) -> tuple[tuple, tuple]:
        changing, value = xs
        push, noise, drift, emission = map(_present, changing, constant)
        mean, root, score = _update(*belief, emission, value)
        rows = jnp.concatenate([transpose(matmul(push, root)), transpose(noise)])
        return (matvec(push, mean) + drift, triangularize(rows)), (mean, root, score)

    first = chain.initial_mean, semidefinite_root(chain.initial_cov)
    _, (mean, root, scores) = jax.lax.scan(step, first, (varying, chain.values.T))
    steps = scores + chain.constant
    return SquareRootFiltered(mean, root, jnp.sum(steps), steps)


def square_root_filter(
    model: LinearGaussian,
    observations: Array,
    mask: Array | None = None,
    controls: Array | None = None,
) -> SquareRootFiltered:
    """The Kalman filter on roots of covariances. O(t (n + o)^3).

    Args:
        model, observations, mask, controls: as
            :func:`vfejax.inference.chains.linear_gaussian.kalman_filter` takes them.

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
    return _filter(prepare(model, y, mask, controls))


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
) -> tuple[BackwardChain, SquareRootFiltered]:
    """The posterior of all states as a Markov chain from the last state to the first.

    Args:
        model, observations, mask, controls: as
            :func:`vfejax.inference.chains.linear_gaussian.kalman_filter` takes them.

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
    filtered = _filter(chain)
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
) -> SquareRootSmoothed:
    """The smoother on roots of covariances. O(t n^3).

    Args:
        model, observations, mask, controls: as
            :func:`vfejax.inference.chains.linear_gaussian.kalman_filter` takes them.

    Returns:
        Means, roots, log evidence and the filter's result.

    Raises:
        ValueError: naming the argument whose shape or dtype does not fit.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> print(square_root_smoother(model, jnp.array([[2.0], [0.0]])).mean[:, 0].round(3))
    [0.8 0.4]
    """
    back, filtered = backward_chain(model, observations, mask, controls)

    def step(belief: tuple[Array, Array], link: BackwardChain) -> tuple[tuple, tuple]:
        mean, root = belief
        rows = jnp.concatenate([transpose(matmul(link.gain, root)), transpose(link.chol)])
        now = matvec(link.gain, mean) + link.offset, triangularize(rows)
        return now, now

    last = jnp.zeros_like(back.offset[-1]), jnp.zeros_like(back.chol[-1])
    _, (mean, root) = jax.lax.scan(step, last, back, reverse=True)
    return SquareRootSmoothed(mean, root, filtered.log_evidence, filtered)

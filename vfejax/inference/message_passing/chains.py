"""Markov chains as single nodes: a sequence is one event, and its belief is exact.

The natural parameters of a chain are evidence at every step and couplings of neighbours; the log
partition function is the forward sweep of the sum-product algorithm, and the expected statistics
are forward-backward (states) or Kalman filter and smoother in information form (vectors). Couplings
are the same at every step.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vfejax.beliefs.exponential_families import Family, Natural, Statistics
from vfejax.beliefs.families import DIRICHLET, GAMMA, MULTIVARIATE_GAUSSIAN, WISHART
from vfejax.beliefs.supports import ONE_HOT
from vfejax.inference.message_passing.graph import Node, Parent
from vfejax.numerics import (
    matmul,
    matvec,
    symmetrize,
    transpose,
)
from vfejax.types import Array

__all__ = ["CATEGORICAL_CHAIN", "GAUSSIAN_CHAIN", "categorical_chain", "gaussian_chain"]

LOG_2_PI = math.log(2 * math.pi)
Message = tuple[Natural, Array]


def _lifted(function: Callable, rank: int) -> Callable:
    """A function of the natural parameters of one chain, over leading axes too."""

    def over_plates(natural: Natural) -> tuple[Statistics, Array]:
        return (jax.vmap(over_plates) if natural[0].ndim > rank else function)(natural)

    return over_plates


def _forward(natural: Natural) -> Array:
    """``log sum over x_0 .. x_{t-1} of exp(<eta, t>)``, for every state of x_t, ``[t, k]``."""
    evidence, coupling = natural

    def step(before: Array, here: Array) -> tuple[Array, Array]:
        after = here + jax.nn.logsumexp(before[:, None] + coupling, axis=0)
        return after, after

    _, rest = jax.lax.scan(step, evidence[0], evidence[1:])
    return jnp.concatenate([evidence[:1], rest])


def _categorical_moments(natural: Natural) -> tuple[Statistics, Array]:
    evidence, coupling = natural
    forward = _forward(natural)
    log_partition = jax.nn.logsumexp(forward[-1])

    def step(carry: tuple[Array, Array], at: tuple[Array, Array]) -> tuple:
        message, pairs = carry
        before, here = at
        joint = coupling + (here + message)[None, :]
        pairs = pairs + jnp.exp(before[:, None] + joint - log_partition)
        message = jax.nn.logsumexp(joint, axis=1)
        return (message, pairs), message

    last = jnp.zeros_like(evidence[0])
    start = (last, jnp.zeros_like(coupling))
    ends: tuple[Array, Array]
    rest: Array
    ends, rest = jax.lax.scan(step, start, (forward[:-1], evidence[1:]), reverse=True)
    backward = jnp.concatenate([rest, last[None]])
    return (jax.nn.softmax(forward + backward, axis=-1), ends[1]), log_partition


def _constant_chain(x: Array) -> Statistics:
    return x, matmul(transpose(x[..., :-1, :]), x[..., 1:, :])


_states = _lifted(_categorical_moments, 2)

CATEGORICAL_CHAIN = Family(
    "categorical chain",
    (2, 2),
    _constant_chain,
    lambda natural: _states(natural)[1],
    lambda natural: _states(natural)[0],
    lambda evidence, coupling: (evidence, coupling),
    lambda natural: natural,
    both=_states,
    support=ONE_HOT,
)
"""Sequences of states as one-hot rows ``[..., t, k]``; natural parameters: evidence ``[..., t,
k]`` and coupling ``[..., k, k]`` (from, to); statistics: states, and the sum over their pairs of
neighbours.
"""


def categorical_chain(initial: Parent, transition: Parent, length: int) -> Node:
    """States of a hidden Markov model: ``x_0 ~ initial``, ``x_{t+1} ~ transition[x_t]``.

    Args:
        initial: Dirichlet node, or probabilities ``[k]``.
        transition: Dirichlet node with plates ``[k]``, or a matrix ``[k, k]`` whose rows sum to 1.
        length: number of steps, at least 1.

    >>> categorical_chain("initial", "transition", 100).family.name
    'categorical chain'
    """

    def natural(initial: Statistics, transition: Statistics) -> Message:
        first = initial[0]
        rest = jnp.zeros((length - 1, first.shape[-1]), first.dtype)
        evidence = jnp.concatenate([first[None], rest])
        return (evidence, transition[0]), jnp.zeros((), first.dtype)

    slots = (("initial", (DIRICHLET,)), ("transition", (DIRICHLET,)))
    return Node(CATEGORICAL_CHAIN, (initial, transition), slots, natural, ())


def _inverse(matrix: Array) -> tuple[Array, Array]:
    """Inverse and log determinant of one positive definite matrix, NaN where it is not.

    Gauss-Jordan elimination: one elementwise update per pivot. In a scan over a thousand small
    matrices it takes a quarter of the time of a Cholesky factor and its inverse.
    """
    places = jnp.arange(matrix.shape[-1])

    def eliminate(rest: Array, j: Array) -> tuple[Array, Array]:
        row = jax.lax.dynamic_index_in_dim(rest, j, 0, keepdims=False)
        column = jax.lax.dynamic_index_in_dim(rest, j, 1, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(row, j, 0, keepdims=False)
        pivot = jnp.where(pivot <= 0, jnp.nan, pivot)
        here = places == j
        row, column = (jnp.where(here, -1.0, x) for x in (row, column))
        other = jnp.where(here[:, None] | here[None, :], 0.0, rest)
        return other - column[:, None] * row[None, :] / pivot, pivot

    negative, pivots = jax.lax.scan(eliminate, matrix, places)
    return -negative, jnp.sum(jnp.log(pivots))


def _eliminate(natural: Natural) -> tuple[Array, Array, Array]:
    """Precisions of ``x_t`` after ``x_0 .. x_{t-1}`` are integrated out, as covariances ``[t, k,
    k]`` and log determinants ``[t]``, and the information vectors ``[t, k]``.
    """
    information, half, coupling = natural
    precisions = symmetrize(-2.0 * half)

    def step(correction: Array, precision: Array) -> tuple[Array, tuple[Array, Array]]:
        cov, log_det = _inverse(precision - correction)
        return matmul(transpose(coupling), matmul(cov, coupling)), (cov, log_det)

    _, (covs, log_dets) = jax.lax.scan(step, jnp.zeros_like(coupling), precisions)
    gains = matmul(covs, jnp.broadcast_to(coupling, covs.shape))

    def pass_on(message: Array, at: tuple[Array, Array]) -> tuple[Array, Array]:
        here, gain = at
        total = here + message
        return matvec(transpose(gain), total), total

    _, totals = jax.lax.scan(pass_on, jnp.zeros_like(information[0]), (information, gains))
    return covs, log_dets, totals


def _gaussian_moments(natural: Natural) -> tuple[Statistics, Array]:
    covs, log_dets, totals = _eliminate(natural)
    gains = matmul(covs, jnp.broadcast_to(natural[2], covs.shape))
    alone = matvec(covs, totals)

    def step(later: tuple[Array, Array], at: tuple[Array, Array, Array]) -> tuple:
        mean, cov = later
        gain, own_mean, own_cov = at
        mean = own_mean + matvec(gain, mean)
        cov = own_cov + matmul(gain, matmul(cov, transpose(gain)))
        return (mean, cov), (mean, cov)

    zero = (jnp.zeros_like(alone[0]), jnp.zeros_like(covs[0]))
    # Nothing comes after the last step: a belief of 0 with covariance 0 adds nothing.
    found: tuple[Array, Array]
    _, found = jax.lax.scan(step, zero, (gains, alone, covs), reverse=True)
    means, smoothed = found
    pairs = matmul(gains[:-1], smoothed[1:]) + means[:-1, :, None] * means[1:, None, :]
    seconds = smoothed + means[:, :, None] * means[:, None, :]
    log_partition = jnp.sum(totals * alone) - jnp.sum(log_dets) + totals.size * LOG_2_PI
    return (means, seconds, jnp.sum(pairs, axis=0)), 0.5 * log_partition


def _gaussian_statistics(x: Array) -> Statistics:
    pairs = matmul(transpose(x[..., :-1, :]), x[..., 1:, :])
    return x, x[..., :, None] * x[..., None, :], pairs


_vectors = _lifted(_gaussian_moments, 2)

GAUSSIAN_CHAIN = Family(
    "gaussian chain",
    (2, 3, 2),
    _gaussian_statistics,
    lambda natural: _vectors(natural)[1],
    lambda natural: _vectors(natural)[0],
    lambda information, precision, coupling: (information, -0.5 * precision, coupling),
    lambda natural: (natural[0], -2.0 * natural[1], natural[2]),
    both=_vectors,
)
"""Sequences of vectors ``[..., t, k]`` whose precision is block tridiagonal: standard
``(information [..., t, k], blocks of the precision on the diagonal [..., t, k, k], minus the block
above it [..., k, k])``; statistics ``(x_t, x_t x_t^T, sum_t x_t x_{t+1}^T)``.
"""


def gaussian_chain(
    initial_mean: Parent,
    initial_precision: Parent,
    transition: Parent,
    precisions: Parent,
    length: int,
) -> Node:
    """States of a linear dynamical system: ``x_{t+1} ~ N(A x_t, diag(precisions)^{-1})``.

    Args:
        initial_mean: multivariate Gaussian node, or a vector ``[k]``.
        initial_precision: Wishart node, or a matrix ``[k, k]``.
        transition: the rows of A: multivariate Gaussian node with plates ``[k]``, or ``[k, k]``.
        precisions: of the noise of every component: gamma node with plates ``[k]``, or ``[k]``.
        length: number of steps, at least 1.

    >>> gaussian_chain(jnp.zeros(2), jnp.eye(2), "A", jnp.ones(2), 100).family.name
    'gaussian chain'
    """

    def natural(
        mean: Statistics, precision: Statistics, rows: Statistics, noise: Statistics
    ) -> Message:
        log, value = noise
        size = value.shape[-1]
        diagonal = value[:, None] * jnp.eye(size, dtype=value.dtype)
        # E A^T N A, from the second moment of every row.
        before = jnp.tensordot(value, rows[1], axes=1, precision="highest")
        steps = jnp.arange(length)[:, None, None]
        blocks = jnp.where(steps == 0, precision[1][None], diagonal[None])
        blocks = blocks + jnp.where(steps == length - 1, jnp.zeros_like(before)[None], before[None])
        information = jnp.concatenate(
            [matvec(precision[1], mean[0])[None], jnp.zeros((length - 1, size), value.dtype)]
        )
        normaliser = jnp.sum(precision[1] * mean[1]) - precision[0]
        normaliser = normaliser + length * size * LOG_2_PI - (length - 1) * jnp.sum(log)
        coupling = transpose(value[:, None] * rows[0])
        return (information, -0.5 * blocks, coupling), 0.5 * normaliser

    slots = (
        ("initial mean", (MULTIVARIATE_GAUSSIAN,)),
        ("initial precision", (WISHART,)),
        ("transition", (MULTIVARIATE_GAUSSIAN,)),
        ("precisions", (GAMMA,)),
    )
    parents = (initial_mean, initial_precision, transition, precisions)
    return Node(GAUSSIAN_CHAIN, parents, slots, natural, ())

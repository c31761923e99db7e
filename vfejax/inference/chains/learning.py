"""Parameters of chains from observations: expectation maximisation, and coordinates for gradients.

A step of expectation maximisation is ``maximize(expect(model, observations))``, in closed form.
Expected statistics are sums over time, so those of several series add up, and the log evidence of
all of them never falls. For gradients, ``unconstrain`` and ``constrain`` map a model to free
numbers and back: covariances by log Cholesky factors, probabilities by their logarithms.

Source: Shumway and Stoffer (1982); Rabiner (1989). Missing entries are integrated out, given the
others: their part of R is the conditional one.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.beliefs import coordinates
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.gaussian import Gaussian
from vfejax.inference._logarithms import safe_log
from vfejax.inference.chains._chain import checked
from vfejax.inference.chains.hidden_markov import (
    HiddenMarkov,
    HiddenMarkovSmoothed,
    two_slice_sum,
)
from vfejax.inference.chains.linear_gaussian import LinearGaussian, kalman_smoother
from vfejax.numerics import (
    cholesky,
    matmul,
    matmul_nt,
    matmul_tn,
    symmetrize,
    transpose,
    triangular_inverse,
)
from vfejax.types import Array, PyTree

__all__ = [
    "GaussianStatistics",
    "HiddenMarkovStatistics",
    "constrain",
    "constrain_hidden_markov",
    "expect",
    "expect_hidden_markov",
    "maximize",
    "maximize_hidden_markov",
    "unconstrain",
    "unconstrain_hidden_markov",
]


class GaussianStatistics(NamedTuple):
    """Expected sums of a linear Gaussian chain; those of several series add up leaf by leaf.

    With ``z = (x, 1)``: ``past`` sums ``z_i z_i^T`` over i < t - 1 ``[n + 1, n + 1]``, ``future``
    sums ``x_{i+1} x_{i+1}^T``, ``moved`` sums ``x_{i+1} z_i^T``, ``states`` sums ``z z^T`` over all
    times, ``seen`` sums ``y z^T``, ``outputs`` sums ``y y^T``. ``first`` and ``first_square`` are
    the moments of the first state, ``num_series``, ``num_moves`` and ``num_outputs`` count.
    """

    first: Array
    first_square: Array
    past: Array
    moved: Array
    future: Array
    states: Array
    seen: Array
    outputs: Array
    num_series: Array
    num_moves: Array
    num_outputs: Array
    log_evidence: Array


class HiddenMarkovStatistics(NamedTuple):
    """Expected counts of a hidden Markov chain; those of several series add up leaf by leaf:
    of first states ``[k]``, transitions ``[k, k]``, discrete observations ``[o, k]``, and the log
    evidence.
    """

    initial: Array
    transition: Array
    emission: Array
    log_evidence: Array


def _solve(matrix: Array, right: Array) -> Array:
    """``right matrix^-1`` for a symmetric positive definite matrix."""
    inverse = triangular_inverse(cholesky(matrix))
    return matmul(matmul_nt(right, inverse), inverse)


def _with_one(mean: Array, square: Array) -> Array:
    """Second moments of ``(x, 1)`` from ``mean [..., n]`` and ``square [..., n, n]``."""
    top = jnp.concatenate([square, mean[..., None]], axis=-1)
    one = jnp.ones((*mean.shape[:-1], 1), mean.dtype)
    return jnp.concatenate([top, jnp.concatenate([mean, one], axis=-1)[..., None, :]], axis=-2)


def _completion(cov: Array, mask: Array) -> tuple[Array, Array]:
    """``W`` and ``V`` with ``y = W y + (1 - W) C x + N(0, V)`` given the observed entries of y."""
    o = cov.shape[-1]
    both = mask[:, None] & mask[None]
    eye = jnp.eye(o, dtype=cov.dtype)
    weights = _solve(jnp.where(both, cov, eye), jnp.where(mask[None], cov, 0.0))
    kept = eye - weights
    return weights, matmul(matmul(kept, cov), transpose(kept))


def _check_constant(model: LinearGaussian) -> None:
    for name, core in (("transition", 2), ("transition_cov", 2), ("emission", 2)):
        if jnp.ndim(getattr(model, name)) > core:
            raise ValueError(f"only a constant model is learned; {name} has a time axis")
    for name, core in (("emission_cov", 2), ("transition_offset", 1), ("emission_offset", 1)):
        if getattr(model, name) is not None and jnp.ndim(getattr(model, name)) > core:
            raise ValueError(f"only a constant model is learned; {name} has a time axis")
    if model.transition_control is not None or model.emission_control is not None:
        raise ValueError("control matrices are learned by gradients, not by expectation")


def expect(
    model: LinearGaussian, observations: Array, mask: Array | None = None
) -> GaussianStatistics:
    """Expected statistics of one series under the posterior of a constant model.

    Args:
        model: without time axes and without controls.
        observations: ``[t, o]``, t >= 2.
        mask: booleans ``[t, o]``, True where an entry was observed.

    Returns:
        The sums, and the log evidence of this model.

    Raises:
        ValueError: when an argument does not fit, or the model changes with time.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> float(expect(model, jnp.zeros((3, 1))).num_moves)
    2.0
    """
    _check_constant(model)
    model, y, mask, _ = checked(model, observations, mask, None)
    smoothed = kalman_smoother(model, y, mask)
    mean, cov = smoothed.mean, smoothed.cov
    outer = mean[:, :, None] * mean[:, None, :]
    square = _with_one(mean, cov + outer)
    moved = smoothed.cross_cov + mean[1:, :, None] * mean[:-1, None, :]
    moved = jnp.concatenate([moved, mean[1:, :, None]], axis=-1)
    seen, outputs = _observed(model, y, mask, square)
    t = y.shape[0]
    count = jnp.asarray(1.0, y.dtype)
    return GaussianStatistics(
        mean[0],
        cov[0] + outer[0],
        jnp.sum(square[:-1], axis=0),
        jnp.sum(moved, axis=0),
        jnp.sum(square[1:, :-1, :-1], axis=0),
        jnp.sum(square, axis=0),
        seen,
        outputs,
        count,
        count * (t - 1),
        count * t,
        smoothed.log_evidence,
    )


def _observed(
    model: LinearGaussian, y: Array, mask: Array | None, square: Array
) -> tuple[Array, Array]:
    """Expected ``sum y z^T`` and ``sum y y^T``, with missing entries given the observed ones."""
    o = y.shape[1]
    offset = model.emission_offset
    column = jnp.zeros((o, 1), y.dtype) if offset is None else offset[:, None]
    emission = jnp.concatenate([model.emission, column], axis=1)
    if mask is None:
        z = square[:, :, -1]
        return matmul_tn(y, z), matmul_tn(y, y)

    def one(y: Array, mask: Array, square: Array) -> tuple[Array, Array]:
        weights, spread = _completion(model.emission_cov, mask)
        known = matmul(weights, jnp.where(mask, y, 0.0)[:, None])
        rest = emission - matmul(weights, emission)
        z = square[:, -1:]
        seen = matmul_nt(known, z) + matmul(rest, square)
        cross = matmul_nt(known, matmul(rest, z))
        outputs = matmul_nt(known, known) + cross + transpose(cross)
        return seen, outputs + matmul_nt(matmul(rest, square), rest) + spread

    seen, outputs = jax.vmap(one)(y, mask, square)
    return jnp.sum(seen, axis=0), jnp.sum(outputs, axis=0)


def _regression(
    model_offset: Array | None, inputs: Array, cross: Array, outputs: Array, count: Array
) -> tuple[Array, Array | None, Array]:
    """Matrix, offset (None where the model has none) and covariance of outputs given inputs."""
    n = inputs.shape[0] - 1
    if model_offset is None:
        inputs, cross = inputs[:n, :n], cross[:, :n]
    weights = _solve(inputs, cross)
    cov = symmetrize(outputs - matmul_nt(weights, cross)) / count
    return weights[:, :n], None if model_offset is None else weights[:, n], cov


def maximize(model: LinearGaussian, statistics: GaussianStatistics) -> LinearGaussian:
    """The model under which these statistics are most probable: every array of it, in closed form.

    Offsets are learned where the model has them. ``maximize(...)._replace(emission=...)`` would
    hold an array fixed only approximately: the covariance beside it is that of the new one.

    Args:
        model: says which offsets there are.
        statistics: of :func:`expect`, of one series or summed over several.

    Returns:
        The new model.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> model = maximize(model, expect(model, jnp.array([[1.0], [2.0], [1.5]])))
    >>> model.transition.shape
    (1, 1)
    """
    s = statistics
    first = s.first / s.num_series
    spread = s.first_square / s.num_series - first[:, None] * first[None]
    a, drift, q = _regression(model.transition_offset, s.past, s.moved, s.future, s.num_moves)
    c, offset, r = _regression(model.emission_offset, s.states, s.seen, s.outputs, s.num_outputs)
    return LinearGaussian(first, symmetrize(spread), a, q, c, r, drift, offset)


def expect_hidden_markov(
    model: HiddenMarkov,
    smoothed: HiddenMarkovSmoothed,
    observations: Array,
    mask: Array | None = None,
) -> HiddenMarkovStatistics:
    """Expected counts of one series of discrete observations.

    Args:
        model: the one that was smoothed.
        smoothed: what :func:`vfejax.inference.chains.hidden_markov.hidden_markov_smoother`
        returned. observations: integers ``[t]``.
        mask: booleans ``[t]``, True where there is an observation.

    Returns:
        The counts.

    >>> from vfejax.inference.chains.hidden_markov import hidden_markov_smoother
    >>> model = HiddenMarkov(jnp.ones(1), jnp.eye(1), jnp.ones((2, 1)) / 2)
    >>> smoothed = hidden_markov_smoother(model, jnp.zeros((3, 1)))
    >>> expect_hidden_markov(model, smoothed, jnp.array([0, 1, 1])).emission.tolist()
    [[1.0], [2.0]]
    """
    if model.emission is None:
        raise ValueError("expect_hidden_markov needs a model with an emission; it has None")
    weights = smoothed.probabilities
    if mask is not None:
        weights = jnp.where(jnp.broadcast_to(mask[:, None], weights.shape), weights, 0.0)
        observations = jnp.where(mask, observations, 0)
    counts = jax.ops.segment_sum(weights, observations, model.emission.shape[0])
    return HiddenMarkovStatistics(
        smoothed.probabilities[0], two_slice_sum(model, smoothed), counts, smoothed.log_evidence
    )


def maximize_hidden_markov(statistics: HiddenMarkovStatistics) -> HiddenMarkov:
    """The model under which these counts are most probable. A state that was never left, or never
    seen, gives a column of NaN: add prior counts to the statistics to avoid it.

    >>> counts = HiddenMarkovStatistics(jnp.ones(1), jnp.full((1, 1), 3.0), jnp.ones((2, 1)), 0.0)
    >>> maximize_hidden_markov(counts).emission.tolist()
    [[0.5], [0.5]]
    """
    initial, transition, emission, _ = statistics
    return HiddenMarkov(
        *(x / jnp.sum(x, axis=0, keepdims=True) for x in (initial, transition, emission))
    )


_COVARIANCES = ("initial_cov", "transition_cov", "emission_cov")


def unconstrain(model: LinearGaussian) -> PyTree:
    """Free numbers of a model: each covariance as the log Cholesky factor of
    :mod:`vfejax.beliefs.coordinates`, everything else as it is. Minimise ``-log_evidence`` of
    :func:`constrain` over them by any gradient method.

    >>> one = jnp.eye(1)
    >>> unconstrain(LinearGaussian(jnp.zeros(1), one, one, one, one, one)).emission_cov.tolist()
    [[0.0]]
    """

    def free(cov: Array) -> Array:
        belief = Gaussian(jnp.zeros(cov.shape[:-1], cov.dtype), cholesky(cov))
        return coordinates.unconstrain(belief).factor

    return model._replace(**{name: free(getattr(model, name)) for name in _COVARIANCES})


def constrain(free: PyTree) -> LinearGaussian:
    """The model of these free numbers, inverse of :func:`unconstrain`.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> constrain(unconstrain(model)).emission_cov.tolist()
    [[1.0]]
    """

    def bound(factor: Array) -> Array:
        mean = jnp.zeros(factor.shape[:-1], factor.dtype)
        chol = coordinates.constrain(GaussianCoordinates(mean, factor)).chol
        return matmul_nt(chol, chol)

    return free._replace(**{name: bound(getattr(free, name)) for name in _COVARIANCES})


def unconstrain_hidden_markov(model: HiddenMarkov) -> PyTree:
    """Free numbers of a hidden Markov model: the logarithms of its probabilities.

    >>> unconstrain_hidden_markov(HiddenMarkov(jnp.ones(1), jnp.eye(1))).initial.tolist()
    [0.0]
    """
    return jax.tree.map(safe_log, model)


def constrain_hidden_markov(free: PyTree) -> HiddenMarkov:
    """The model of these free numbers, by softmax over the columns.

    >>> model = HiddenMarkov(jnp.ones(1), jnp.eye(1))
    >>> constrain_hidden_markov(unconstrain_hidden_markov(model)).transition.tolist()
    [[1.0]]
    """
    emission = None if free.emission is None else jax.nn.softmax(free.emission, axis=-2)
    return HiddenMarkov(
        jax.nn.softmax(free.initial), jax.nn.softmax(free.transition, axis=-2), emission
    )

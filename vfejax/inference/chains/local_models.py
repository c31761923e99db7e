"""Local level and local trend: random walks, sampled at any times and observed with noise.

Each series is a Brownian motion of diffusion ``sigma^2`` (order 1, the local level), or the
integral of one (order 2, the local trend: a position whose velocity wanders). Over a time h it
moves by

- order 1: ``A = 1``, ``Q = sigma^2 h``;
- order 2: ``A = [[1, h], [0, 1]]``, ``Q = sigma^2 [[h^3 / 3, h^2 / 2], [h^2 / 2, h]]``,

exactly, so that times need not be evenly spaced. The smoothed mean of order 2 is a cubic smoothing
spline. Scales are learned by expectation maximisation in closed form.

Source: Harvey, Forecasting, Structural Time Series Models and the Kalman Filter (1989), sections
2.3 and 9.1; Wahba, Improper priors, spline smoothing and the problem of guarding against model
errors (1978).
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.inference.chains.linear_gaussian import LinearGaussian, Smoothed
from vfejax.numerics import matmul, matmul_nt, matvec
from vfejax.types import Array

__all__ = ["LocalModel", "learned", "linear_gaussian", "moment_scales", "transition"]


class LocalModel(NamedTuple):
    """Scales and beginning of o series of one order p.

    Attributes:
        drift_std: sigma of each series, ``[o]``: of order 1 in units of the series per root of
            time, of order 2 in units per time per root of time.
        noise_std: standard deviation of the observation noise, ``[o]``, in units of the series.
        initial_mean: of the state at the first observation, ``[p o]``: the level of the first
            series, then (order 2) its slope, then the second series.
        initial_cov: ``[p o, p o]``.

    >>> LocalModel(*[jnp.ones(1)] * 2, jnp.zeros(2), jnp.eye(2)).noise_std.tolist()
    [1.0]
    """

    drift_std: Array
    noise_std: Array
    initial_mean: Array
    initial_cov: Array


def _order(model: LocalModel) -> int:
    o, n = jnp.shape(model.drift_std)[-1], jnp.shape(model.initial_mean)[-1]
    if jnp.shape(model.noise_std) != jnp.shape(model.drift_std) or n not in (o, 2 * o):
        raise ValueError(
            "drift_std and noise_std must be [o] and initial_mean [o] or [2 o], got "
            f"{list(jnp.shape(model.drift_std))}, {list(jnp.shape(model.noise_std))} and "
            f"{list(jnp.shape(model.initial_mean))}"
        )
    return n // o


def transition(order: int, step: Array) -> tuple[Array, Array, Array]:
    """How one series of unit diffusion moves.

    Args:
        order: 1 or 2.
        step: the time h that passes, any shape.

    Returns:
        A, ``Q / sigma^2``, and the inverse of the latter, ``[*shape, order, order]`` each.

    Raises:
        ValueError: for another order.

    >>> transition(2, jnp.array(2.0))[0].tolist()
    [[1.0, 2.0], [0.0, 1.0]]
    """
    h = jnp.asarray(step)
    one, zero = jnp.ones_like(h), jnp.zeros_like(h)
    if order == 1:
        return one[..., None, None], h[..., None, None], (1.0 / h)[..., None, None]
    if order != 2:
        raise ValueError(f"order must be 1 or 2, got {order}")

    def matrix(a: Array, b: Array, c: Array, d: Array) -> Array:
        return jnp.stack([jnp.stack([a, b], -1), jnp.stack([c, d], -1)], -2)

    half = 0.5 * h**2
    spread = matrix(h**3 / 3.0, half, half, h)
    inverse = matrix(12.0 / h**3, -6.0 / h**2, -6.0 / h**2, 4.0 / h)
    return matrix(one, h, zero, one), spread, inverse


def _by_series(blocks: Array, weights: Array) -> Array:
    """One block per series on the diagonal: ``[..., p, p]`` and ``[o]`` to ``[..., o p, o p]``."""
    o, p = weights.shape[0], blocks.shape[-1]
    spread = jnp.einsum("ij,...ab->...iajb", jnp.diag(weights), blocks)
    return spread.reshape(*blocks.shape[:-2], o * p, o * p)


def linear_gaussian(model: LocalModel, steps: Array) -> LinearGaussian:
    """The model as a linear Gaussian chain.

    Args:
        model: scales and beginning.
        steps: times between neighbouring observations ``[t - 1]``, or one that is always the same.

    Returns:
        A chain of state size ``p o`` whose observations are the levels.

    Raises:
        ValueError: when shapes do not fit.

    >>> model = LocalModel(jnp.ones(1), jnp.ones(1), jnp.zeros(1), jnp.eye(1))
    >>> linear_gaussian(model, jnp.array([1.0, 3.0])).transition_cov[:, 0, 0].tolist()
    [1.0, 3.0]
    """
    order = _order(model)
    a, spread, _ = transition(order, jnp.asarray(steps, model.drift_std.dtype))
    ones = jnp.ones_like(model.drift_std)
    return LinearGaussian(
        model.initial_mean,
        model.initial_cov,
        _by_series(a, ones),
        _by_series(spread, model.drift_std**2),
        jnp.repeat(jnp.diag(ones), order, axis=1) * _levels(model, order),
        jnp.diag(model.noise_std**2),
    )


def _levels(model: LocalModel, order: int) -> Array:
    o = model.drift_std.shape[0]
    first = jnp.arange(order * o) % order == 0
    return jnp.broadcast_to(first.astype(model.drift_std.dtype), (o, order * o))


def learned(
    model: LocalModel, steps: Array, observations: Array, mask: Array, smoothed: Smoothed
) -> LocalModel:
    """The scales that maximise the expected log joint: one step of expectation maximisation.

    With the noise ``w_i = x_{i+1} - A_i x_i`` of a step, ``sigma^2 = mean_i tr(S_i^-1 E[w_i
    w_i^T]) / p`` for ``Q_i = sigma^2 S_i``, and the noise of an observation has the mean of ``E[(y
    - C x)^2]`` over the observed entries. The beginning stays. The log evidence never falls.

    Args:
        model: what ``smoothed`` was computed with.
        steps: as :func:`linear_gaussian` takes them.
        observations: ``[t, o]``, t >= 2.
        mask: booleans ``[t, o]``, True where an entry was observed; at least one of each series.
        smoothed: the posterior under ``model``.

    Returns:
        The model with other scales.

    Source: Shumway and Stoffer, An approach to time series smoothing and forecasting using the EM
        algorithm (1982), restricted to one scale per series.

    >>> from vfejax.inference.chains import kalman_smoother
    >>> y = jnp.array([[0.0], [4.0], [1.0], [5.0]])
    >>> model = LocalModel(jnp.ones(1), jnp.ones(1), jnp.zeros(1), jnp.eye(1))
    >>> seen = kalman_smoother(linear_gaussian(model, jnp.array(1.0)), y)
    >>> better = learned(model, jnp.array(1.0), y, jnp.ones((4, 1), bool), seen)
    >>> bool(better.noise_std[0] > 1.0)
    True
    """
    order, o = _order(model), model.drift_std.shape[0]
    chain = linear_gaussian(model, steps)
    t, n = smoothed.mean.shape
    a = jnp.broadcast_to(chain.transition, (t - 1, n, n))
    gap = smoothed.mean[1:] - matvec(a, smoothed.mean[:-1])
    crossed = matmul_nt(smoothed.cross_cov, a)
    spread = smoothed.cov[1:] + matmul_nt(matmul(a, smoothed.cov[:-1]), a)
    spread = spread - crossed - jnp.swapaxes(crossed, -1, -2)
    second = spread + gap[:, :, None] * gap[:, None, :]
    blocks = second.reshape(t - 1, o, order, o, order)
    own = jnp.einsum("tiaib->tiab", blocks)
    *_, inverse = transition(order, jnp.asarray(steps, gap.dtype))
    inverse = jnp.broadcast_to(inverse, (t - 1, order, order))
    drift = jnp.einsum("tiab,tab->i", own, inverse) / ((t - 1) * order)
    levels = smoothed.mean[:, ::order]
    variances = jnp.diagonal(smoothed.cov, axis1=1, axis2=2)[:, ::order]
    off = jnp.where(mask, (observations - levels) ** 2 + variances, 0.0)
    noise = jnp.sum(off, axis=0) / jnp.sum(mask, axis=0, dtype=off.dtype)
    return model._replace(drift_std=jnp.sqrt(drift), noise_std=jnp.sqrt(noise))


def moment_scales(
    order: int, steps: np.ndarray, observations: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """First guesses of the scales from differences of the data, on the host.

    The mean square of differences of order p between entries k apart is linear in both variances:
    for order 1, ``E (y_{i+k} - y_i)^2 = sigma^2 (t_{i+k} - t_i) + 2 r``. For k = 1, 2, 4, ... up to
    a quarter of the series, least squares of relative errors solve for ``sigma^2`` and r. The noise
    is kept above 1e-4 times the most that it could be, and the drift above what over the whole
    series moves the level by one standard deviation of the noise: less could not be told from none.

    Args:
        order: 1 or 2.
        steps: times between neighbouring observations ``[t - 1]``.
        observations: ``[t, o]``, NaN where missing.

    Returns:
        ``drift_std`` and ``noise_std``, ``[o]``; NaN for a series with fewer than p + 1 observed
        entries or without any difference.

    >>> y = np.array([[0.0], [1.0], [0.0], [1.0]])
    >>> drift, noise = moment_scales(1, np.ones(3), y)
    >>> bool(noise[0] > drift[0])
    True
    """
    times = np.concatenate([[0.0], np.cumsum(steps)])
    found = [_scales(order, times, column) for column in np.asarray(observations, np.float64).T]
    drift, noise = np.array(found).T
    return np.sqrt(drift), np.sqrt(noise)


def _scales(order: int, times: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Variances of one series."""
    seen = ~np.isnan(y)
    times, y = times[seen], y[seen]
    if len(y) <= order:
        return np.nan, np.nan
    longest = max(1, len(y) // 4)
    strides = [2**j for j in range(longest.bit_length()) if 2**j <= longest]
    found = np.array([(*_squares(order, times, y, k), len(y) / k) for k in strides])
    square, drift_weight, noise_weight, count = found.T
    if not np.all(square > 0):
        return np.nan, np.nan
    rows = np.stack([drift_weight, noise_weight], -1) / square[:, None]
    weights = np.sqrt(count)
    solution, *_ = np.linalg.lstsq(rows * weights[:, None], weights, rcond=None)
    most = np.min(1.0 / rows, axis=0)
    if np.any(solution < 1e-4 * most):  # one of them explains everything
        i = int(np.argmin(solution / most))
        solution[1 - i] = np.sum(count * rows[:, 1 - i]) / np.sum(count * rows[:, 1 - i] ** 2)
    noise = max(solution[1], 1e-4 * most[1])
    duration = times[-1] - times[0]
    unnoticed = noise / duration if order == 1 else 3.0 * noise / duration**3
    return float(max(solution[0], unnoticed)), float(noise)


def _squares(order: int, times: np.ndarray, y: np.ndarray, k: int) -> tuple[float, float, float]:
    """Mean square of differences over k entries, and what each variance contributes to it."""
    h, d = times[k:] - times[:-k], y[k:] - y[:-k]
    if order == 1:
        return float(np.mean(d**2)), float(np.mean(h)), 2.0
    # Mean velocities of neighbouring stretches: their difference has no velocity in it.
    before, after, slope = h[:-k], h[k:], d / h
    if not len(before):
        return np.nan, np.nan, np.nan
    noise = before**-2.0 + (1 / before + 1 / after) ** 2 + after**-2.0
    square = np.mean((slope[k:] - slope[:-k]) ** 2)
    return float(square), float(np.mean((before + after) / 3.0)), float(np.mean(noise))

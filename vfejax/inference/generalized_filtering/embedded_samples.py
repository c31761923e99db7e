"""Embedded samples: the derivatives of a series at one time, from the samples around it.

A polynomial is fitted to a window of samples; its derivatives are the generalised observation.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vfejax.inference.generalized_filtering.smooth_noise import check_order
from vfejax.numerics import as_floating, cast_like, matmul
from vfejax.types import Array

__all__ = [
    "Embedding",
    "EmbeddingState",
    "embed",
    "embedded_covariance",
    "embedding",
    "embedding_operator",
]


def embedding_operator(order: int, offsets: ArrayLike) -> np.ndarray:
    """E ``[order, window]`` that makes derivatives of samples: the least-squares polynomial.

    ``y(t_k) = sum_j y^(j) (t_k - t)^j / j!`` holds for the samples exactly where there are as many
    of them as derivatives, else in least squares. Computed by NumPy in float64, on the host.

    Args:
        order: number of derivatives, the value included.
        offsets: times of the samples relative to the time of the derivatives, ``[window]``.

    Returns:
        ``[order, window]``; row j in units of time^-j.

    Raises:
        ValueError: when there are fewer samples than derivatives.

    Source: Friston et al., NeuroImage 41 (2008) 849, equation (57), for as many samples as
    derivatives.

    >>> embedding_operator(3, [-1.0, 0.0, 1.0]).round(4).tolist()[1:]
    [[-0.5, 0.0, 0.5], [1.0, -2.0, 1.0]]
    """
    check_order(order)
    offsets = np.asarray(offsets, np.float64)
    if offsets.ndim != 1 or len(offsets) < order:
        raise ValueError(f"offsets must be [window] with window >= {order}, got {offsets.shape}")
    # In units of the window, so that powers stay of order 1.
    scale = np.max(np.abs(offsets), initial=0.0) or 1.0
    powers = (offsets[:, None] / scale) ** np.arange(order)
    factorials = np.array([math.factorial(j) / scale**j for j in range(order)])
    return factorials[:, None] * np.linalg.pinv(powers)


def _operator(order: int, dt: float, window: int | None, lag: int | None) -> np.ndarray:
    window = order if window is None else window
    lag = (window - 1) // 2 if lag is None else lag
    if not 0 <= lag < window:
        raise ValueError(f"lag must be from 0 to window - 1 = {window - 1}, got {lag}")
    return embedding_operator(order, (np.arange(window) - (window - 1 - lag)) * dt)


def embedded_covariance(
    order: int,
    dt: float,
    smoothness: float,
    *,
    window: int | None = None,
    lag: int | None = None,
) -> np.ndarray:
    """Covariance of the noise of a generalised observation that was embedded from samples, ``E R
    E^T`` with ``R_kl = rho(t_k - t_l)``.

    Derivatives of noise are not those of the polynomial through its samples: where s is below a few
    dt, S is far from this. With as many samples as derivatives a likelihood with it is exactly that
    of the samples, for smooth and for white noise alike.

    Args:
        order: number of derivatives, the value included.
        dt: time between samples.
        smoothness: s, in units of time; 0 for white noise.
        window: as in :func:`embed`.
        lag: as in :func:`embed`.

    Returns:
        ``[order, order]``, float64.

    Raises:
        ValueError: when window, order and lag do not fit, or the smoothness is negative.

    >>> embedded_covariance(2, 1.0, 0.0, lag=0).round(4).tolist()
    [[1.0, 1.0], [1.0, 2.0]]
    """
    operator = _operator(order, dt, window, lag)
    times = np.arange(operator.shape[1]) * dt
    kernel = np.eye(len(times))
    if smoothness < 0:
        raise ValueError(f"smoothness must be at least 0, got {smoothness}")
    if smoothness != 0:  # NaN too, which stays NaN
        kernel = np.exp(-((times[:, None] - times[None, :]) ** 2) / (4.0 * smoothness**2))
    return operator @ kernel @ operator.T


def _series(series: ArrayLike, name: str) -> Array:
    series = as_floating(series, name)
    if series.ndim != 2:
        raise ValueError(f"{name} must be [t, o], got shape {series.shape}")
    return series


def embed(
    series: Array, order: int, dt: float, *, window: int | None = None, lag: int | None = None
) -> Array:
    """Generalised observations of a sampled series, one for each full window.

    Args:
        series: ``[t, o]``, one sample every ``dt``.
        order: number of derivatives, the value included.
        dt: time between samples.
        window: number of samples that a polynomial is fitted to; ``order`` by default.
        lag: how many samples after the time of the derivatives are used; half of the window by
            default. 0 uses the past alone.

    Returns:
        ``[t - window + 1, order, o]``; entry i belongs to sample ``i + window - 1 - lag``.

    Raises:
        ValueError: when the series is not ``[t, o]``, shorter than a window, or window, order and
            lag do not fit.

    >>> embed(jnp.arange(5.0)[:, None] ** 2, 3, 1.0)[0, :, 0].round(3).tolist()  # t = 1
    [1.0, 2.0, 2.0]
    """
    series = _series(series, "series")
    operator = jnp.asarray(_operator(order, dt, window, lag), series.dtype)
    num = series.shape[0] - operator.shape[1] + 1
    if num < 1:
        raise ValueError(
            f"series must have at least window = {operator.shape[1]} samples, got {series.shape[0]}"
        )
    windows = jnp.arange(num)[:, None] + jnp.arange(operator.shape[1])[None, :]
    return jax.vmap(partial(matmul, operator))(series[windows])


class EmbeddingState(NamedTuple):
    """The last samples of a series, ``samples [window, o]``, and how many have arrived."""

    samples: Array
    num_seen: Array


class Embedding(NamedTuple):
    """An online embedding as two pure functions.

    Attributes:
        init: ``init(num_outputs, dtype=None) -> EmbeddingState``.
        step: ``step(state, sample [o]) -> (state, path [order, o])``; NaN until the window is full.
    """

    init: Callable[..., EmbeddingState]
    step: Callable[[EmbeddingState, Array], tuple[EmbeddingState, Array]]


def embedding(
    order: int, dt: float, *, window: int | None = None, lag: int | None = None
) -> Embedding:
    """:func:`embed` one sample at a time, in the memory of one window.

    Args:
        order: number of derivatives, the value included.
        dt: time between samples.
        window: number of samples that a polynomial is fitted to; ``order`` by default.
        lag: the path belongs to the sample that arrived ``lag`` samples ago.

    Returns:
        ``init`` and ``step``.

    Raises:
        ValueError: when window, order and lag do not fit.

    >>> online = embedding(2, 1.0, lag=0)
    >>> state, path = online.step(online.init(1), jnp.array([1.0]))
    >>> state, path = online.step(state, jnp.array([3.0]))
    >>> [round(x, 3) for x in path[:, 0].tolist()]
    [3.0, 2.0]
    """
    operator = _operator(order, dt, window, lag)

    def init(num_outputs: int, dtype: jax.typing.DTypeLike | None = None) -> EmbeddingState:
        samples = jnp.zeros((operator.shape[1], num_outputs), dtype or jnp.result_type(float))
        return EmbeddingState(samples, jnp.zeros((), jnp.int32))

    def step(state: EmbeddingState, sample: Array) -> tuple[EmbeddingState, Array]:
        newest = cast_like(sample, state.samples)[None]
        samples = jnp.concatenate([state.samples[1:], newest])
        num_seen = jnp.minimum(state.num_seen + 1, operator.shape[1])
        path = matmul(jnp.asarray(operator, samples.dtype), samples)
        path = jnp.where(num_seen < operator.shape[1], jnp.nan, path)
        return EmbeddingState(samples, num_seen), path

    return Embedding(init, step)

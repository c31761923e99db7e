"""Generalised coordinates of motion: a path as its value and its derivatives at one time.

A path ``x~ = (x, x', x'', ...)`` is an array ``[order, n]``: row i is the i-th derivative, in units
of x per time^i. *Order* counts the rows, the value included.

Smooth noise. Gaussian noise with autocorrelation ``rho(h) = exp(-h^2 / 4 s^2)`` has derivatives of
every order, and their covariance at one time is ``S_ij = (-1)^i rho^(i+j)(0)``. The spectrum of rho
is Gaussian with variance ``1 / 2 s^2``, so the polynomials that are orthonormal under it are
Hermite's. Their coefficients are a triangular root of ``S^{-1}``, in which all numbers are
positive: the precision is formed without an inverse and without cancellation, in every precision of
the machine and to any order.

Functions of a path. The generalised motion ``f~`` of ``f(x, v)`` is the list of time derivatives of
``f(x(t), v(t))``. Three functions compute it, and a model takes one of them:

- :func:`locally_linear`: ``f, J x', J x'', ...``, exact for linear f. What Friston et al. (2008)
  use, and the default.
- :func:`by_taylor`: exact, by ``jax.experimental.jet``, in O(order^2) operations for each one of f.
  At order 6 it compiled three to six times faster than the next. Functions with a primitive that
  has no Taylor rule (those of :mod:`vfejax.numerics` among them) raise KeyError or
  NotImplementedError.
- :func:`by_jvp`: exact, by nested ``jax.jvp``, for every function. The program doubles with each
  order.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.jet import jet
from jax.typing import ArrayLike

from vfejax.numerics import as_floating, cast_like, matmul, matmul_tn
from vfejax.types import Array

__all__ = [
    "DerivativesFn",
    "Embedding",
    "EmbeddingState",
    "by_jvp",
    "by_taylor",
    "embed",
    "embedded_covariance",
    "embedding",
    "embedding_operator",
    "locally_linear",
    "resize",
    "shift",
    "temporal_covariance",
    "temporal_log_det",
    "temporal_precision",
    "temporal_precision_root",
]


class DerivativesFn(Protocol):
    """Time derivatives of ``function`` along paths: ``(function, *paths [order, n]) -> [order,
    o]``."""

    def __call__(self, function: Callable[..., Array], /, *paths: Array) -> Array: ...


def _check_order(order: int) -> None:
    if order < 1:
        raise ValueError(f"order must be at least 1, got {order}")


def shift(path: Array) -> Array:
    """``D x~ = (x', x'', ..., 0)``: the motion of a path, whose last derivative has none.

    Args:
        path: ``[order, n]``.

    Returns:
        ``[order, n]``.

    >>> shift(jnp.array([[1.0], [2.0], [3.0]]))[:, 0].tolist()
    [2.0, 3.0, 0.0]
    """
    return jnp.concatenate([path[1:], jnp.zeros_like(path[:1])])


def resize(path: Array, order: int) -> Array:
    """A path with ``order`` rows: cut off, or continued by derivatives that are 0.

    Args:
        path: ``[any, n]``.
        order: number of rows wanted.

    Returns:
        ``[order, n]``.

    >>> resize(jnp.ones((1, 2)), 2).tolist()
    [[1.0, 1.0], [0.0, 0.0]]
    """
    path = path[:order]
    missing = jnp.zeros((order - path.shape[0], *path.shape[1:]), path.dtype)
    return jnp.concatenate([path, missing])


def temporal_covariance(order: int, smoothness: ArrayLike) -> Array:
    """Covariance of the derivatives of smooth noise at one time, ``S_ij = (-1)^i rho^(i+j)(0)``
    with ``rho(h) = exp(-h^2 / 4 s^2)``.

    Not 0 where i + j is even: ``S_ij = (-1)^((i-j)/2) (2k)! / k! (2 s)^(-2k)`` with ``k = (i + j) /
    2``. The numbers are made by NumPy in float64; the powers of a traced s are of its own dtype.

    Args:
        order: number of derivatives, the value included.
        smoothness: s > 0, in units of time.

    Returns:
        ``[order, order]``, in units of time^-(i+j).

    Raises:
        ValueError: when the order is below 1, or a concrete smoothness is not above 0.

    Source: Friston, NeuroImage 41 (2008) 747, appendix; Cox and Miller, The Theory of Stochastic
    Processes (1965), section 7.4.

    >>> temporal_covariance(3, 0.5).tolist()
    [[1.0, 0.0, -2.0], [0.0, 2.0, 0.0], [-2.0, 0.0, 12.0]]
    """
    _check_order(order)
    i, j = np.indices((order, order))
    values = np.array([math.factorial(2 * k) / math.factorial(k) for k in range(order)])
    signs = np.where((i - j) % 4 == 0, 1.0, -1.0)
    unit = np.where((i + j) % 2 == 0, signs * values[(i + j) // 2], 0.0)
    if isinstance(smoothness, jax.core.Tracer):
        powers = jnp.stack([(2.0 * smoothness) ** k for k in range(2 * order - 1)])
        return jnp.asarray(unit, smoothness.dtype) / powers[i + j]
    _check_smoothness(smoothness)
    scaled = unit / (2.0 * np.asarray(smoothness, np.float64)) ** (i + j)
    return jnp.asarray(scaled, as_floating(smoothness, "smoothness").dtype)


def _check_smoothness(smoothness: ArrayLike) -> None:
    """Refuse what has no derivatives, on concrete numbers; NaN stays NaN."""
    if not isinstance(smoothness, jax.core.Tracer) and np.any(np.asarray(smoothness) <= 0):
        raise ValueError(f"smoothness must be above 0, got {smoothness}: white noise has no path")


def temporal_precision_root(order: int, smoothness: ArrayLike) -> Array:
    """Lower triangular W with ``S^{-1} = W^T W``: coefficients of Hermite polynomials.

    ``W_nk = |He_nk| / sqrt(n!) (sqrt(2) s)^k`` with ``He_n(x) = sum_k He_nk x^k``. All entries are
    at least 0. As s goes to 0 only the first column stays: derivatives of white noise are
    unbounded.

    Args:
        order: number of derivatives, the value included.
        smoothness: s > 0, in units of time.

    Returns:
        ``[order, order]``, column k in units of time^k.

    Raises:
        ValueError: when the order is below 1, or a concrete smoothness is not above 0.

    >>> temporal_precision_root(2, jnp.sqrt(0.5)).round(4).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    _check_order(order)
    _check_smoothness(smoothness)
    smoothness = as_floating(smoothness, "smoothness")
    root = np.zeros((order, order))
    for n in range(order):
        for m in range(n // 2 + 1):
            count = math.factorial(m) * math.factorial(n - 2 * m) * 2**m
            root[n, n - 2 * m] = math.sqrt(math.factorial(n)) / count
    width = math.sqrt(2.0) * smoothness
    powers = jnp.stack([width**k for k in range(order)])
    return jnp.asarray(root, smoothness.dtype) * powers[None, :]


def temporal_precision(order: int, smoothness: ArrayLike) -> Array:
    """Inverse of :func:`temporal_covariance`, as a sum of positive numbers.

    Args:
        order: number of derivatives, the value included.
        smoothness: s > 0, in units of time.

    Returns:
        ``[order, order]``, in units of time^(i+j).

    >>> temporal_precision(3, 1.0).round(4).tolist()
    [[1.5, 0.0, 1.0], [0.0, 2.0, 0.0], [1.0, 0.0, 2.0]]
    """
    root = temporal_precision_root(order, smoothness)
    return matmul_tn(root, root)


def temporal_log_det(order: int, smoothness: ArrayLike) -> Array:
    """``log det S^{-1} = sum_n (n log(2 s^2) - log n!)``, in closed form.

    Args:
        order: number of derivatives, the value included.
        smoothness: s > 0, in units of time.

    Returns:
        A scalar.

    >>> round(float(temporal_log_det(2, 0.5)), 4)  # -log 2
    -0.6931
    """
    _check_order(order)
    smoothness = as_floating(smoothness, "smoothness")
    constant = sum(math.lgamma(n + 1) for n in range(order))
    return order * (order - 1) // 2 * jnp.log(2.0 * smoothness**2) - constant


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
    _check_order(order)
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


def by_taylor(function: Callable[..., Array], /, *paths: Array) -> Array:
    """Derivatives of ``function`` along paths, by Taylor-mode differentiation.

    Args:
        function: ``(*points [n_i]) -> [o]``.
        *paths: ``[order, n_i]`` each.

    Returns:
        ``[order, o]``.

    Raises:
        KeyError, NotImplementedError: when the function uses a primitive without Taylor rule.

    Source: Griewank and Walther, Evaluating Derivatives (2008), chapter 13.

    >>> by_taylor(lambda x: x * x, jnp.array([[1.0], [1.0], [0.0]]))[:, 0].round(3).tolist()
    [1.0, 2.0, 2.0]
    """
    points = tuple(path[0] for path in paths)
    if paths[0].shape[0] == 1:
        return function(*points)[None]
    value, derivatives = jet(function, points, tuple(list(path[1:]) for path in paths))
    return jnp.stack([value, *derivatives])


def by_jvp(function: Callable[..., Array], /, *paths: Array) -> Array:
    """Derivatives of ``function`` along paths, by nested forward differentiation in time.

    Args:
        function: ``(*points [n_i]) -> [o]``.
        *paths: ``[order, n_i]`` each.

    Returns:
        ``[order, o]``.

    >>> by_jvp(lambda x: x**2, jnp.array([[1.0], [1.0], [0.0]]))[:, 0].tolist()
    [1.0, 2.0, 2.0]
    """

    def point(path: Array, time: Array) -> Array:
        total = jnp.zeros_like(path[0])
        for k in reversed(range(path.shape[0])):
            total = path[k] + total * time / (k + 1)
        return total

    def slope(of: Callable[[Array], Array], time: Array) -> Array:
        return jax.jvp(of, (time,), (jnp.ones_like(time),))[1]

    def value(time: Array) -> Array:
        return function(*(point(p, time) for p in paths))

    along: Callable[[Array], Array] = value
    now, derivatives = jnp.zeros((), paths[0].dtype), []
    for _ in range(paths[0].shape[0]):
        derivatives.append(along(now))
        along = partial(slope, along)
    return jnp.stack(derivatives)


def locally_linear(function: Callable[..., Array], /, *paths: Array) -> Array:
    """``f, J x', J x'', ...`` with the Jacobian J at the value: exact for linear functions.

    Args:
        function: ``(*points [n_i]) -> [o]``.
        *paths: ``[order, n_i]`` each.

    Returns:
        ``[order, o]``.

    Source: Friston et al., NeuroImage 41 (2008) 849, equation (3).

    >>> locally_linear(lambda x: x**2, jnp.array([[1.0], [1.0], [0.0]]))[:, 0].tolist()
    [1.0, 2.0, 0.0]
    """
    value, push = jax.linearize(function, *(path[0] for path in paths))
    return jnp.concatenate([value[None], jax.vmap(push)(*(path[1:] for path in paths))])

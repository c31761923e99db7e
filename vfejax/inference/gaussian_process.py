"""The exact posterior of a linear process under noise of any autocorrelation: the best that any
filter or smoother can do.

    dx/dt = A x + B v + w,    y = C x + z

with Gaussian v, w and z. On a grid of times, states and causes are one Gaussian vector, and so are
they given the observations. Everything here is dense and in float64 by NumPy on the host, O((t
n)^3): a reference for some hundred times, not a filter.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

__all__ = [
    "LinearPaths",
    "PathPosterior",
    "block_kernel",
    "linear_paths",
    "posterior",
    "smooth_kernel",
    "transition",
]


class LinearPaths(NamedTuple):
    """Gaussian prior of states and causes at the times of the samples, ``u = (x, v)``.

    Attributes:
        mean: ``[t, n + m]``.
        root: R ``[t, n + m, r]`` with covariance ``R R^T`` over times and components together; a
            draw is ``mean + R`` times standard normal numbers.
    """

    mean: np.ndarray
    root: np.ndarray


class PathPosterior(NamedTuple):
    """``mean [..., t, n + m]`` for every series and ``deviation [t, n + m]`` for all."""

    mean: np.ndarray
    deviation: np.ndarray


def smooth_kernel(times: ArrayLike, smoothness: float) -> np.ndarray:
    """``exp(-(t_i - t_j)^2 / 4 s^2)`` for ``times [t]``, ``[t, t]``.

    >>> smooth_kernel([0.0, 1.0], 0.5).round(4).tolist()
    [[1.0, 0.3679], [0.3679, 1.0]]
    """
    times = np.asarray(times, np.float64)
    return np.exp(-((times[:, None] - times[None, :]) ** 2) / (4.0 * smoothness**2))


def block_kernel(num: int, length: int) -> np.ndarray:
    """White noise that is held for ``length`` points of a grid: 1 within a block, 0 between blocks.

    >>> block_kernel(4, 2).tolist()[0]
    [1.0, 1.0, 0.0, 0.0]
    """
    index = np.arange(num) // length
    return (index[:, None] == index[None, :]).astype(np.float64)


def _root(matrix: np.ndarray, name: str) -> np.ndarray:
    """R with ``R R^T = matrix``. Eigenvalues of smooth kernels underflow, so Cholesky fails."""
    values, vectors = np.linalg.eigh(matrix)
    limit = 100 * len(matrix) * np.finfo(np.float64).eps * np.max(np.abs(values), initial=0.0)
    if np.any(values < -limit):
        raise ValueError(
            f"the covariance of {name} must be positive semidefinite; its smallest eigenvalue is "
            f"{values[0]:.6g}"
        )
    return vectors * np.sqrt(np.maximum(values, 0.0))


def transition(drift: ArrayLike, dt: float) -> tuple[np.ndarray, np.ndarray]:
    """``exp(A dt)`` and ``int_0^dt exp(A u) du``, by their series on a halved step.

    >>> [x.round(4).tolist() for x in transition([[-1.0]], 1.0)]
    [[[0.3679]], [[0.6321]]]
    """
    drift = np.asarray(drift, np.float64)
    num = drift.shape[0]
    block = np.zeros((2 * num, 2 * num))
    block[:num, :num], block[:num, num:] = drift * dt, np.eye(num) * dt
    halvings = max(0, int(np.ceil(np.log2(max(np.abs(block).sum(axis=0).max(), 1e-300)))) + 1)
    term = total = np.eye(2 * num)
    for n in range(1, 20):
        term = term @ block / 2**halvings / n
        total = total + term
    for _ in range(halvings):
        total = total @ total
    return total[:num, :num], total[:num, num:]


def _root_over_time(in_time: np.ndarray, between: np.ndarray) -> np.ndarray:
    """The root ``[g, n, r s]`` of a covariance that is a product: one in time, of root ``[g, r]``,
    and one between components, of root ``[n, s]``.
    """
    roots = np.einsum("gr,ij->girj", in_time, between)
    return roots.reshape(*roots.shape[:2], -1)


def linear_paths(
    drift: ArrayLike,
    gain: ArrayLike,
    dt: float,
    num_substeps: int,
    *,
    initial: tuple[ArrayLike, ArrayLike],
    causes: tuple[ArrayLike, ArrayLike],
    noise: tuple[ArrayLike, ArrayLike],
) -> LinearPaths:
    """Prior of the paths of ``dx/dt = A x + B v + w``, with v and w constant between the points of
    a grid that is finer than the samples.

    Args:
        drift: A ``[n, n]``, in units of 1 / time.
        gain: B ``[n, m]``.
        dt: time between samples.
        num_substeps: points of the grid per sample.
        initial: mean ``[n]`` and covariance ``[n, n]`` of the first state.
        causes: mean ``[g, m]`` of v on the grid and covariance ``[g, g]`` in time, the same for
            every cause; causes are independent. ``g = t num_substeps``.
        noise: covariance ``[n, n]`` of w and its autocorrelation ``[g, g]`` in time.

    Returns:
        Mean and root for t samples, the first at the first point of the grid.

    Raises:
        ValueError: when the grid is no multiple of ``num_substeps``, a shape does not fit, or a
            covariance has a negative eigenvalue.

    >>> times = np.arange(4) / 2
    >>> paths = linear_paths([[-1.0]], [[1.0]], 1.0, 2, initial=([1.0], [[0.0]]),
    ...     causes=(np.zeros((4, 1)), np.zeros((4, 4))), noise=([[0.0]], smooth_kernel(times, 1.0)))
    >>> paths.mean[:, 0].round(4).tolist()
    [1.0, 0.3679]
    """
    drift, gain = np.asarray(drift, np.float64), np.asarray(gain, np.float64)
    cause_mean, kernel = (np.asarray(x, np.float64) for x in causes)
    noise_cov, autocorrelation = (np.asarray(x, np.float64) for x in noise)
    grid, (num, num_causes) = len(cause_mean), gain.shape
    if grid % num_substeps or kernel.shape != (grid, grid) or autocorrelation.shape != kernel.shape:
        raise ValueError(
            f"causes and noise must be on one grid of t * {num_substeps} points, got {grid} points "
            f"and covariances {kernel.shape} and {autocorrelation.shape}"
        )
    step, hold = transition(drift, dt / num_substeps)
    cause_roots = _root_over_time(_root(kernel, "causes in time"), np.eye(num_causes))
    noise_roots = _root_over_time(
        _root(autocorrelation, "noise in time"), _root(noise_cov, "noise")
    )
    sizes = num, cause_roots.shape[-1], noise_roots.shape[-1]
    state = np.concatenate(
        [
            np.asarray(initial[0], np.float64)[:, None],
            _root(np.asarray(initial[1], np.float64), "initial"),
            np.zeros((num, sizes[1] + sizes[2])),
        ],
        axis=1,
    )
    rows = []
    for k in range(grid):
        cause = np.zeros((num_causes, state.shape[1]))
        cause[:, 0], cause[:, 1 + num : 1 + num + sizes[1]] = cause_mean[k], cause_roots[k]
        if k % num_substeps == 0:
            rows.append(np.concatenate([state, cause]))
        force = gain @ cause
        force[:, 1 + num + sizes[1] :] += noise_roots[k]
        state = step @ state + hold @ force
    stacked = np.stack(rows)
    return LinearPaths(stacked[..., 0], stacked[..., 1:])


def posterior(
    paths: LinearPaths,
    emission: ArrayLike,
    noise: tuple[ArrayLike, ArrayLike],
    observations: ArrayLike,
    window: tuple[int | None, int | None] = (None, None),
) -> PathPosterior:
    """States and causes given the observations of a window about each time.

    Args:
        paths: prior, from :func:`linear_paths`.
        emission: C ``[o, n + m]``.
        noise: covariance ``[o, o]`` of z and its autocorrelation ``[t, t]``.
        observations: ``[..., t, o]``.
        window: how many earlier and later observations count besides that of the time itself; None
            for all. ``(None, 0)`` is the best filter, ``(None, None)`` the best smoother.

    Returns:
        Means and standard deviations; they minimise the mean squared error among all functions of
        those observations.

    >>> times = np.arange(2.0)
    >>> paths = LinearPaths(np.zeros((2, 1)), np.eye(2)[:, None, :])
    >>> posterior(paths, [[1.0]], ([[1.0]], np.eye(2)), np.ones((2, 1))).mean[:, 0].tolist()
    [0.5, 0.5]
    """
    emission, observations = np.asarray(emission, np.float64), np.asarray(observations, np.float64)
    noise_cov, autocorrelation = (np.asarray(x, np.float64) for x in noise)
    num = paths.mean.shape[0]
    errors = observations - paths.mean @ emission.T
    images = np.einsum("oi,tir->tor", emission, paths.root)
    noise_cov = np.einsum("st,op->sotp", autocorrelation, noise_cov)
    means, deviations = [], []
    for t in range(num):
        first = 0 if window[0] is None else max(0, t - window[0])
        last = num if window[1] is None else min(num, t + window[1] + 1)
        rows = images[first:last].reshape(-1, images.shape[-1])
        cov = rows @ rows.T + noise_cov[first:last, :, first:last].reshape(len(rows), len(rows))
        cross = paths.root[t] @ rows.T
        gain = np.linalg.solve(cov, cross.T).T
        seen = errors[..., first:last, :].reshape(*errors.shape[:-2], -1)
        means.append(paths.mean[t] + seen @ gain.T)
        variance = np.sum(paths.root[t] ** 2, axis=-1) - np.sum(gain * cross, axis=-1)
        deviations.append(np.sqrt(np.maximum(variance, 0.0)))
    return PathPosterior(np.stack(means, axis=-2), np.stack(deviations))

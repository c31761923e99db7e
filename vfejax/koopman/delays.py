"""Delay coordinates: an operator that measurement noise does not bias, and calibrated intervals of
forecasts.

The delay coordinates of a series x ``[o]`` are its L newest rows, newest first: ``z_t = (x_t,
x_{t-1}, ..., x_{t-L+1})``. Two that follow each other share all rows but two, and their noise.
"""

from statistics import NormalDist

import jax.numpy as jnp
import numpy as np

from vfejax.koopman import _linear_algebra
from vfejax.koopman.streaming import Factor
from vfejax.types import Array

__all__ = ["half_widths", "total_least_squares"]


def total_least_squares(factor: Factor, rank: int, num_series: int) -> Array:
    """The map of delay coordinates that minimises the errors of all rows of a window together:
    unbiased under equal white noise on every row, which now and following share.

    With V the r leading right singular vectors of the windows ``(x_{t+1}, x_t, ..., x_{t-L+1})``,
    V_a their rows for z_t and V_b those for z_{t+1}::

        K = V_b V_a^+

    Its r eigenvalues other than 0 are those of ``V_a^+ V_b``.

    Args:
        factor: statistics of pairs of delay coordinates, d = L o, newest rows first.
        rank: r in 1 .. d, twice the number of oscillations.
        num_series: o, which divides d.

    Returns:
        K ``[d, d]``, of rank r.

    Raises:
        ValueError: for a rank or a number of series out of range, or d other than e.

    Source: Roy and Kailath, ESPRIT (1989), with the rows of a window in place of sensors; where
        :func:`vfejax.koopman.operators.total_least_squares` takes the noise of now and following
        for independent.

    >>> from vfejax.koopman import streaming
    >>> x = 0.5 ** jnp.arange(5.0)
    >>> z = jnp.stack([x[1:], x[:-1]], axis=1)
    >>> factor = streaming.update(streaming.init(2), z[:-1], z[1:])
    >>> operator = total_least_squares(factor, 1, 1)
    >>> round(float(jnp.trace(operator)), 4)  # of rank 1: its eigenvalue
    0.5
    """
    dim, following = factor.cross.shape
    if dim != following:
        raise ValueError(f"now and following must have one dimension, got {dim} and {following}")
    if not 1 <= rank <= dim:
        raise ValueError(f"rank must be in 1 .. {dim}, the dimension, got {rank}")
    if num_series < 1 or dim % num_series:
        raise ValueError(f"num_series must divide {dim}, the dimension, got {num_series}")
    root = factor.root
    windows = jnp.concatenate([root[:, dim : dim + num_series], root[:, :dim]], axis=1)
    leading = _linear_algebra.svd(windows)[2][:rank]
    return _linear_algebra.divide(leading[:, num_series:], leading[:, :dim]).T


def half_widths(errors: np.ndarray, probability: float) -> np.ndarray:
    """Half the widths of intervals that hold a forecast's error with a probability, from errors on
    rows that the forecast was not fitted on.

    The k-th smallest of the m absolute errors, ``k = ceil((m + 1) probability)``: whatever their
    distribution, one more error that is exchangeable with them is inside with at least that
    probability. Where k > m, the largest times the ratio of normal quantiles of ``probability`` and
    of ``m / (m + 1)``, which it stands for.

    Args:
        errors: ``[m, ...]``, NaN where there is none.
        probability: between 0 and 1.

    Returns:
        ``[...]``; NaN without an error.

    Raises:
        ValueError: for another probability.

    Source: Vovk, Gammerman and Shafer, Algorithmic Learning in a Random World (2005). Errors of
        neighbouring rows depend on each other, so that the probability holds on average over
        stationary series and not for a single one.

    >>> half_widths(np.array([0.1, -0.3, 0.2, 0.4]), 0.6).tolist()
    0.3
    """
    if not 0 < probability < 1:
        raise ValueError(f"probability must be between 0 and 1, got {probability}")
    if not len(errors):
        return np.full(np.shape(errors)[1:], np.nan)
    ordered = np.sort(np.abs(errors), axis=0)  # NaN last
    count = np.sum(~np.isnan(ordered), axis=0)
    rank = np.ceil((count + 1) * probability - 1e-9).astype(int)
    index = np.clip(np.minimum(rank, count) - 1, 0, len(errors) - 1)
    found = np.take_along_axis(ordered, index[None], axis=0)[0]
    normal = np.vectorize(lambda p: NormalDist().inv_cdf(0.5 + 0.5 * p), otypes=[float])
    some = np.maximum(count, 1)
    stretched = found * normal(probability) / normal(some / (some + 1.0))
    return np.where(rank > count, stretched, found)

"""Supports of exponential families and of their parameters: which values there can be.

Values that are known are refused where they lie outside; values that are traced become NaN. NaN
itself lies nowhere, is never refused, and stays.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.types import Array

__all__ = [
    "BINARY",
    "COUNTS",
    "NON_NEGATIVE",
    "ONE_HOT",
    "POSITIVE",
    "POSITIVE_DEFINITE",
    "PROBABILITIES",
    "PROBABILITY",
    "Support",
    "above",
    "check_inside",
    "counts_of",
    "nan_outside",
]


class Support(NamedTuple):
    """A set of values.

    Attributes:
        name: what a value must be, for errors.
        rank: number of axes of one member.
        outside: ``outside(x [..., *event]) -> booleans [...]``, of NumPy arrays and of traced ones;
            False for NaN.
        traced: whether traced values outside are to become NaN. False where the formulas of the
            family do that by themselves.
    """

    name: str
    rank: int
    outside: Callable[[Any], Any]
    traced: bool = True


def _not_whole(x: Any) -> Any:
    return (x < 0) | (x % 1 > 0) | (x == np.inf)


def _not_binary(x: Any) -> Any:
    return (x < 0) | (x > 1) | ((x > 0) & (x < 1))


def _not_one_hot(x: Any) -> Any:
    return _not_binary(x).any(axis=-1) | (abs(x.sum(axis=-1) - 1) > 0.5)


def _not_probabilities(x: Any) -> Any:
    # Rounding of single precision, whatever the values have been cast to since.
    limit = 100 * x.shape[-1] * float(np.finfo(np.float32).eps)
    return (x < 0).any(axis=-1) | (abs(x.sum(axis=-1) - 1) > limit)


def _not_definite(x: np.ndarray) -> np.ndarray:
    stack = x.astype(np.float64)
    largest = abs(stack).max(axis=(-2, -1), initial=0.0)
    skew = abs(stack - stack.swapaxes(-2, -1)).max(axis=(-2, -1), initial=0.0)
    known = np.where(np.isfinite(stack).all(axis=(-2, -1), keepdims=True), stack, 0.0)
    lowest = np.linalg.eigvalsh(0.5 * (known + known.swapaxes(-2, -1))).min(axis=-1, initial=np.inf)
    limit = 100 * x.shape[-1] * float(np.finfo(np.float32).eps)
    return np.isfinite(largest) & ((lowest <= 0) | (skew > limit * largest))


POSITIVE = Support("positive", 0, lambda x: x <= 0)
NON_NEGATIVE = Support("0 or positive", 0, lambda x: x < 0)
PROBABILITY = Support("between 0 and 1", 0, lambda x: (x < 0) | (x > 1))
PROBABILITIES = Support("probabilities that sum to 1", 1, _not_probabilities)
COUNTS = Support("whole numbers from 0", 0, _not_whole)
BINARY = Support("0 or 1", 0, _not_binary)
ONE_HOT = Support("one-hot rows: a single 1 at the state, from 0 to k - 1", 1, _not_one_hot)
POSITIVE_DEFINITE = Support("symmetric and positive definite", 2, _not_definite, traced=False)


def above(limit: float) -> Support:
    """Numbers above a limit.

    >>> above(1.0).outside(np.array([0.5, 2.0])).tolist()
    [True, False]
    """
    return Support(f"above {limit:g}", 0, lambda x: x <= limit)


def counts_of(num_trials: Any) -> Support:
    """Whole numbers ``[..., k]`` that sum to a number of trials.

    >>> bool(counts_of(3.0).outside(np.array([1.0, 1.0])))
    True
    """

    def outside(x: Any) -> Any:
        return _not_whole(x).any(axis=-1) | (abs(x.sum(axis=-1) - num_trials) > 0.5)

    return Support(f"whole numbers from 0 that sum to {num_trials}", 1, outside)


def check_inside(
    x: Any, support: Support | None, name: str, weights: Any = 1.0, plates: int = 0
) -> None:
    """Refuse values outside a support, where they are known.

    Args:
        x: ``[..., *event]``; a traced one passes.
        support: None for no limits.
        name: what an error should call them.
        weights: broadcastable to the plates; what has weight 0 does not count.
        plates: number of leading axes that may have weights.

    Raises:
        ValueError: naming the first member outside.

    >>> check_inside(jnp.array([1.0, -2.0]), POSITIVE, "rate of x")
    Traceback (most recent call last):
    ...
    ValueError: rate of x must be positive, got -2 at [1]
    """
    if support is None or any(isinstance(a, jax.core.Tracer) for a in (x, weights)):
        return
    values = np.asarray(x)
    if values.ndim < support.rank:
        return
    outside = np.asarray(support.outside(values))
    counts = np.asarray(weights) != 0
    before, behind = (1,) * (plates - counts.ndim), (1,) * (outside.ndim - plates)
    outside = outside & counts.reshape((*before, *counts.shape, *behind))
    if not outside.any():
        return
    place = np.argwhere(outside)[0].tolist()
    shown = values[tuple(place)]
    text = f"{shown:.6g}" if support.rank == 0 else _line(shown)
    raise ValueError(f"{name} must be {support.name}, got {text}" + (f" at {place}" * bool(place)))


def _line(values: np.ndarray) -> str:
    text = np.array2string(values, precision=6, threshold=12, separator=", ", max_line_width=10**6)
    return text.replace("\n", "")


def nan_outside(x: Array, support: Support | None) -> Array:
    """``x [..., *event]``, and NaN where a member lies outside.

    >>> nan_outside(jnp.array([1.0, -2.0]), POSITIVE).tolist()
    [1.0, nan]
    """
    if support is None or not support.traced:
        return x
    outside = support.outside(x)
    outside = outside.reshape((*outside.shape, *(1,) * support.rank))
    return jnp.where(jnp.broadcast_to(outside, x.shape), jnp.nan, x)

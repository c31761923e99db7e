"""A moving target: a boat whose velocity wanders, seen through noisy fixes with gaps.

The boat moves in a plane with nearly constant velocity. A receiver reports its position at regular
times, with noise, and misses some: single fixes here and there, and all of them for a while. Since
motion and noise are Gaussian with known scales, the exact posterior is the Kalman smoother's, and
no estimate has a smaller mean square error. That is the reference for everything that estimates.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.inference.chains import LinearGaussian
from vfejax.inference.chains.local_models import LocalModel, linear_gaussian

__all__ = ["Accuracy", "Target", "accuracy", "raw_accuracy", "simulate", "true_model"]


class Target(NamedTuple):
    """A path and what was seen of it.

    Attributes:
        times: of the fixes ``[t]``, in s.
        observations: ``[t, 2]``, in m; NaN where a fix is missing.
        truth: true positions ``[t, 2]``, in m.
        velocity: true velocities ``[t, 2]``, in m/s.
        model: the scales of motion and noise, and the belief about the beginning.
    """

    times: np.ndarray
    observations: np.ndarray
    truth: np.ndarray
    velocity: np.ndarray
    model: LocalModel


class Accuracy(NamedTuple):
    """How near an estimate is to the truth.

    Attributes:
        seen: root mean square distance at the times of fixes, in m.
        unseen: the same where the fix is missing; NaN without an estimate there.
        coverage: share of true coordinates inside their intervals; NaN without intervals.
    """

    seen: float
    unseen: float
    coverage: float


def simulate(
    rng: np.random.Generator,
    num_steps: int = 240,
    *,
    step: float = 2.0,
    drift_std: float = 0.5,
    noise_std: float = 60.0,
    missing: float = 0.15,
    gap: int = 30,
) -> Target:
    """Draw a path and its fixes, on the host.

    Args:
        rng: source of randomness.
        num_steps: number of times t.
        step: time between fixes, in s.
        drift_std: how fast the velocity wanders, in m/s per root second.
        noise_std: of a fix along each axis, in m.
        missing: probability that a single fix is missing.
        gap: how many fixes in a row are missing, in the middle of the path.

    Returns:
        The path; its first and last fix are there.

    Raises:
        ValueError: for fewer times than the gap leaves room for.

    >>> target = simulate(np.random.default_rng(0))
    >>> target.truth.shape, int(np.isnan(target.observations[:, 0]).sum())
    ((240, 2), 64)
    """
    if num_steps < gap + 4:
        raise ValueError(f"num_steps must be at least gap + 4 = {gap + 4}, got {num_steps}")
    start_std, speed_std = 100.0, 4.0
    transition = np.array([[1.0, step], [0.0, 1.0]])
    spread = np.array([[step**3 / 3, step**2 / 2], [step**2 / 2, step]])
    factor = drift_std * np.linalg.cholesky(spread)
    state = np.zeros((num_steps, 2, 2))  # time, position or velocity, axis
    state[0] = np.array([[start_std], [speed_std]]) * rng.normal(size=(2, 2))
    for i, noise in enumerate(rng.normal(size=(num_steps - 1, 2, 2))):
        state[i + 1] = transition @ state[i] + factor @ noise
    observations = state[:, 0] + noise_std * rng.normal(size=(num_steps, 2))
    lost = rng.random(num_steps) < missing
    start = (num_steps - gap) // 2
    lost[start : start + gap] = True
    lost[[0, -1]] = False
    observations[lost] = np.nan
    variances = np.tile([start_std**2, speed_std**2], 2)
    fields = np.full(2, drift_std), np.full(2, noise_std), np.zeros(4), np.diag(variances)
    model = LocalModel(*map(jnp.asarray, fields))
    times = step * np.arange(num_steps)
    return Target(times, observations, state[:, 0], state[:, 1], model)


def true_model(target: Target) -> LinearGaussian:
    """The chain that the target was drawn from: its posterior is the best possible estimate.

    >>> true_model(simulate(np.random.default_rng(0))).emission.shape
    (2, 4)
    """
    step = target.times[1] - target.times[0]
    return linear_gaussian(target.model, jnp.asarray(step, target.model.drift_std.dtype))


def accuracy(target: Target, mean: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> Accuracy:
    """Errors and coverage of an estimate of the positions.

    Args:
        target: path and fixes.
        mean: ``[t, 2]``, in m.
        lower, upper: ends of the intervals ``[t, 2]``, in m.

    >>> target = simulate(np.random.default_rng(0))
    >>> accuracy(target, target.truth + 3.0, target.truth - 1, target.truth + 1).coverage
    1.0
    """
    seen = ~np.isnan(target.observations[:, 0])
    square = np.sum((mean - target.truth) ** 2, axis=1)
    inside = (lower <= target.truth) & (target.truth <= upper)
    return Accuracy(
        float(np.sqrt(np.mean(square[seen]))),
        float(np.sqrt(np.mean(square[~seen]))) if np.any(~seen) else np.nan,
        float(np.mean(inside)),
    )


def raw_accuracy(target: Target) -> Accuracy:
    """Errors of the fixes themselves.

    >>> raw_accuracy(simulate(np.random.default_rng(0))).unseen
    nan
    """
    square = np.nansum((target.observations - target.truth) ** 2, axis=1)
    seen = ~np.isnan(target.observations[:, 0])
    return Accuracy(float(np.sqrt(np.mean(square[seen]))), np.nan, np.nan)

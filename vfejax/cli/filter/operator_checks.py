"""Tests of ``--model koopman`` on held-out rows: eigenvalues with their residuals, and errors
beside those of simple baselines.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli.filter.koopman import Forecaster
from vfejax.cli.filter.operator_choice import STEPS, errors
from vfejax.koopman import spectrum, streaming
from vfejax.koopman.spectrum import Spectrum
from vfejax.koopman.streaming import Factor

__all__ = ["SMALLEST", "Mode", "held_out_factor", "losses", "modes"]

SMALLEST = 1e-6
"""Modulus of an eigenvalue below which it is 0."""
_LONGEST = 32  # rows that the autoregression may look at


class Mode(NamedTuple):
    """An eigenvalue, or a pair of complex ones.

    Attributes:
        eigenvalue: lambda, with a positive imaginary part.
        period: time of one turn; None without turns.
        decay: time in which it falls by e; negative where it grows by e.
        residual: share by which its eigenfunction misses lambda times itself, on held-out rows.
        spurious: whether the residual is as large as the eigenvalue, so that the rows do not tell
            it from 0.
    """

    eigenvalue: complex
    period: float | None
    decay: float
    residual: float
    spurious: bool


def held_out_factor(found: Forecaster) -> Factor:
    """Statistics of the pairs of observables in the rows that were held out."""
    before = found.lifted[found.split.held - 1 : -1]
    after = found.lifted[found.split.held :]
    known = ~np.isnan(before[:, 0]) & ~np.isnan(after[:, 0])
    empty = streaming.init(before.shape[1], dtype=jnp.float64)
    return jax.jit(streaming.update)(empty, before[known], after[known])


def modes(found: Spectrum, factor: Factor, step: float) -> list[Mode]:
    """The eigenvalues other than 0, largest first.

    Args:
        found: eigenvalues and eigenfunctions.
        factor: of held-out rows.
        step: time between rows.
    """
    missed = spectrum.residuals(factor, found.values, found.functions)
    scales = spectrum.time_scales(found.values, step)
    kept = (np.abs(found.values) > SMALLEST) & (found.values.imag >= 0)
    return [
        Mode(
            complex(found.values[i]),
            float(1.0 / scales.frequency[i]) if abs(scales.frequency[i]) > 0 else None,
            float(scales.decay[i]),
            float(missed[i]),
            not missed[i] < np.abs(found.values[i]),
        )
        for i in np.flatnonzero(kept)
    ]


def losses(found: Forecaster) -> dict[str, dict[int, float]]:
    """Root mean square errors of forecasts of held-out rows, by method and steps ahead, in standard
    deviations of the series; all are of the same forecasts.
    """
    model, held = found.model, found.split.held
    size = len(model.mean)
    scaled = model.scaled(found.values)
    ours = found.errors
    num_steps = min(max(STEPS), ours.shape[1])
    ours = ours[:, :num_steps]
    still = errors(np.eye(size), scaled, held, num_steps, size)
    plain = np.stack([_autoregression(scaled[:, j], held, num_steps) for j in range(size)], axis=2)
    known = ~(np.isnan(ours) | np.isnan(still) | np.isnan(plain))
    methods = {"koopman": ours, "autoregression": plain, "persistence": still}
    return {
        name: {
            step: float(np.sqrt(np.mean(off[:, step - 1][known[:, step - 1]] ** 2)))
            for step in STEPS
            if step <= num_steps and known[:, step - 1].any()
        }
        for name, off in methods.items()
    }


def _autoregression(values: np.ndarray, held: int, num_steps: int) -> np.ndarray:
    """Errors ``[t - held, num_steps]`` of an autoregression of one series on itself, by least
    squares on the rows before ``held``; its order has the least information criterion (Akaike).
    """
    longest = min(_LONGEST, max(held // 6, 1))
    rows = np.full((len(values), longest + 1), np.nan)
    for lag in range(longest + 1):
        rows[lag:, lag] = values[: len(values) - lag]
    whole = rows[:held][~np.isnan(rows[:held]).any(axis=1)]
    best = np.inf, np.zeros((1, 1)), 0.0
    for order in range(1, longest + 1):
        if len(whole) <= order + 2:
            break
        design = np.column_stack([whole[:, 1 : order + 1], np.ones(len(whole))])
        weights, *_ = np.linalg.lstsq(design, whole[:, 0], rcond=None)
        off = np.mean((whole[:, 0] - design @ weights) ** 2)
        score = len(whole) * np.log(max(off, 1e-300)) + 2 * (order + 1)
        if score < best[0]:
            operator = np.eye(order, k=-1)
            operator[0] = weights[:-1]
            best = score, operator, float(weights[-1])
    _, operator, offset = best
    order = len(operator)
    # The constant is one more observable, which stays 1.
    with_one = np.zeros((order + 1, order + 1))
    with_one[:order, :order], with_one[0, order], with_one[order, order] = operator, offset, 1.0
    lifted = np.column_stack([rows[:, :order], np.ones(len(rows))])
    lifted[np.isnan(lifted).any(axis=1)] = np.nan
    return errors(with_one, lifted, held, num_steps, 1)[:, :, 0]

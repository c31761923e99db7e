"""Tests of the fit of a model: standardised residuals should be independent and standard normal."""

import math
from typing import NamedTuple

import jax
import numpy as np

__all__ = ["Checks", "autocorrelation", "checks"]


class Checks(NamedTuple):
    """Tests of the residuals of one series.

    Attributes:
        name: of the series.
        num_observations: how many residuals there are.
        mean, std: of the residuals; 0 and 1 when the model is right.
        independence: probability of autocorrelations at least as large, if there were none
            (Ljung and Box, lags up to 20).
        normality: probability of skewness and kurtosis at least as far from those of a normal
            distribution, if it were one (Jarque and Bera).
    """

    name: str
    num_observations: int
    mean: float
    std: float
    independence: float
    normality: float


def autocorrelation(residuals: np.ndarray, num_lags: int) -> np.ndarray:
    """Autocorrelation at lags 1 to ``num_lags``; pairs with a missing entry are left out.

    Args:
        residuals: ``[t]``, NaN where missing.
        num_lags: fewer than t.

    >>> autocorrelation(np.array([1.0, -1.0, 1.0, -1.0]), 1).tolist()
    [-0.75]
    """
    off = residuals - np.nanmean(residuals)
    total = np.nansum(off**2)
    found = [np.nansum(off[lag:] * off[:-lag]) for lag in range(1, num_lags + 1)]
    return np.array(found) / total if total > 0 else np.full(num_lags, np.nan)


def checks(name: str, residuals: np.ndarray) -> Checks:
    """Tests of one series; NaN where there are fewer than 8 observations.

    Args:
        name: of the series.
        residuals: ``[t]``, NaN where missing.

    Source: Ljung and Box, On a measure of lack of fit in time series models (1978); Jarque and
        Bera, Efficient tests for normality, homoscedasticity and serial independence of regression
        residuals (1980).

    >>> checks("x", np.random.default_rng(0).normal(size=500)).independence > 0.01
    True
    """
    known = residuals[~np.isnan(residuals)]
    n = len(known)
    if n < 8 or np.std(known) == 0:
        return Checks(name, n, *[math.nan] * 4)
    num_lags = min(20, n // 4)
    lags = np.arange(1, num_lags + 1)
    correlations = autocorrelation(residuals, num_lags)
    statistic = n * (n + 2) * np.sum(correlations**2 / np.maximum(n - lags, 1))
    z = (known - np.mean(known)) / np.std(known)
    bera = n / 6 * (np.mean(z**3) ** 2 + (np.mean(z**4) - 3) ** 2 / 4)
    independence = float(jax.scipy.special.gammaincc(num_lags / 2.0, statistic / 2.0))
    return Checks(
        *(name, n, float(np.mean(known)), float(np.std(known))),
        *(independence, math.exp(-bera / 2)),
    )

"""Lifted observables of a series for ``--model koopman``: powers of its newest rows, and the pairs
of them that follow each other without a gap.
"""

from math import comb
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.cli.fast_compilation import compiled_once
from vfejax.koopman import dictionaries

__all__ = ["KoopmanModel", "Lifting", "forecasts", "num_observables", "windows"]


class Lifting(NamedTuple):
    """Which observables: monomials up to a degree of the newest rows."""

    delays: int
    degree: int


class KoopmanModel(NamedTuple):
    """A linear map of observables.

    Attributes:
        operator: ``[d, d]``, from the observables of a row to those of the next.
        centre: mean of the observables ``[d]``, which is taken off.
        mean, scale: of each series ``[o]``, to units of which observables are made.
        delays: number of rows in an observable.
        degree: most factors of a monomial.
    """

    operator: np.ndarray
    centre: np.ndarray
    mean: np.ndarray
    scale: np.ndarray
    delays: np.ndarray
    degree: np.ndarray

    @property
    def lifting(self) -> Lifting:
        return Lifting(int(self.delays), int(self.degree))

    def scaled(self, values: np.ndarray) -> np.ndarray:
        """Series ``[t, o]`` in the units of the model."""
        return (values - self.mean) / self.scale

    def lift(self, values: np.ndarray) -> np.ndarray:
        """Centred observables of every row ``[t, d]``; NaN where a row of them is missing."""
        return windows(self.scaled(values), self.lifting) - self.centre

    def series(self, observables: np.ndarray) -> np.ndarray:
        """Series ``[..., o]`` from centred observables ``[..., d]``, which begin with them."""
        o = len(self.mean)
        with np.errstate(over="ignore", invalid="ignore"):  # what grows without bound
            return self.mean + self.scale * (observables[..., :o] + self.centre[:o])


def num_observables(lifting: Lifting, num_series: int) -> int:
    """Monomials of degree 1 and more.

    >>> num_observables(Lifting(2, 2), 1)
    5
    """
    return comb(lifting.delays * num_series + lifting.degree, lifting.degree) - 1


def windows(values: np.ndarray, lifting: Lifting) -> np.ndarray:
    """Observables of every row, the row itself first.

    Args:
        values: ``[t, o]``, NaN where missing.
        lifting: which observables.

    Returns:
        ``[t, d]``; NaN where one of the rows is missing.

    >>> windows(np.array([[1.0], [2.0], [3.0]]), Lifting(2, 2))[2].tolist()
    [3.0, 2.0, 9.0, 6.0, 4.0]
    """
    t, o = values.shape
    rows = np.full((t, lifting.delays * o), np.nan)
    for lag in range(min(lifting.delays, t)):
        rows[lag:, lag * o : (lag + 1) * o] = values[: t - lag]
    found = rows
    if lifting.degree > 1:
        lift = dictionaries.polynomials(rows.shape[1], lifting.degree, constant=False)
        found = np.array(compiled_once(lift)(jnp.asarray(rows)))
    found[np.isnan(found).any(axis=1)] = np.nan
    return found


def forecasts(operator: np.ndarray, lifted: np.ndarray, num_steps: int, size: int) -> np.ndarray:
    """The first ``size`` observables 1, 2, ... steps ahead, by powers of the operator: nothing is
    lifted again.

    Args:
        operator: ``[d, d]``.
        lifted: ``[n, d]``.
        num_steps: p.
        size: number of observables wanted.

    Returns:
        ``[n, p, size]``.
    """
    found = np.empty((len(lifted), num_steps, size))
    with np.errstate(over="ignore", invalid="ignore"):  # what grows without bound
        for step in range(num_steps):
            lifted = lifted @ operator.T
            found[:, step] = lifted[:, :size]
    return found

"""The observables and the map that ``--model koopman`` chooses where options leave them open: those
whose forecasts of held-out rows are best.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.filter.config import FilterConfig
from vfejax.cli.filter.lifting import KoopmanModel, Lifting, forecasts, num_observables, windows
from vfejax.errors import UserError
from vfejax.koopman import delays, operators, streaming
from vfejax.koopman.streaming import Factor
from vfejax.types import Array

__all__ = ["STEPS", "Choice", "Method", "Split", "choose", "errors"]

STEPS = (1, 2, 4, 8)
"""Steps ahead at which forecasts are compared."""
LARGEST = 1000  # observables that a user may ask for
_LARGEST_TRIED = 64
_DELAYS = (1, 2, 4, 8, 16, 32)
_RANKS = (2, 4, 6, 8, 12, 16)
_RIDGES = (1e-6, 1e-3, 1e-1)
_BLOCK = 2048  # pairs that enter the statistics at once
_EXACT = 1e-24  # mean square of rounding
_WORTH = 0.99  # a larger model must lower the error by this factor


class Method(NamedTuple):
    """How the map is fitted. The ridge is a share of the variance of a series."""

    operator: str
    rank: int | None
    ridge: float


class Split(NamedTuple):
    """Rows ``[0, fit)`` fit candidates, ``[fit, held)`` choose among them, and ``[held, t)`` test
    the choice, which is fitted on ``[0, held)``.
    """

    fit: int
    held: int


class Choice(NamedTuple):
    """The model that was chosen, how it is fitted, and how many were tried."""

    model: KoopmanModel
    method: Method
    num_tried: int


class _Fitting(NamedTuple):
    """What all candidates are fitted by.

    Attributes:
        methods: those that are tried of each lifting.
        dim: number of observables of the largest lifting; those of the others are padded.
        update: adds pairs to the statistics, compiled.
        maps: a map by each method, of statistics and their number of observables, compiled.
    """

    methods: tuple[Method, ...]
    dim: int
    update: Callable[..., Factor]
    maps: Callable[..., list[Array]]


def _liftings(config: FilterConfig, num_series: int) -> list[Lifting]:
    """Those that the options allow, small ones first."""
    degrees = (config.degree,) if config.degree else (1, 2)
    lengths = (config.delays,) if config.delays else _DELAYS
    if config.operator == "total-least-squares":
        degrees = (1,)
    tried = [Lifting(length, degree) for degree in degrees for length in lengths]
    if config.delays and config.degree:
        limit = LARGEST
    else:
        smallest = min(num_observables(lifting, num_series) for lifting in tried)
        limit = max(_LARGEST_TRIED, smallest)
    kept = [lifting for lifting in tried if num_observables(lifting, num_series) <= limit]
    if not kept or num_observables(kept[0], num_series) > LARGEST:
        lifting = tried[0]
        raise UserError(
            f"--delays {lifting.delays} and --degree {lifting.degree} make "
            f"{num_observables(lifting, num_series)} observables of {num_series} series, and "
            f"{LARGEST} are the most; choose fewer, or fewer --columns"
        )
    return sorted(kept, key=lambda lifting: num_observables(lifting, num_series))


def _methods(config: FilterConfig, largest: int) -> tuple[Method, ...]:
    """Those that the options allow, simple ones first."""
    ridges = _RIDGES if config.ridge is None else (config.ridge,)
    ranks = tuple(r for r in _RANKS if r <= largest) or (1,)
    ranks = ranks if config.rank is None else (config.rank,)
    wanted = config.operator
    found: list[Method] = []
    if wanted in (None, "ridge") and config.rank is None:
        found += [Method("ridge", None, ridge) for ridge in ridges]
    if wanted in (None, "reduced-rank"):
        found += [Method("reduced-rank", rank, ridges[0]) for rank in ranks]
    if wanted in (None, "total-least-squares") and config.degree in (None, 1):
        found += [Method("total-least-squares", rank, 0.0) for rank in ranks]
    return tuple(found)


def _maps(
    methods: Sequence[Method], num_series: int, factor: Factor, known: ArrayLike
) -> list[Array]:
    """A map ``[d, d]`` by each method, of statistics whose first ``known`` observables are not
    padding. Those that are would make the others singular; alone, they predict nothing.
    """
    dim = factor.now.shape[0]
    padding = (jnp.arange(dim) >= known).astype(factor.now.dtype)
    regular = factor._replace(now=factor.now + jnp.diag(padding))
    found = []
    for operator, rank, ridge in methods:
        strength = ridge * factor.count
        if operator == "ridge":
            found.append(operators.ridge(regular, strength if ridge else 0.0))
        elif operator == "reduced-rank":
            found.append(operators.reduced_rank(regular, rank or dim, strength if ridge else 0.0))
        else:
            found.append(delays.total_least_squares(factor, rank or dim, num_series))
    return found


def _pairs(lifted: np.ndarray, end: int) -> np.ndarray:
    """Rows before ``end`` whose observables and those of the row before are known."""
    known = ~np.isnan(lifted[:, 0])
    return np.flatnonzero(known[1:end] & known[: end - 1]) + 1


def _factor(
    lifted: np.ndarray, rows: np.ndarray, dim: int, update: Callable[..., Factor]
) -> Factor:
    """Statistics of pairs that end in ``rows``, observables padded with zeros to ``dim``."""
    factor = streaming.init(dim, dtype=jnp.float64)
    more = ((0, 0), (0, dim - lifted.shape[1]))
    size = min(_BLOCK, len(lifted))
    for start in range(0, len(rows), size):
        chosen = rows[start : start + size]
        weights = (np.arange(size) < len(chosen)).astype(float)
        chosen = np.pad(chosen, (0, size - len(chosen)), mode="edge")
        now, following = (np.pad(lifted[chosen - lag], more) for lag in (1, 0))
        factor = update(factor, now, following, weights=weights)
    return factor


def errors(
    operator: np.ndarray, lifted: np.ndarray, begin: int, num_steps: int, size: int
) -> np.ndarray:
    """Errors of forecasts of the rows from ``begin`` on, from every row before each.

    Args:
        operator: ``[d, d]``.
        lifted: observables of all rows ``[t, d]``, NaN where unknown.
        begin: first row that counts.
        num_steps: p.
        size: o, the number of series.

    Returns:
        ``[t - begin, p, o]``, NaN where there is no forecast or no row.
    """
    t = len(lifted)
    origins = np.arange(max(begin - num_steps, 0), t - 1)
    origins = origins[~np.isnan(lifted[origins, 0])]
    ahead = forecasts(operator, lifted[origins], num_steps, size)
    found = np.full((t - begin, num_steps, size), np.nan)
    for step in range(num_steps):
        rows = origins + step + 1
        inside = (rows >= begin) & (rows < t)
        found[rows[inside] - begin, step] = lifted[rows[inside], :size] - ahead[inside, step]
    return found


def choose(
    config: FilterConfig, names: tuple[str, ...], values: np.ndarray, split: Split
) -> Choice:
    """Fit every model that the options allow, and the best one again on all rows that choose.

    Args:
        config: the command's options.
        names: of the series.
        values: ``[t, o]``, NaN where missing.
        split: of the rows.

    Raises:
        UserError: when no model can be fitted to the rows.
    """
    mean, scale = _units(names, values[: split.held])
    size = values.shape[1]
    liftings = _liftings(config, size)
    dim = max(num_observables(lifting, size) for lifting in liftings)
    if config.rank is not None:
        _check_rank(config.rank, dim)
    methods = _methods(config, dim)
    fitting = _Fitting(
        methods, dim, jax.jit(streaming.update), compiled_once(partial(_maps, methods, size))
    )
    scaled = (values - mean) / scale
    lifting, index, num_tried = _best(fitting, liftings, scaled, split)
    operator, centre = _refit(fitting, lifting, index, windows(scaled, lifting), split.held)
    counts = np.array(lifting.delays, float), np.array(lifting.degree, float)
    return Choice(KoopmanModel(operator, centre, mean, scale, *counts), methods[index], num_tried)


def _best(
    fitting: _Fitting, liftings: list[Lifting], scaled: np.ndarray, split: Split
) -> tuple[Lifting, int, int]:
    """The lifting and the index of the method whose forecasts are best, and how many were
    tried.
    """
    size, methods = scaled.shape[1], fitting.methods
    if len(liftings) * len(methods) == 1:
        return liftings[0], 0, 0
    best: tuple[float, Lifting, int] | None = None
    num_tried = 0
    for lifting in liftings:
        known = num_observables(lifting, size)
        lifted = windows(scaled, lifting)
        rows = _pairs(lifted, split.fit)
        if len(rows) < 2:
            continue
        lifted = lifted - np.mean(lifted[rows - 1], axis=0)
        found = fitting.maps(_factor(lifted, rows, fitting.dim, fitting.update), known)
        for index, (method, operator) in enumerate(zip(methods, found, strict=True)):
            if not _fits(method, lifting, known, len(rows)):
                continue
            num_tried += 1
            score = _score(np.asarray(operator)[:known, :known], lifted, split, size)
            if np.isfinite(score) and (best is None or score < _WORTH * best[0]):
                best = score, lifting, index
    if best is None:
        raise UserError(
            f"no --delays of {', '.join(str(x.delays) for x in liftings)} leaves pairs of rows "
            f"without a gap among the first {split.fit} to fit, and rows after them to choose by; "
            "give more rows, or fill in the missing ones"
        )
    return *best[1:], num_tried


def _refit(
    fitting: _Fitting, lifting: Lifting, index: int, lifted: np.ndarray, end: int
) -> tuple[np.ndarray, np.ndarray]:
    """The map of the method that was chosen, of all rows before ``end``, and the mean of the
    observables.
    """
    rows = _pairs(lifted, end)
    if not len(rows):
        raise UserError(
            f"no {lifting.delays + 1} rows in a line are complete among the first {end}; "
            "lower --delays, or fill in the missing ones"
        )
    centre = np.mean(lifted[rows - 1], axis=0)
    factor = _factor(lifted - centre, rows, fitting.dim, fitting.update)
    method, known = fitting.methods[index], lifted.shape[1]
    if method.operator != "total-least-squares":
        try:
            _check(factor, method, known)
        except ValueError as error:
            raise UserError(
                f"--delays {lifting.delays} --degree {lifting.degree}: {error}"
            ) from None
    return np.asarray(fitting.maps(factor, known)[index])[:known, :known], centre


def _fits(method: Method, lifting: Lifting, known: int, num_pairs: int) -> bool:
    if method.operator == "total-least-squares":
        return lifting.degree == 1 and (method.rank or 1) <= min(known, num_pairs)
    return (method.rank or 1) <= known and (method.ridge > 0 or num_pairs >= known)


def _check(factor: Factor, method: Method, known: int) -> None:
    if method.ridge == 0:
        cut = Factor(factor.now[:known, :known], factor.cross[:known], *factor[2:])
        streaming.check(cut, 0.0)


def _check_rank(rank: int, dim: int) -> None:
    if rank > dim:
        raise UserError(
            f"--rank {rank}: must be at most {dim}, the number of observables; raise --delays"
        )


def _score(operator: np.ndarray, lifted: np.ndarray, split: Split, size: int) -> float:
    """Geometric mean over :data:`STEPS` of the mean square errors on the rows that choose: a
    hundredth less counts the same at every step.
    """
    off = errors(operator, lifted[: split.held], split.fit, max(STEPS), size)
    chosen = off[:, [step - 1 for step in STEPS]]
    with np.errstate(over="ignore", invalid="ignore"):
        known = [column[~np.isnan(column)] for column in np.moveaxis(chosen, 1, 0)]
        squares = [np.mean(column**2) + _EXACT for column in known if len(column)]
        return float(np.exp(np.mean(np.log(squares)))) if squares else np.nan


def _units(names: tuple[str, ...], values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    for name, column in zip(names, values.T, strict=True):
        known = column[~np.isnan(column)]
        if not len(known) or not np.ptp(known) > 0:
            raise UserError(
                f"column '{name}' is constant in the {len(values)} rows that fit; leave it out "
                "with --columns"
            )
    return np.nanmean(values, axis=0), np.nanstd(values, axis=0)

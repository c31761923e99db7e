"""Estimates for each row: means, intervals, states, and residuals of the observations."""

import csv
import io
from collections.abc import Callable, Iterator, Mapping
from statistics import NormalDist
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from vfejax.data.series import Series
from vfejax.runs.report import Picture
from vfejax.types import Array, PyTree

__all__ = [
    "FREE_ENERGY",
    "LOG_EVIDENCE",
    "Details",
    "Engine",
    "Estimates",
    "Measure",
    "States",
    "future_stamps",
    "half_width",
    "table",
]


class Measure(NamedTuple):
    """What says how well a model explains a series.

    Attributes:
        name: in words.
        sign: of it in the log evidence, or in the bound that stands for it.
        improves: what an iteration of learning does to it.
    """

    name: str
    sign: int
    improves: str

    @property
    def column(self) -> str:
        """Its name in tables."""
        return self.name.replace(" ", "_").replace("-", "_")


LOG_EVIDENCE = Measure("log evidence", 1, "raises")
FREE_ENERGY = Measure("free energy", -1, "lowers")


class States(NamedTuple):
    """Discrete states over time.

    Attributes:
        probabilities: ``[rows, k]``.
        path: the most probable sequence (Viterbi), ``[t]``.
    """

    probabilities: np.ndarray
    path: np.ndarray


class Estimates(NamedTuple):
    """Estimates of t rows, and of the rows predicted after them.

    Attributes:
        mean: of each series without its observation noise, ``[rows, o]``.
        lower, upper: ends of its interval ``[rows, o]``; None where it takes only a few values.
        new_lower, new_upper: ends of the interval of a new observation, ``[rows, o]``.
        state_names: of further states.
        state_mean, state_lower, state_upper: ``[rows, s]``.
        states: discrete states, if there are any.
        log_evidence: log density of all observations, or minus the free energy, in nats.
        residuals: how far each observation was from its prediction by the rows before it, in
            standard deviations ``[t, o]``; NaN where it is missing.
    """

    mean: np.ndarray
    lower: np.ndarray | None
    upper: np.ndarray | None
    new_lower: np.ndarray
    new_upper: np.ndarray
    state_names: tuple[str, ...]
    state_mean: np.ndarray
    state_lower: np.ndarray
    state_upper: np.ndarray
    states: States | None
    log_evidence: float
    residuals: np.ndarray


class Details(NamedTuple):
    """What a report says of a model beyond its estimates.

    Attributes:
        summary: joins ``summary.json``.
        header, rows: the table at the top of the report.
        texts: ``(caption, text)`` each.
        notes: one remark each.
        pictures: drawn when it is called.
    """

    summary: dict[str, Any]
    header: tuple[str, ...]
    rows: list[tuple[Any, ...]]
    texts: list[tuple[str, str]]
    notes: list[str]
    pictures: Callable[[], Iterator[Picture]]


class Engine(NamedTuple):
    """A model of a series.

    Attributes:
        kind: name of the model.
        params: its parameters, a pytree of arrays.
        update: ``params -> (params, log evidence before)``: one step of expectation maximisation,
            pure.
        evidence: log evidence of parameters, or minus the free energy, in nats.
        estimates: ``(params, which, interval, horizon) -> Estimates``, which = smoothed, filtered
            or predicted.
        document: parameters as a file of ``--model`` has them.
        impossible: rows that no state explains.
        measure: what ``evidence`` is.
        num_blank: by which, the number of first rows that have no estimate.
        details: what the report says beyond the estimates.
    """

    kind: str
    params: PyTree
    update: Callable[[PyTree], tuple[PyTree, Array]]
    evidence: Callable[[PyTree], float]
    estimates: Callable[[PyTree, str, float, int], Estimates]
    document: Callable[[PyTree], dict]
    impossible: Callable[[PyTree], np.ndarray] = lambda params: np.zeros(0, int)
    measure: Measure = LOG_EVIDENCE
    num_blank: Mapping[str, int] = MappingProxyType({})
    details: Callable[[], Details] | None = None


def half_width(interval: float) -> float:
    """Half the width of a normal interval, in standard deviations.

    >>> round(half_width(0.95), 2)
    1.96
    """
    return NormalDist().inv_cdf(0.5 + interval / 2)


def future_stamps(series: Series, count: int) -> tuple[str, ...]:
    """Times of the rows after the last one, at the median distance."""
    if series.times is None or series.clock is None:
        return tuple(str(len(series.stamps) + i) for i in range(count))
    step = float(np.median(np.diff(series.times)))
    return tuple(series.clock.write(series.times[-1] + step * (i + 1)) for i in range(count))


def table(series: Series, found: Estimates, stamps: tuple[str, ...]) -> str:
    """``estimates.csv``: one line per row and per predicted row, with a header.

    Args:
        series: the data.
        found: the estimates.
        stamps: times of all rows.
    """
    rows = len(stamps)
    blank = np.full((rows - len(series.values), len(series.names)), np.nan)
    observed = np.concatenate([series.values, blank])
    columns: list[tuple[str, np.ndarray]] = []
    for j, name in enumerate(series.names):
        columns += [(name, observed[:, j]), (f"{name}_mean", found.mean[:, j])]
        if found.lower is not None and found.upper is not None:
            columns += [(f"{name}_lower", found.lower[:, j]), (f"{name}_upper", found.upper[:, j])]
        columns += [(f"{name}_new_lower", found.new_lower[:, j])]
        columns += [(f"{name}_new_upper", found.new_upper[:, j])]
    for j, name in enumerate(found.state_names):
        columns += [(f"{name}_mean", found.state_mean[:, j])]
        columns += [(f"{name}_lower", found.state_lower[:, j])]
        columns += [(f"{name}_upper", found.state_upper[:, j])]
    if found.states is not None:
        chances = found.states.probabilities
        columns += [(f"state_{k}_probability", chances[:, k]) for k in range(chances.shape[1])]
        path = np.full(rows, np.nan)
        path[: len(found.states.path)] = found.states.path
        columns += [("most_probable_path", path)]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([series.time_name, *(name for name, _ in columns)])
    for i, stamp in enumerate(stamps):
        writer.writerow([stamp, *(cell(values[i]) for _, values in columns)])
    return text.getvalue()


def cell(value: float) -> str:
    """A number as a cell: ten digits, empty for NaN."""
    return "" if np.isnan(value) else f"{value:.10g}"

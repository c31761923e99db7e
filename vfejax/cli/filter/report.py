"""The report of ``vfejax filter``: summary, tables, pictures."""

import itertools
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, NamedTuple

import numpy as np

from vfejax.cli.filter import koopman_report, synthetic_series
from vfejax.cli.filter.config import FilterConfig
from vfejax.cli.filter.estimates import (
    FREE_ENERGY,
    LOG_EVIDENCE,
    Engine,
    Estimates,
    Measure,
)
from vfejax.cli.filter.koopman import LOG_SCORE
from vfejax.cli.filter.pictures import pictures
from vfejax.cli.filter.residuals import Checks, checks
from vfejax.data.series import Series
from vfejax.problems.moving_target import Target
from vfejax.runs.directory import RunDirectory
from vfejax.runs.metrics import read_metrics
from vfejax.runs.report import Report
from vfejax.types import PyTree

__all__ = ["Result", "build", "summary_text"]

# Probability that any residual check of a run is mentioned by chance.
_DOUBTFUL = 0.01
_LONGEST_NAMES = 60  # letters of the names of series in a line


class Result(NamedTuple):
    """What a run computed.

    Attributes:
        config: the command's options.
        series: the data.
        engine: the model, at the parameters that the run began with.
        params: parameters at the end.
        found: the estimates.
        target: the truth, of the embedded target.
        run: the run, whose metrics are read.
        document: the text of ``model.toml``.
    """

    config: FilterConfig
    series: Series
    engine: Engine
    params: PyTree
    found: Estimates
    target: Target | None
    run: RunDirectory
    document: str


def build(result: Result) -> tuple[Report, dict[str, Any]]:
    """What the run shows in the end, and its summary."""
    config, series, found = result.config, result.series, result.found
    metrics = read_metrics(result.run, required=("step", result.engine.measure.column))
    tests = [checks(name, found.residuals[:, j]) for j, name in enumerate(series.names)]
    summary = _summary(result, metrics, tests)
    measure = result.engine.measure
    notes = [_first_line(summary, measure), *_check_notes(tests)]
    if measure is FREE_ENERGY:
        notes.append(
            "The free energy is the sum of those of overlapping windows of rows; compare it "
            "between runs of one order, and not with a log evidence."
        )
    if result.target is not None:
        notes.append(
            "The best possible estimate is the best on average over paths. On a single one another "
            "may be nearer by chance, and coverage may differ from that of many paths."
        )
    header: tuple[str, ...] = ("quantity", "value")
    rows: list[tuple[Any, ...]] = [
        (name.replace("_", " "), value)
        for name, value in summary.items()
        if isinstance(value, int | float | str)
    ]
    if "errors" in summary:
        percent = f"inside {100 * config.interval:g} % intervals (%)"
        header = ("rms distance from the truth", "at fixes (m)", "between fixes (m)", percent)
        rows = [
            (name, *(_fixed(row[key], places) for key, places in _COLUMNS.items()))
            for name, row in summary["errors"].items()
        ]
    shown = pictures(config, series, found, result.target, metrics, measure)
    texts = [("The parameters, model.toml: --model reads them again.", result.document)]
    if result.engine.details is not None:
        more = result.engine.details()
        summary, notes = {**summary, **more.summary}, [*notes, *more.notes]
        header, rows, texts = more.header, more.rows, [*more.texts, *texts]
        shown = itertools.chain(shown, more.pictures())
    return Report("vfejax filter", rows, shown, texts, notes, header), summary


_COLUMNS = {"at_fixes_m": 1, "between_fixes_m": 1, "coverage_percent": 1}


def _fixed(value: float | None, decimals: int) -> Decimal | str:
    return "" if value is None else Decimal(f"{value:.{decimals}f}")


def _summary(
    result: Result, metrics: dict[str, np.ndarray], tests: Sequence[Checks]
) -> dict[str, Any]:
    series, config, measure = result.series, result.config, result.engine.measure
    summary: dict[str, Any] = {
        "model": result.engine.kind,
        "estimate": config.estimate or "smoothed",
        "series": ", ".join(series.names),
        "rows": len(series.values),
        "missing_entries": int(np.isnan(series.values).sum()),
        f"{measure.column}_nats": _known(measure.sign * result.found.log_evidence),
    }
    if config.learn:
        summary["iterations"] = int(metrics["step"][-1])
        summary[f"{measure.column}_before_learning_nats"] = float(metrics[measure.column][0])
    summary["residuals"] = {
        test.name: {k: _known(v) for k, v in test._asdict().items() if k != "name"}
        for test in tests
    }
    if result.target is not None:
        rows = synthetic_series.accuracies(config, result.target, result.engine, result.found)
        summary["interval"] = config.interval
        summary["errors"] = {
            name: {
                "at_fixes_m": _known(row.seen),
                "between_fixes_m": _known(row.unseen),
                "coverage_percent": _known(100 * row.coverage),
            }
            for name, row in rows.items()
        }
    return summary


def _known(value: float) -> float | None:
    """A number for JSON, which has no NaN."""
    return value if math.isfinite(value) else None


def _first_line(summary: dict[str, Any], measure: Measure) -> str:
    learned = (
        f", {summary['iterations']} iterations of learning from "
        f"{summary[f'{measure.column}_before_learning_nats']:.6g} nats"
        if "iterations" in summary
        else ""
    )
    value = summary[f"{measure.column}_nats"]
    said = "-inf" if value is None else f"{value:.6g} nats"
    series = summary["series"]
    series = series if len(series) <= _LONGEST_NAMES else f"{series[:_LONGEST_NAMES]}..."
    return (
        f"{summary['rows']} rows of {series}, {summary['missing_entries']} entries "
        f"missing; {summary['estimate']} estimates by {summary['model']}; {measure.name} "
        f"{said}{learned}."
    )


def _check_notes(tests: Sequence[Checks]) -> list[str]:
    """What the residuals say against the model, series by series."""
    notes = []
    limit = _DOUBTFUL / (2 * max(len(tests), 1))
    for test in tests:
        doubts = []
        if test.independence < limit:
            doubts.append(f"depend on each other (probability {test.independence:.1g} by chance)")
        if test.normality < limit:
            doubts.append(f"are not normal (probability {test.normality:.1g} by chance)")
        if doubts:
            notes.append(
                f"The residuals of {test.name} {' and '.join(doubts)}: the model misses something, "
                "and its intervals may be wrong."
            )
    return notes


def summary_text(summary: dict[str, Any]) -> str:
    """The summary for a terminal."""
    known = (FREE_ENERGY, LOG_SCORE, LOG_EVIDENCE)
    measure = next(one for one in known if f"{one.column}_nats" in summary)
    lines = [f"{_first_line(summary, measure)} {summary['seconds']} s"]
    if "spectrum" in summary:
        lines += koopman_report.lines(summary)
    if "errors" in summary:
        width = max(len(name) for name in summary["errors"]) + 2
        percent = f"in {100 * summary['interval']:g} % intervals"
        lines.append(
            f"{'rms distance from the truth':<{width}}{'at fixes':>10}{'between':>11}{percent:>21}"
        )
        for name, row in summary["errors"].items():
            cells = [
                "-" if row[key] is None else f"{row[key]:.1f} {unit}"
                for key, unit in zip(_COLUMNS, ("m", "m", "%"), strict=True)
            ]
            lines.append(f"{name:<{width}}{cells[0]:>10}{cells[1]:>11}{cells[2]:>21}")
    return "\n".join(lines)

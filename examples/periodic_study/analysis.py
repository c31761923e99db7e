"""What README.md promises to make of the cells: comparisons, intervals, a table and a picture."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import factorial, prod
from typing import NamedTuple

import numpy as np
from arms import ARMS
from matplotlib.figure import Figure
from tasks import TASKS

from vfejax.figures.style import CURVES, INK, log_axis, new_figure, style_axes

__all__ = ["BASELINES", "COMPARISONS", "bootstrap", "compare", "draw", "excesses", "holm", "report"]

SEAM = [0, 1, -2, -1]  # places next to where the line would be closed
BASELINES = ("none", "sinusoidal", "rotary", "rotary-short", "rotary-alibi", "rotary-rolled")
STRONGEST = "strongest baseline"


class Comparison(NamedTuple):
    """A difference between two arms on a task, taken seed by seed.

    Attributes:
        task: where.
        arm: whose excess is taken,
        other: less that of this one.
        part: ``all`` places, or ``contrast``: seam less interior.
        expected: what the pre-registration says.
    """

    task: str
    arm: str
    other: str
    part: str
    expected: str


COMPARISONS = (
    Comparison("necklace", "toroidal", STRONGEST, "all", "below 0"),
    Comparison("ring", "toroidal", STRONGEST, "all", "below 0"),
    Comparison("seam", "toroidal", STRONGEST, "all", "above 0"),
    Comparison("open", "toroidal", STRONGEST, "all", "above 0"),
    Comparison("necklace", "toroidal", "rotary-rolled", "all", "below 0"),
    Comparison("ring", "toroidal", "rotary-rolled", "all", "below 0"),
    Comparison("necklace", "toroidal", "integers", "all", "open"),
    Comparison("ring", "toroidal", "integers", "all", "open"),
    Comparison("necklace", "joint", "toroidal", "all", "open"),
    Comparison("ring", "joint", "toroidal", "all", "open"),
    Comparison("necklace", "axial", "toroidal", "all", "0"),
    Comparison("ring", "axial", "toroidal", "all", "0"),
    Comparison("necklace", "axial-attention", "toroidal", "all", "open"),
    Comparison("ring", "axial-attention", "toroidal", "all", "open"),
    Comparison("ring", "toroidal", "rotary", "contrast", "below 0"),
    Comparison("seam", "toroidal", "rotary", "contrast", "above 0"),
)


class Interval(NamedTuple):
    """A mean difference, half the width of its 95 % interval, and its two-sided p-value."""

    mean: float
    half_width: float
    p_value: float


def _resamples(num: int) -> tuple[np.ndarray, np.ndarray]:
    """All ways to draw n of n with replacement: how often each was drawn ``[r, n]``, and the
    probabilities ``[r]``.
    """
    bars = np.array(list(combinations(range(2 * num - 1), num - 1))).reshape(-1, num - 1)
    edges = np.pad(bars, ((0, 0), (1, 1)), constant_values=((0, 0), (-1, 2 * num - 1)))
    counts = np.diff(edges, axis=1) - 1
    ways = [factorial(num) / prod(map(factorial, row)) for row in counts.tolist()]
    return counts, np.array(ways) / float(num) ** num


def bootstrap(differences: np.ndarray) -> Interval:
    """The symmetric bootstrap-t of a mean, with all resamples enumerated.

    With the mean m* and its standard error e* of a resample, ``t* = (m* - m) / e*``. The interval
    is ``m +- q e`` with the least q that ``|t*| <= q`` has probability 0.95 for, and p is the
    probability of ``|t*| >= |m| / e``.

    Args:
        differences: one for each seed, ``[n]`` with n from 2 to 10.

    Returns:
        Mean, half width and p-value; NaN where a difference is.

    Raises:
        ValueError: for another number of seeds.

    Source: Hall, On symmetric bootstrap confidence intervals (1988).
    """
    num = len(differences)
    if not 2 <= num <= 10:
        raise ValueError(f"differences must be of 2 to 10 seeds, got {num}")
    counts, probabilities = _resamples(num)
    mean = float(np.mean(differences))
    error = float(np.std(differences, ddof=1)) / num**0.5
    if np.isnan(error):
        return Interval(mean, error, error)
    if error == 0.0:
        return Interval(mean, 0.0, float(mean == 0.0))
    means = counts @ differences / num
    squares = counts @ (differences - mean) ** 2 / num - (means - mean) ** 2
    # A resample of one seed alone, or of equal ones, has no spread: t* is infinite there.
    is_flat = squares <= 1e-12 * num * error**2
    errors = np.sqrt(np.where(is_flat, 1.0, squares) / (num - 1))
    sizes = np.where(is_flat, np.inf, np.abs(means - mean) / errors)
    order = np.argsort(sizes)
    reach = np.searchsorted(np.cumsum(probabilities[order]), 0.95)
    slack = 1 - 1e-9  # a resample like the sample counts, whatever the rounding
    p_value = float(probabilities[sizes >= slack * abs(mean) / error].sum())
    return Interval(mean, float(sizes[order][reach]) * error, p_value)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """Holm's corrected p-values: the k-th smallest of m times m - k + 1, made to ascend, at most 1.

    Source: Holm, Scand. J. Statist. 6 (1979) 65.
    """
    values = np.asarray(p_values, float)
    order = np.argsort(values)
    scaled = values[order] * np.arange(len(values), 0, -1)
    result = np.empty_like(values)
    result[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return result


class Excess(NamedTuple):
    """Excess over the optimal loss per hidden symbol, one for each lane, ``[L]`` in nats."""

    all: np.ndarray
    seam: np.ndarray
    interior: np.ndarray

    @property
    def contrast(self) -> np.ndarray:
        """Seam less interior."""
        return self.seam - self.interior


def _excess(cell: Mapping) -> Excess:
    excess, counts = np.array(cell["excess"]), np.array(cell["counts"])
    is_seam = np.zeros(excess.shape[1], bool)
    is_seam[SEAM] = True
    places = (np.ones_like(is_seam), is_seam, ~is_seam)
    return Excess(*(excess[:, p].sum(axis=1) / counts[:, p].sum(axis=1) for p in places))


def _is_selection(cell: Mapping) -> bool:
    """Whether the lanes of a cell are rates on one seed."""
    return len({rate for _, rate in cell["lanes"]}) > 1


def excesses(cells: Sequence[Mapping]) -> dict[tuple[str, str], Excess]:
    """``{(task, arm): excess}`` of the evaluated seeds."""
    return {(c["task"], c["arm"]): _excess(c) for c in cells if not _is_selection(c)}


def strongest(cells: Sequence[Mapping], task: str) -> str | None:
    """The baseline of least excess on the validation stream; None while one is missing."""
    least = {
        c["arm"]: np.nanmin(_excess(c).all)
        for c in cells
        if c["task"] == task and c["arm"] in BASELINES and _is_selection(c)
    }
    return min(least, key=lambda arm: least[arm]) if len(least) == len(BASELINES) else None


def compare(cells: Sequence[Mapping]) -> list[tuple[Comparison, Interval | None]]:
    """The pre-registered comparisons; the other arm of the first four is filled in. None while a
    cell is missing.
    """
    found = excesses(cells)
    rows: list[tuple[Comparison, Interval | None]] = []
    for row in COMPARISONS:
        other = strongest(cells, row.task) if row.other == STRONGEST else row.other
        pair = [found.get((row.task, str(arm))) for arm in (row.arm, other)]
        if pair[0] is None or pair[1] is None:
            rows.append((row, None))
            continue
        difference = getattr(pair[0], row.part) - getattr(pair[1], row.part)
        rows.append((row._replace(other=str(other)), bootstrap(difference)))
    return rows


def _mean(values: np.ndarray) -> str:
    """Mean and 95 % half width of the seeds."""
    interval = bootstrap(values)
    return f"{interval.mean:.4f} ± {interval.half_width:.4f}"


def _means_table(cells: Sequence[Mapping]) -> list[str]:
    found = excesses(cells)
    rates = {(c["task"], c["arm"]): c["lanes"][0][1] for c in cells if not _is_selection(c)}
    lines = [
        "| arm | " + " | ".join(f"{task}: all, seam, interior (rate)" for task in TASKS) + " |",
        "| --- |" + " ---: |" * len(TASKS),
    ]
    for arm in ARMS:
        entries = []
        for task in TASKS:
            excess = found.get((task, arm))
            entries.append(
                "missing"
                if excess is None
                else f"{_mean(excess.all)}, {excess.seam.mean():.4f}, "
                f"{excess.interior.mean():.4f} ({rates[task, arm]:g})"
            )
        lines.append(f"| {arm} | " + " | ".join(entries) + " |")
    least = {c["task"]: np.mean(c["bayes"]) for c in cells if not _is_selection(c)}
    optimal = [f"{least[task]:.4f}" if task in least else "missing" for task in TASKS]
    return [*lines, "| *optimal loss* | " + " | ".join(optimal) + " |"]


def _comparisons_table(cells: Sequence[Mapping]) -> list[str]:
    rows = compare(cells)
    is_there = [i for i, (_, interval) in enumerate(rows) if interval is not None]
    # What is missing counts as 1: the correction is over all comparisons, always.
    corrected = holm([1.0 if interval is None else interval.p_value for _, interval in rows])
    lines = [
        "| task | comparison | difference | p | p, Holm | expected |",
        "| --- | --- | ---: | ---: | ---: | --- |",
    ]
    for index, (row, interval) in enumerate(rows):
        name = f"{row.arm} less {row.other}" + ("" if row.part == "all" else ", seam less interior")
        numbers = "missing | | "
        if index in is_there and interval is not None:
            claimed = "**" if corrected[index] < 0.05 else ""
            numbers = (
                f"{claimed}{interval.mean:+.4f} ± {interval.half_width:.4f}{claimed} | "
                f"{interval.p_value:.2g} | {corrected[index]:.2g}"
            )
        lines.append(f"| {row.task} | {name} | {numbers} | {row.expected} |")
    return lines


def report(cells: Sequence[Mapping]) -> str:
    """Both tables in Markdown."""
    return "\n".join([*_means_table(cells), "", *_comparisons_table(cells), ""])


def draw(cells: Sequence[Mapping]) -> Figure:
    """Excess of every arm on every task: seeds as dots, means of seam and interior as marks."""
    found = excesses(cells)
    figure = new_figure(7.6)
    axes = figure.subplots(2, 2, sharey=True)
    names = list(ARMS)
    for ax, (task, kind) in zip(axes.ravel(), TASKS.items(), strict=True):
        for row, arm in enumerate(names):
            if (task, arm) not in found:
                continue
            excess = found[task, arm]
            ax.plot(excess.all, np.full(len(excess.all), row), ".", color=INK, markersize=3)
            for values, mark, colour in (
                (excess.seam, "D", CURVES[1]),
                (excess.interior, "o", CURVES[0]),
            ):
                ax.plot(values.mean(), row, mark, color=colour, markersize=6, alpha=0.8)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        log_axis(ax.xaxis)
        style_axes(ax, xlabel="excess (nats per hidden symbol)", title=kind.title, grid="both")
    handles = [
        axes[0, 0].plot([], [], mark, color=colour, label=label, markersize=size)[0]
        for mark, colour, label, size in (
            (".", INK, "a seed, all places", 3),
            ("D", CURVES[1], "mean at the seam", 6),
            ("o", CURVES[0], "mean in the interior", 6),
        )
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure

"""Figures of a run: energies over steps, and errors against what is possible.

Every function takes plain arrays, NumPy or JAX, and returns a ``matplotlib.figure.Figure``: the
command, a notebook and a user's own script share them. Save one with ``figure.savefig(path)``.
Values that are not finite leave gaps; they are never replaced.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import ArrayLike

from vfejax.figures.style import (
    BLUE,
    CURVES,
    FAINT,
    FONT_SIZE,
    GREY,
    INK,
    OTHERS,
    as_array,
    label_right,
    log_axis,
    method_colours,
    new_figure,
    plain,
    style_axes,
)

__all__ = ["convergence", "energy_drift", "energy_terms", "error_bars", "rotation_errors"]

ORDERS_APART = 30.0  # values this far apart are read on a logarithmic axis
MAX_CURVE_POINTS = 2000  # more points than pixels only make a curve slow to draw


def _finite(values: np.ndarray) -> np.ndarray:
    return np.where(np.isfinite(values), values, np.nan)


def _last(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if finite.size else np.nan


def _curve(ax: Axes, x: np.ndarray, y: np.ndarray, **look: Any) -> None:
    ax.plot(
        x,
        _finite(y),
        marker="o" if len(x) == 1 else None,
        markersize=4,
        solid_capstyle="round",
        **look,
    )


def _set_energy_scale(ax: Axes, series: Sequence[np.ndarray]) -> str:
    """Linear, logarithmic or, when signs differ, symmetric-logarithmic y axis, whichever shows the
    smallest final value; its label.
    """
    label = "free energy (nats)"
    values = np.concatenate([y[np.isfinite(y)] for y in series])
    ends = np.abs([_last(y) for y in series])
    ends = ends[np.isfinite(ends) & (ends > 0)]
    if not ends.size or np.max(np.abs(values)) < ORDERS_APART * np.min(ends):
        return label
    if np.min(values) > 0:
        ax.set_yscale("log")
        return label
    # Six decades at most: below that a value is 0 at this figure's resolution.
    threshold = max(np.min(ends), 1e-6 * np.max(np.abs(values)))
    decade = 10.0 ** np.floor(np.log10(threshold))
    ax.set_yscale("symlog", linthresh=decade, linscale=0.6)
    return f"{label}, linear within ±{decade:g}"


def energy_terms(steps: ArrayLike, terms: Mapping[str, ArrayLike]) -> Figure:
    """Each term of the free energy and the total over steps.

    Args:
        steps: step numbers ``[t]``.
        terms: weighted terms in nats, each ``[t]``, by name. The one called ``total`` is drawn in
            black; without one, the sum of the terms is. A term that is 0 throughout is left out.

    Returns:
        One axes, linear, or logarithmic (symmetric-logarithmic with values of both signs) when
        values are orders of magnitude apart.

    Raises:
        ValueError: when ``terms`` is empty or an array does not fit ``steps``.
    """
    steps = as_array("steps", steps, "t")
    if not terms:
        raise ValueError("terms must hold at least one array")
    series = {
        name: _finite(as_array(f"terms[{name!r}]", y, len(steps))) for name, y in terms.items()
    }
    total = series.pop("total", None)
    total = np.sum(list(series.values()), axis=0) if total is None else total
    drawn = {name: y for name, y in series.items() if np.any(y != 0)}
    figure = new_figure(4.4)
    ax = figure.add_subplot()
    labels = []
    for index, (name, y) in enumerate(drawn.items()):
        colour = CURVES[index % len(CURVES)]
        _curve(ax, steps, y, color=colour, linewidth=1.6)
        labels.append((plain(name), _last(y), colour))
    _curve(ax, steps, total, color=INK, linewidth=2.4)
    labels.append(("total", _last(total), INK))
    ylabel = _set_energy_scale(ax, [*drawn.values(), total])
    ax.margins(x=0.01)
    style_axes(ax, xlabel="step", ylabel=ylabel, title="Free energy, term by term")
    label_right(ax, labels)
    return figure


def energy_drift(
    steps: ArrayLike, potential: ArrayLike, kinetic: ArrayLike, total: ArrayLike
) -> Figure:
    """Energies of a Hamiltonian run: the exchange above, the relative drift ``(H - H_0) / |H_0|``
    of their sum below.

    Args:
        steps: step numbers ``[t]``.
        potential: free energy F ``[t]``, in nats.
        kinetic: kinetic energy T ``[t]``, in nats.
        total: H = F + T ``[t]``, in nats.

    Returns:
        Two axes. Above, F and H are drawn less the first F, so that they share a scale with T.
        Below, if H_0 is exactly 0 the drift is ``H - H_0`` in nats, and labelled so.

    Raises:
        ValueError: when an array does not fit ``steps``.
    """
    steps = as_array("steps", steps, "t")
    potential = _finite(as_array("potential", potential, len(steps)))
    kinetic = _finite(as_array("kinetic", kinetic, len(steps)))
    total = _finite(as_array("total", total, len(steps)))
    figure = new_figure(5.6)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    start = potential[0]
    labels = []
    for name, y, colour in (
        ("potential", potential - start, CURVES[0]),
        ("kinetic", kinetic, CURVES[1]),
        ("total", total - start, INK),
    ):
        _curve(above, steps, y, color=colour, linewidth=1.6)
        labels.append((name, _last(y), colour))
    scale = abs(total[0]) if total[0] != 0 else 1.0
    _curve(below, steps, (total - total[0]) / scale, color=INK, linewidth=1.4)
    below.axhline(0.0, color=GREY, linewidth=0.8, zorder=0)
    below.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3), useMathText=True)
    above.margins(x=0.01)
    style_axes(above, ylabel=f"energy (nats), less {start:.6g}", title="Exchange of energy")
    drift = r"$(H - H_0)\,/\,|H_0|$" if total[0] != 0 else r"$H - H_0$ (nats)"
    style_axes(below, xlabel="step", ylabel=drift, title="Drift of the total energy")
    below.yaxis.get_offset_text().set(color=INK, fontsize=FONT_SIZE - 1)
    label_right(above, labels)
    return figure


def convergence(
    steps: ArrayLike,
    curves: Mapping[str, ArrayLike],
    *,
    floors: Mapping[str, float],
    ylabel: str = "error",
) -> Figure:
    """Errors against steps on a logarithmic axis, with horizontal lines for what is possible.

    Args:
        steps: step numbers ``[t]``.
        curves: errors, each ``[t]``, by name; values that are not positive leave gaps.
        floors: constant errors by name, such as ``alone`` and ``best possible``. One whose name
            ends with that of a curve, as ``best x`` for ``x``, takes its colour.
        ylabel: what the errors are, with their unit.

    Returns:
        One axes.

    Raises:
        ValueError: when ``curves`` is empty or an array does not fit ``steps``.
    """
    steps = as_array("steps", steps, "t")
    if not curves:
        raise ValueError("curves must hold at least one array")
    series = {name: as_array(f"curves[{name!r}]", y, len(steps)) for name, y in curves.items()}
    figure = new_figure(4.4)
    ax = figure.add_subplot()
    ax.set_yscale("log")
    colours = dict(zip(series, method_colours(series, (BLUE, *OTHERS)), strict=True))
    labels = []
    for (name, level), other in zip(floors.items(), method_colours(floors), strict=True):
        colour = next((colours[curve] for curve in series if name.endswith(curve)), other)
        if np.isfinite(level) and level > 0:
            ax.axhline(level, color=colour, linewidth=1.2, linestyle=(0, (5, 3)))
            labels.append((f"{plain(name)} {level:.3g}", float(level), colour))
    for name, y in series.items():
        y = np.where(y > 0, y, np.nan)
        _curve(ax, steps, y, color=colours[name], linewidth=2.0)
        labels.append((f"{plain(name)} {_last(y):.3g}", _last(y), colours[name]))
    ax.margins(x=0.01)
    log_axis(ax.yaxis)
    style_axes(ax, xlabel="step", ylabel=ylabel, title="Error against the truth")
    label_right(ax, labels)
    return figure


def _error_distribution(
    ax: Axes,
    name: str,
    x: np.ndarray,
    edges: tuple[float, float],
    colour: str,
    *,
    dashed: bool,
) -> None:
    """Share of the sorted errors x below each error, from edge to edge, and a dot at the median."""
    left, right = edges
    finite = x[np.isfinite(x)]
    keep = np.unique(
        np.linspace(0, len(finite) - 1, min(len(finite), MAX_CURVE_POINTS)).astype(int)
    )
    share = (keep + 1) / len(x)
    median = float(x[(len(x) - 1) // 2])
    ax.step(
        np.concatenate([[left], np.maximum(finite[keep], left), [right]]),
        np.concatenate([[0.0], share, share[-1:] if len(keep) else [0.0]]),
        where="post",
        color=colour,
        linewidth=2.0,
        linestyle=(0, (2, 2)) if dashed else "-",
        label=f"{plain(name)}, median {median:.3g}°",
    )
    ax.plot([max(median, left)], [0.5], "o", color=colour, markersize=4 if dashed else 8)


def rotation_errors(panels: Mapping[str, ArrayLike]) -> Figure:
    """Distribution of the errors of relative rotations, one curve per method.

    Args:
        panels: errors in degrees ``[pairs]``, at least 0, by method. Methods named alone, this run,
            best or maximum likelihood have the same colours here, in :func:`error_bars` and in
            :func:`convergence`.

    Returns:
        One axes: for each method the share of pairs whose error is below x, on a logarithmic axis,
        with its median in the legend. An error that is not finite counts as larger than all others;
        exact zeros are drawn at the left edge.

    Raises:
        ValueError: when ``panels`` or one of its arrays is empty, or an error is negative.
    """
    if not panels:
        raise ValueError("panels must hold at least one array")
    series = {
        name: np.sort(as_array(f"panels[{name!r}]", x, "pairs")) for name, x in panels.items()
    }
    for name, x in series.items():
        if np.any(x < 0):
            raise ValueError(
                f"panels[{name!r}] must hold errors of at least 0 degrees, got {np.nanmin(x)}"
            )
    positive = [x[np.isfinite(x) & (x > 0)] for x in series.values()]
    # The smallest hundredth of the pairs is luck, not worth a decade of the axis.
    left = min((np.quantile(x, 0.01) for x in positive if x.size), default=1.0) / 1.5
    right = max((x[-1] for x in positive if x.size), default=1.0) * 1.3
    figure = new_figure(4.4)
    ax = figure.add_subplot()
    for index, ((name, x), colour) in enumerate(
        zip(series.items(), method_colours(series), strict=True)
    ):
        # The last one, often the best possible, is dashed: a curve that agrees shows beneath.
        dashed = 0 < index == len(series) - 1
        _error_distribution(ax, name, x, (left, right), colour, dashed=dashed)
    ax.axhline(0.5, color=GREY, linewidth=0.8, zorder=0)
    ax.set_xlim(left, right)
    ax.set_ylim(0, 1.02)
    log_axis(ax.xaxis)
    ax.yaxis.set_major_formatter(PercentFormatter(1.0))
    style_axes(
        ax,
        xlabel="error of the relative rotation of a pair (degrees)",
        ylabel="share of pairs with a smaller error",
        title="Relative rotations against the truth",
        grid="both",
    )
    ax.legend(loc="best", frameon=False, fontsize=FONT_SIZE, labelcolor=INK)
    return figure


def _dots(ax: Axes, values: np.ndarray, colours: Sequence[str]) -> None:
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (1.0, 1.0)
    # Room on the right for the printed value, however far apart the rows are.
    reach = max(high / low, 4.0)
    ax.set_xlim(low / reach**0.2, high * reach**0.45)
    log_axis(ax.xaxis)
    for row, (value, colour) in enumerate(zip(values, colours, strict=True)):
        known = np.isfinite(value)
        x = value if known and value > 0 else ax.get_xlim()[0]
        if known:
            ax.plot([x], [row], "o", color=colour, markersize=9, clip_on=False)
        text = f"{value:.3g}" if known else "none"
        ax.annotate(
            text,
            (x, row),
            xytext=(9, 0),
            textcoords="offset points",
            va="center",
            color=INK if known else GREY,
            fontsize=FONT_SIZE,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
        )


def error_bars(rows: Sequence[tuple[str, float, float]]) -> Figure:
    """What was achieved beside what is possible: one row per method, one panel per kind of error.

    Args:
        rows: ``(name, landmark error in metres, rotation error in degrees)``, from top to bottom;
            NaN where a method has no such error.

    Returns:
        Two axes with logarithmic scales and the values printed beside the dots. (Dots, not bars: a
        bar has no foot on a logarithmic axis.)

    Raises:
        ValueError: when ``rows`` is empty or an error is negative.
    """
    if not rows:
        raise ValueError("rows must hold at least one row")
    names = [plain(name) for name, _, _ in rows]
    errors = as_array("rows", [row[1:] for row in rows], len(rows), 2)
    if np.any(errors < 0):
        raise ValueError(f"rows must hold errors of at least 0, got {np.nanmin(errors)}")
    figure = new_figure(1.5 + 0.38 * len(rows))
    left, right = figure.subplots(1, 2, sharey=True)
    for ax, values, xlabel in (
        (left, errors[:, 0], "landmark error (m)"),
        (right, errors[:, 1], "relative-rotation error (degrees)"),
    ):
        ax.hlines(
            range(len(rows)),
            0,
            1,
            transform=ax.get_yaxis_transform(),
            color=FAINT,
            linewidth=0.8,
            zorder=0,
        )
        _dots(ax, values, method_colours(names))
        style_axes(ax, xlabel=xlabel, grid="")
        ax.spines["left"].set_visible(False)
        ax.tick_params(axis="y", length=0)
    left.set_yticks(range(len(rows)), names, fontsize=FONT_SIZE)
    left.set_ylim(len(rows) - 0.4, -0.6)
    return figure

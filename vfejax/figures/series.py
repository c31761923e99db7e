"""Figures of series: bands over observations, checks of residuals, discrete states, and a track in
the plane.

Plain arrays in, a ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`.
"""

from collections.abc import Mapping
from statistics import NormalDist

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vfejax.figures.ellipses import ellipses
from vfejax.figures.style import (
    BLUE,
    CURVES,
    FAINT,
    GREEN,
    GREY,
    INK,
    ORANGE,
    VERMILLION,
    as_array,
    leave_room,
    log_axis,
    new_figure,
    style_axes,
)

__all__ = ["evidence", "residual_checks", "series_bands", "state_occupancy", "track"]


def series_bands(
    times: ArrayLike,
    observed: Mapping[str, ArrayLike],
    mean: ArrayLike,
    inner: tuple[ArrayLike, ArrayLike] | None,
    outer: tuple[ArrayLike, ArrayLike],
    *,
    interval: float,
    num_rows: int,
    truth: ArrayLike | None = None,
    xlabel: str = "row",
    dates: bool = False,
) -> Figure:
    """Each series with its estimate and two bands.

    Args:
        times: of all rows ``[rows]``, those predicted after the end among them.
        observed: values ``[t]`` of each series by name, NaN where missing.
        mean: estimates ``[rows, o]``.
        inner: ends of the intervals of the series without noise ``[rows, o]``; None without.
        outer: ends of the intervals of a new observation ``[rows, o]``.
        interval: their probability.
        num_rows: t, the number of rows with data.
        truth: true values ``[t, o]``, if they are known.
        xlabel: name of the time.
        dates: whether times are days since 1970, to be written as dates.

    Returns:
        One axes per series, one above the other.

    Raises:
        ValueError: when shapes do not fit.
    """
    names = list(observed)
    x = as_array("times", times, "rows")
    y = as_array("mean", mean, len(x), len(names))
    bands = [(outer, FAINT, f"{100 * interval:g} % of new observations")]
    if inner is not None:
        bands.append((inner, "#b9d4ea", f"{100 * interval:g} % interval of the estimate"))
    figure = new_figure(0.9 + 1.9 * len(names))
    axes = figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0]
    for j, (name, ax) in enumerate(zip(names, axes, strict=True)):
        for (lower, upper), colour, label in bands:
            ends = as_array("lower", lower, *y.shape), as_array("upper", upper, *y.shape)
            ax.fill_between(x, ends[0][:, j], ends[1][:, j], color=colour, linewidth=0, label=label)
        values = as_array(name, observed[name], num_rows)
        if truth is not None:
            true = as_array("truth", truth, num_rows, len(names))[:, j]
            ax.plot(x[:num_rows], true, color=GREEN, linewidth=1.2, label="truth")
        size = 3.0 if num_rows <= 400 else 1.2
        ax.plot(x[:num_rows], values, "o", color=GREY, markersize=size, label="observed")
        ax.plot(x, y[:, j], color=BLUE, linewidth=1.3, label="estimate")
        if num_rows < len(x):
            ax.axvline(x[num_rows - 1], color=GREY, linewidth=0.8, linestyle=(0, (4, 3)))
        _limit(ax, values, y[:, j])
        ax.margins(x=0.01)
        style_axes(ax, xlabel=xlabel if ax is axes[-1] else "", ylabel=name)
        _as_dates(ax, dates)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=5, frameon=False, fontsize=8.5)
    return figure


def _as_dates(ax: Axes, dates: bool) -> None:
    if dates:
        locator = AutoDateLocator()
        ax.xaxis.set_major_locator(locator)
        ax.xaxis.set_major_formatter(ConciseDateFormatter(locator))


def _limit(ax: Axes, values: np.ndarray, mean: np.ndarray) -> None:
    """Limits that show the data, whatever the first, vague intervals reach."""
    known = np.concatenate([values[np.isfinite(values)], mean[np.isfinite(mean)]])
    if len(known):
        low, high = known.min(), known.max()
        room = 0.25 * (high - low) or 1.0
        ax.set_ylim(low - room, high + room)


def residual_checks(
    times: ArrayLike,
    residuals: Mapping[str, ArrayLike],
    correlations: Mapping[str, ArrayLike],
    *,
    xlabel: str = "row",
    dates: bool = False,
) -> Figure:
    """Standardised residuals of each series: over time, their autocorrelation, and their quantiles
    against those of a normal distribution.

    Args:
        times: ``[t]``.
        residuals: ``[t]`` by name, NaN where missing.
        correlations: autocorrelation at lags 1, 2, ... by name.
        xlabel: name of the time.
        dates: whether times are days since 1970, to be written as dates.

    Returns:
        Three axes per series.

    Raises:
        ValueError: when an array does not fit ``times``.
    """
    x = as_array("times", times, "t")
    figure = new_figure(0.6 + 2.1 * len(residuals))
    axes = figure.subplots(len(residuals), 3, squeeze=False, width_ratios=(2, 1.2, 1))
    for (over_time, lags, quantiles), (name, values) in zip(axes, residuals.items(), strict=True):
        off = as_array(name, values, len(x))
        over_time.axhspan(-2, 2, color=FAINT, linewidth=0)
        over_time.plot(x, off, "o", color=BLUE, markersize=2.2)
        last = over_time is axes[-1, 0]
        style_axes(
            over_time,
            xlabel=xlabel if last else "",
            ylabel="standard deviations",
            title=f"{name}: residuals",
        )
        _as_dates(over_time, dates)
        known = np.sort(off[np.isfinite(off)])
        _draw_correlations(lags, as_array(name, correlations[name], "lags"), len(known))
        _draw_quantiles(quantiles, known)
    return figure


def _draw_correlations(ax: Axes, values: np.ndarray, count: int) -> None:
    lag = np.arange(1, len(values) + 1)
    limit = 1.96 / np.sqrt(max(count, 1))
    ax.axhspan(-limit, limit, color=FAINT, linewidth=0)
    ax.vlines(lag, 0, values, color=BLUE, linewidth=2.0)
    ax.axhline(0, color=GREY, linewidth=0.8)
    most = max(0.35, 1.15 * float(np.max(np.abs(np.nan_to_num(values)), initial=0.0)))
    ax.set_ylim(-most, most)
    style_axes(ax, xlabel="lag", title="autocorrelation")


def _draw_quantiles(ax: Axes, known: np.ndarray) -> None:
    count = len(known)
    normal = NormalDist()
    expected = [normal.inv_cdf((i + 0.5) / count) for i in range(count)]
    reach = max(3.0, 1.05 * float(np.max(np.abs(known), initial=0.0)))
    ax.plot([-reach, reach], [-reach, reach], color=GREY, linewidth=0.8)
    ax.plot(expected, known, "o", color=BLUE, markersize=2.2)
    style_axes(ax, xlabel="normal quantile", title="quantiles", grid="both")


def evidence(
    steps: ArrayLike, values: ArrayLike, name: str = "log evidence", sign: int = 1
) -> Figure:
    """How far the log evidence, or what stands for it, was from that of the last iteration.

    Args:
        steps: iterations ``[t]``.
        values: in nats ``[t]``.
        name: what they are.
        sign: 1 where more is better, -1 where less is.

    Returns:
        One axes, logarithmic.

    Raises:
        ValueError: when the arrays do not fit each other.
    """
    x = as_array("steps", steps, "t")
    y = as_array("values", values, len(x))
    shorter = np.isfinite(y) & np.isfinite(y[-1]) & (sign * y[-1] > sign * y)
    short = np.abs(np.subtract(y[-1], y, where=shorter, out=np.full_like(y, np.nan)))
    figure = new_figure(3.2)
    ax = figure.add_subplot()
    ax.plot(x, short, color=BLUE, linewidth=1.8, marker="o", markersize=3)
    if np.any(np.isfinite(short)):
        log_axis(ax.yaxis)
    side = "below" if sign > 0 else "above"
    title = f"{name.capitalize()} {y[0]:.6g} to {y[-1]:.6g} nats"
    style_axes(ax, xlabel="iteration", ylabel=f"nats {side} the last", title=title)
    return figure


def state_occupancy(
    times: ArrayLike,
    probabilities: ArrayLike,
    path: ArrayLike,
    *,
    xlabel: str = "row",
    dates: bool = False,
) -> Figure:
    """Probability of each discrete state over time, stacked, above the most probable path.

    Args:
        times: ``[t]``.
        probabilities: ``[t, k]``.
        path: state at each time ``[t]``.
        xlabel: name of the time.
        dates: whether times are days since 1970, to be written as dates.

    Returns:
        Two axes, one above the other.

    Raises:
        ValueError: when shapes do not fit.
    """
    x = as_array("times", times, "t")
    chance = as_array("probabilities", probabilities, len(x), "k")
    states = as_array("path", path, len(x))
    figure = new_figure(4.2)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(2, 1))
    k = chance.shape[1]
    colours = [CURVES[i % len(CURVES)] for i in range(k)]
    names = [f"state {i}" for i in range(k)]
    above.stackplot(x, chance.T, colors=colours, labels=names, linewidth=0)
    above.set_ylim(0, 1)
    style_axes(above, ylabel="probability", grid="")
    figure.legend(loc="outside upper left", ncols=min(k, 8), frameon=False, fontsize=8.5)
    below.step(x, states, where="mid", color=INK, linewidth=1.2)
    below.set_yticks(range(k))
    below.set_ylim(-0.5, k - 0.5)
    below.margins(x=0.01)
    style_axes(below, xlabel=xlabel, ylabel="path")
    _as_dates(below, dates)
    return figure


def track(
    observed: ArrayLike,
    truth: ArrayLike,
    mean: ArrayLike,
    covs: ArrayLike,
    *,
    interval: float,
    unit: str = "m",
    every: int = 5,
) -> Figure:
    """A path in the plane: the truth, what was seen of it, and the estimate with its ellipses.

    Args:
        observed: ``[t, 2]``, NaN where missing.
        truth: ``[t, 2]``.
        mean: estimates ``[t, 2]``.
        covs: their covariances ``[t, 2, 2]``.
        interval: probability that an ellipse holds.
        unit: of all of them.
        every: how many times apart the ellipses are.

    Returns:
        One axes with equal scales.

    Raises:
        ValueError: when shapes do not fit.
    """
    seen = as_array("observed", observed, "t", 2)
    true = as_array("truth", truth, *seen.shape)
    path = as_array("mean", mean, *seen.shape)
    spread = as_array("covs", covs, len(seen), 2, 2)
    missing = np.isnan(seen[:, 0])
    radius = np.sqrt(-2.0 * np.log1p(-interval))
    figure = new_figure(6.4)
    leave_room(figure)
    ax = figure.add_subplot()
    shown = np.arange(len(seen)) % every == 0
    for chosen, colour, label in (
        (shown & ~missing, BLUE, "where there was a fix"),
        (shown & missing, ORANGE, "where it is missing"),
    ):
        if np.any(chosen):
            outlines = ellipses(path[chosen], spread[chosen], radius)
            closed = np.concatenate([outlines, outlines[:, :1]], axis=1)
            name = f"{100 * interval:g} % ellipses {label}"
            lines = LineCollection(list(closed), colors=colour, linewidths=0.8, label=name)
            ax.add_collection(lines)
    ax.plot(*true.T, color=GREEN, linewidth=2.2, label="truth")
    ax.plot(*seen.T, "o", color=GREY, markersize=3, label="fixes")
    ax.plot(*path.T, color=BLUE, linewidth=1.6, label="estimate")
    ax.plot(*path[0], "o", color=VERMILLION, markersize=6, label="start")
    ax.set_aspect("equal", adjustable="datalim")
    style_axes(ax, xlabel=f"x ({unit})", ylabel=f"y ({unit})", grid="both")
    ax.legend(frameon=False, fontsize=8.5, loc="best")
    return figure

"""Figure of the latencies of a loop with deadlines, and of how deeply it planned."""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vfejax.figures.style import (
    BLUE,
    FONT_SIZE,
    INK,
    VERMILLION,
    as_array,
    log_axis,
    new_figure,
    style_axes,
)

__all__ = ["latency_histogram"]


def latency_histogram(
    edges: ArrayLike,
    counts: ArrayLike,
    *,
    deadline: float,
    quantiles: Mapping[str, float],
    depths: Mapping[int, int],
) -> Figure:
    """How long answers took, and how many were planned how deeply.

    Args:
        edges: ends of bins ``[bins + 1]``, in milliseconds, rising.
        counts: cycles ``[bins]``.
        deadline: in milliseconds.
        quantiles: latencies to mark, by what they are called.
        depths: cycles by depth.

    Raises:
        ValueError: when shapes do not fit.
    """
    heights = as_array("counts", counts, "bins")
    ends = as_array("edges", edges, len(heights) + 1)
    figure = new_figure(3.4)
    ax, side = figure.subplots(1, 2, width_ratios=[4, 1])
    late = ends[:-1] >= deadline
    ax.stairs(heights, ends, fill=True, color=BLUE)
    ax.stairs(np.where(late, heights, 0), ends, fill=True, color=VERMILLION)
    ax.set_xlim(min(ends[0], deadline) / 1.3, max(ends[-1], deadline) * 1.3)
    ax.set_ylim(0.7, 2.5 * max(heights.max(), 1))
    log_axis(ax.xaxis)
    log_axis(ax.yaxis)
    _mark(ax, deadline, f"deadline {deadline:.3g} ms", VERMILLION, "-", 0.98)
    for place, (name, value) in enumerate(quantiles.items(), 1):
        _mark(ax, value, f"{name} {value:.3g} ms", INK, ":", 0.98 - 0.08 * place)
    style_axes(ax, xlabel="latency of an answer (ms)", ylabel="cycles", title="Latency")
    names = [str(depth) for depth in depths]
    side.barh(names, list(depths.values()), color=BLUE, height=0.6)
    side.invert_yaxis()
    style_axes(side, xlabel="cycles", ylabel="depth", title="Planning depth", grid="x")
    side.locator_params(axis="x", nbins=3)
    return figure


def _mark(ax: Axes, x: float, text: str, colour: str, line: str, height: float) -> None:
    """A vertical line with its name, on the side where there is room."""
    ax.axvline(x, color=colour, linewidth=1.0, linestyle=line)
    low, high = np.log(ax.get_xlim())
    left = np.log(x) > 0.5 * (low + high)
    ax.annotate(
        text,
        (x, height),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if left else 4, 0),
        textcoords="offset points",
        ha="right" if left else "left",
        va="top",
        color=colour,
        fontsize=FONT_SIZE - 1,
    )

"""Figures of phases: curves over the temperature.

Plain arrays in, a ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vfejax.figures.style import (
    CURVES,
    FONT_SIZE,
    GREY,
    INK,
    as_array,
    log_axis,
    new_figure,
    plain,
    style_axes,
)

__all__ = ["phase_diagram"]


def phase_diagram(
    temperature: ArrayLike,
    panels: Mapping[str, Mapping[str, ArrayLike]],
    *,
    reference: Mapping[str, Sequence[tuple[float, float]]] | None = None,
) -> Figure:
    """Order parameters over the temperature, one panel each.

    Args:
        temperature: ``[t]`` in nats, positive, in any order; the axis is logarithmic.
        panels: curves ``[t]`` by panel and by the name of the sweep; write the unit into the name
            of the panel. A sweep has one colour in all panels.
        reference: points ``(temperature, value)`` of a theory by panel.

    Returns:
        Panels side by side, two in a row.

    Raises:
        ValueError: when there is no panel, a temperature is not positive, or a curve does not fit.
    """
    tau = as_array("temperature", temperature, "t")
    if not np.all(tau > 0):
        raise ValueError(f"temperature must be positive, got {tau.min()}")
    if not panels:
        raise ValueError("panels must hold at least one panel")
    order = np.argsort(tau)
    names = list(dict.fromkeys(name for curves in panels.values() for name in curves))
    colours = dict(zip(names, (CURVES[i % len(CURVES)] for i in range(len(names))), strict=True))
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    figure = new_figure(0.6 + 2.3 * rows)
    for index, (title, curves) in enumerate(panels.items()):
        ax = figure.add_subplot(rows, columns, index + 1)
        points = (reference or {}).get(title, ())
        if len(points):
            x, y = np.asarray(points, float).T
            ax.plot(x, y, "o", color=GREY, markersize=3.5, alpha=0.6, label="theory", zorder=1)
        for name, values in curves.items():
            curve = as_array(f"panels[{title!r}][{name!r}]", values, len(tau))
            ax.plot(tau[order], curve[order], color=colours[name], linewidth=1.8, label=plain(name))
        ax.set_xlim(tau.min(), tau.max() if len(tau) > 1 else tau.max() * 2)
        log_axis(ax.xaxis)
        lowest = index + columns >= len(panels)
        style_axes(ax, xlabel="temperature (nats)" if lowest else "", title=plain(title))
        if index == 0:
            ax.legend(frameon=False, fontsize=FONT_SIZE - 1, labelcolor=INK)
    return figure

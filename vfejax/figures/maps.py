"""Figures of non-negative numbers over two axes: several panels on one scale of colours."""

from collections.abc import Mapping

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from vfejax.figures.style import VOID, as_array, new_figure, style_axes, style_colour_bar

__all__ = ["heat_maps"]

DECADES = 4.0  # that the colours tell apart
COLOURS = "viridis"


def heat_maps(
    panels: Mapping[str, ArrayLike],
    *,
    xlabel: str,
    ylabel: str,
    label: str,
    columns: int = 1,
) -> Figure:
    """Images side by side, on one logarithmic scale of four decades below the largest number.

    Args:
        panels: ``[rows, columns]`` by name, all of one shape; the names stand above the panels.
            Entries that are not positive, or not finite, are grey.
        xlabel: what the columns of a panel are, numbered from 0 to the right.
        ylabel: what the rows of a panel are, numbered from 0 upwards.
        label: what the numbers are.
        columns: panels side by side.

    Returns:
        One axes per panel, and one for the colours.

    Raises:
        ValueError: for no panel, panels of different shapes, or fewer than one column.
    """
    if not panels or columns < 1:
        raise ValueError(
            f"panels must hold at least one array, and columns be at least 1, got {len(panels)} "
            f"and {columns}"
        )
    size = as_array("panels", next(iter(panels.values())), "rows", "columns").shape
    arrays = {name: as_array(f"panels[{name!r}]", x, *size) for name, x in panels.items()}
    known = {name: np.where(np.isfinite(x) & (x > 0), x, np.nan) for name, x in arrays.items()}
    largest = max((np.nanmax(x) for x in known.values() if np.any(x > 0)), default=1.0)
    scale = LogNorm(largest * 10**-DECADES, largest)
    colours = colormaps[COLOURS].with_extremes(bad=VOID)
    rows = -(-len(known) // columns)
    figure = new_figure(0.9 + rows * (0.7 + 0.16 * min(size[0], 12)))
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
    for ax in grid.ravel()[len(known) :]:
        ax.set_visible(False)
    edges = [np.arange(n + 1) - 0.5 for n in reversed(size)]
    for index, (ax, (name, x)) in enumerate(zip(grid.ravel(), known.items(), strict=False)):
        ax.set_facecolor(VOID)
        image = ax.pcolormesh(*edges, np.ma.masked_invalid(x), norm=scale, cmap=colours)
        style_axes(
            ax,
            xlabel=xlabel if index + columns >= len(known) else "",
            ylabel=ylabel if index % columns == 0 else "",
            title=name,
            grid="",
        )
        for axis in (ax.xaxis, ax.yaxis):
            axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    bar = figure.colorbar(image, ax=grid, extend="min", shrink=0.9, aspect=30)
    style_colour_bar(bar, label)
    return figure

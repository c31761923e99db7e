"""An episode of an agent as frames of an animation: place, beliefs, probabilities of the next
action.

Plain arrays in, ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox
from numpy.typing import ArrayLike

from vfejax.figures.grid_worlds import Mark, draw_map, draw_way
from vfejax.figures.style import (
    BLUE,
    FONT_SIZE,
    GREEN,
    INK,
    as_array,
    leave_room,
    new_figure,
    style_axes,
)

__all__ = ["Bars", "Ground", "frames"]

_WIDTH = 6.4  # inches; a film is small, so that it can be sent


class Bars(NamedTuple):
    """Probabilities that change.

    Attributes:
        values: ``[t, k]``.
        names: of the k of them.
        chosen: one of them that is drawn in another colour, integers ``[t]``; None for none.
    """

    values: ArrayLike
    names: Sequence[str]
    chosen: ArrayLike | None = None


class Ground(NamedTuple):
    """A map and the way of an agent on it.

    Attributes:
        cells: row and column of each place, ``[s, 2]``.
        marks: what some places are.
        path: the places of the agent, integers ``[t]``.
        believed: where the agent believes to be, probabilities ``[t, s]``.
        filled: how strongly places are filled, ``[t]`` each, from 0 to 1.
    """

    cells: ArrayLike
    marks: Mapping[int, Mark]
    path: ArrayLike
    believed: ArrayLike
    filled: Mapping[int, ArrayLike]


def frames(panels: Mapping[str, Bars], ground: Ground | None = None) -> Iterator[Figure]:
    """One figure for each moment.

    Args:
        panels: probabilities by name, beside the map.
        ground: where it happens; None where there is no map.

    Yields:
        The same figure, drawn anew: use or save it before the next is asked for.

    Raises:
        ValueError: for no panel, and when arrays do not fit each other.
    """
    if not panels:
        raise ValueError("panels must hold at least one entry")
    values = [
        as_array(f"panels[{name!r}].values", bars.values, "t", len(bars.names))
        for name, bars in panels.items()
    ]
    heights = [0.5 + 0.24 * len(bars.names) for bars in panels.values()]
    figure = new_figure(max(0.4 + sum(heights), 2.6), width=_WIDTH)
    leave_room(figure)
    places: list[Bbox] = []
    for moment in range(len(values[0])):
        figure.clear()
        grid = figure.add_gridspec(
            len(panels),
            1 if ground is None else 2,
            height_ratios=heights,
            width_ratios=None if ground is None else (3, 1),
        )
        if ground is not None:
            _draw_ground(figure.add_subplot(grid[:, 0]), ground, moment)
        for i, (name, bars) in enumerate(panels.items()):
            _draw_bars(figure.add_subplot(grid[i, -1]), name, values[i][moment], bars, moment)
        if not places:
            # Laid out once: it takes longer than drawing, and nothing may jump in a film.
            figure.get_layout_engine().execute(figure)  # type: ignore[union-attr]
            figure.set_layout_engine("none")
            places = [ax.get_position(original=True) for ax in figure.axes]
        for ax, place in zip(figure.axes, places, strict=True):
            ax.set_position(place, which="original")
        yield figure


def _draw_ground(ax: Axes, ground: Ground, moment: int) -> None:
    cells = as_array("cells", ground.cells, "s", 2)
    believed = as_array("believed", ground.believed, "t", len(cells))[moment]
    filled = {place: float(np.asarray(x)[moment]) for place, x in ground.filled.items()}
    draw_map(ax, cells, ground.marks, colormaps["Blues"](0.7 * believed), filled=filled)
    draw_way(ax, cells, np.asarray(ground.path)[: moment + 1])
    ax.set_title(f"observation {moment}", color=INK, fontsize=FONT_SIZE + 1, loc="left")


def _draw_bars(ax: Axes, name: str, values: np.ndarray, bars: Bars, moment: int) -> None:
    colours = [BLUE] * len(values)
    if bars.chosen is not None:
        colours[int(np.asarray(bars.chosen)[moment])] = GREEN
    ax.barh(range(len(values)), values, color=colours, height=0.7)
    ax.set_yticks(range(len(values)), bars.names)
    ax.set_xlim(0.0, 1.0)
    ax.set_xticks([0, 1])
    ax.invert_yaxis()
    style_axes(ax, title=name, grid="")

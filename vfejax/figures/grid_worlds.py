"""Figures of walks on a map of square places: where agents went, and the way of one of them.

Plain arrays in, a ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.patheffects import Normal, Stroke
from numpy.typing import ArrayLike

from vfejax.figures.style import (
    FONT_SIZE,
    GREEN,
    INK,
    VERMILLION,
    as_array,
    leave_room,
    new_figure,
    style_colour_bar,
)

__all__ = ["Mark", "Walk", "draw_map", "draw_way", "walks"]

_WALL = "#5a606b"
_EDGES = {"start": INK, "cue": "#b07800", "trap": VERMILLION, "goal": GREEN}
_RIM = 0.5  # of wall around the places
_LANE = 0.13  # how far to its right a step is drawn, so that ways back can be told apart
_SQUARE = 1e-6  # cosine below which a corner is a square one
_HALF = 0.5
_DARKEST = 0.6  # of the colour map, so that letters stay readable


class Mark(NamedTuple):
    """What a place is.

    Attributes:
        text: written in it.
        kind: decides its colour.
    """

    text: str
    kind: Literal["start", "cue", "trap", "goal"]


class Walk(NamedTuple):
    """Where agents went.

    Attributes:
        visits: mean number of observations that an agent made at each place, ``[s]``.
        path: the places of one of them in their order, ``[t]``.
        reward: the place where its reward was; None for none.
    """

    visits: ArrayLike
    path: ArrayLike
    reward: int | None = None


def walks(cells: ArrayLike, marks: Mapping[int, Mark], panels: Mapping[str, Walk]) -> Figure:
    """Maps side by side: how often agents were at each place, and the way of one of them.

    Args:
        cells: row and column of each place ``[s, 2]``, integers; all else is wall.
        marks: what some places are.
        panels: walks by their names, which stand above.

    Returns:
        One axes for each walk, and one for the colours. Steps are drawn to the right of their
        direction, so that the way back lies beside the way there; the reward is filled.

    Raises:
        ValueError: for no panel, and when arrays do not fit each other.
    """
    where = as_array("cells", cells, "s", 2)
    if not panels:
        raise ValueError("panels must hold at least one walk")
    counts = {n: as_array(f"panels[{n!r}].visits", w.visits, len(where)) for n, w in panels.items()}
    top = max(1.0, *(float(x.max()) for x in counts.values()))
    rows, columns = np.ptp(where, axis=0) + 1 + 2 * _RIM
    height = 0.9 + (6.9 / len(panels)) * rows / columns
    figure = new_figure(float(np.clip(height, 1.8, 9.0)))
    leave_room(figure)
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    shades = colormaps["Blues"]
    for ax, (name, walk) in zip(axes, panels.items(), strict=True):
        colours = shades(_DARKEST * counts[name] / top)
        filled = {} if walk.reward is None else {walk.reward: 1.0}
        draw_map(ax, where, marks, colours, filled=filled)
        draw_way(ax, where, walk.path)
        ax.set_title(name, color=INK, fontsize=FONT_SIZE + 1, loc="left")
    bar = figure.colorbar(
        ScalarMappable(Normalize(0.0, top / _DARKEST), shades), ax=axes, shrink=0.85, aspect=14
    )
    bar.ax.set_ylim(0.0, top)
    style_colour_bar(bar, "observations (mean)")
    return figure


def draw_map(
    ax: Axes,
    cells: np.ndarray,
    marks: Mapping[int, Mark],
    colours: ArrayLike,
    *,
    filled: Mapping[int, float],
) -> None:
    """Places on walls, with a letter and a frame where they are something.

    Args:
        ax: where.
        cells: row and column of each place, ``[s, 2]``.
        marks: what some places are.
        colours: of the places, ``[s, 4]``.
        filled: how strongly marked places are filled, from 0 to 1.
    """
    low, high = cells.min(axis=0) - 0.5 - _RIM, cells.max(axis=0) + 0.5 + _RIM
    ax.add_patch(Rectangle((low[1], low[0]), *(high - low)[::-1], color=_WALL, linewidth=0))
    for place, ((row, column), colour) in enumerate(zip(cells, np.asarray(colours), strict=True)):
        ax.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor="white", edgecolor="none")
        )
        ax.add_patch(
            Rectangle((column - 0.5, row - 0.5), 1, 1, facecolor=colour, edgecolor="white")
        )
        if place in marks:
            _draw_mark(ax, column, row, marks[place], filled.get(place, 0.0))
    ax.set_xlim(low[1], high[1])
    ax.set_ylim(high[0], low[0])
    ax.set_aspect("equal")
    ax.set_axis_off()


def _draw_mark(ax: Axes, column: float, row: float, mark: Mark, filled: float) -> None:
    colour, (left, up) = _EDGES[mark.kind], (0.32, 0.26) if mark.kind == "start" else (0.16, 0.12)
    if mark.kind != "start":
        ax.add_patch(
            FancyBboxPatch(
                (column - 0.36, row - 0.36),
                0.72,
                0.72,
                boxstyle="round,pad=0,rounding_size=0.14",
                facecolor=(colour, 0.85 * filled),
                edgecolor=colour,
                linewidth=1.6,
            )
        )
    ax.text(
        column - left,
        row - up,
        mark.text,
        color="white" if filled > _HALF else colour,
        fontsize=FONT_SIZE - 1,
        fontweight="bold",
        ha="center",
        va="center",
        zorder=8,
    )


def draw_way(ax: Axes, cells: np.ndarray, path: ArrayLike) -> None:
    """A way from place to place, each step to the right of its direction; a dot is where it ends.

    Args:
        ax: where the map is drawn.
        cells: row and column of each place, ``[s, 2]``.
        path: the places in their order, integers ``[t]``.

    Raises:
        ValueError: when the path is empty or leaves the map.
    """
    places = as_array("path", path, "t").astype(int)
    if places.min() < 0 or places.max() >= len(cells):
        raise ValueError(
            f"path must be places, 0 to {len(cells) - 1}, got {places.min()} to {places.max()}"
        )
    points = np.asarray(cells, np.float64)[places, ::-1]
    moved = np.flatnonzero(np.any(np.diff(points, axis=0) != 0, axis=1))
    lane = points[:1]
    if len(moved):
        before, after = points[moved], points[moved + 1]
        unit = (after - before) / np.linalg.norm(after - before, axis=1, keepdims=True)
        lane = _lane(before, after, unit)
        halo = [Stroke(linewidth=4.0, foreground="white"), Normal()]
        ax.plot(*lane.T, color=INK, linewidth=1.8, path_effects=halo, zorder=5)
        for middle, (right, down) in zip((before + after) / 2 + _aside(unit), unit, strict=True):
            angle = np.degrees(np.arctan2(-down, right)) - 90
            ax.plot(*middle, marker=(3, 0, angle), color=INK, markersize=7, zorder=6)
    ax.plot(*lane[0], "o", color="white", markeredgecolor=INK, markersize=7, zorder=7)
    ax.plot(*lane[-1], "o", color=INK, markersize=8, zorder=7)


def _aside(unit: np.ndarray) -> np.ndarray:
    """To the right of directions ``[n, 2]``: rows grow downwards."""
    return _LANE * np.stack([-unit[:, 1], unit[:, 0]], axis=1)


def _lane(before: np.ndarray, after: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """Corners of a way whose steps lie to the right of their directions."""
    aside = _aside(unit)
    corners: list[np.ndarray] = []
    for i in range(len(unit)):
        square = i > 0 and abs(unit[i] @ unit[i - 1]) < _SQUARE
        if square:
            corners[-1] = before[i] + aside[i - 1] + aside[i]
        else:
            corners.append(before[i] + aside[i])
        corners.append(after[i] + aside[i])
    return np.array(corners)

"""Figures of compressed models: loss against bytes.

As in :mod:`vfejax.figures.energies`: plain arrays in, a ``matplotlib.figure.Figure`` out, and
values that are not finite leave gaps.
"""

from collections.abc import Iterator, Mapping
from itertools import cycle
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vfejax.figures.style import (
    CURVES,
    GREY,
    INK,
    as_array,
    log_axis,
    new_figure,
    plain,
    style_axes,
)

__all__ = ["loss_against_bytes"]

_MARKERS = "osD^vP"
_LETTERS = 8  # size of names, in points


def loss_against_bytes(
    groups: Mapping[str, Mapping[str, ArrayLike]],
    *,
    level: float | None = None,
    title: str = "Loss against bytes",
) -> Figure:
    """Every model as a point: bytes of its file, and its loss on held-out text.

    Args:
        groups: by name of a group, which has one colour: by name of a point, ``[2]`` bytes and loss
            in nats per token, or ``[s, 2]`` of several seeds, drawn as their mean with a line from
            the smallest to the largest loss.
        level: a loss drawn as a dashed line: that of the teacher.
        title: heading.

    Returns:
        One axes, bytes on a logarithmic scale.

    Raises:
        ValueError: when there is no point, or one is no pair of positive bytes and a loss.

    >>> points = {"rounded": {"4 bits": [120e3, 1.31]}, "reference": {"GPT": [[120e3, 1.4]]}}
    >>> [text.get_text() for text in loss_against_bytes(points).axes[0].texts]
    ['4 bits', 'GPT']
    """
    figure = new_figure(4.6)
    ax = figure.add_subplot()
    colours = cycle(zip(CURVES, _MARKERS, strict=True))
    drawn = [
        _point(ax, name, values, colour, marker, group if first == name else "")
        for (group, points), (colour, marker) in zip(groups.items(), colours, strict=False)
        for first in [next(iter(points), "")]
        for name, values in points.items()
    ]
    if not drawn:
        raise ValueError("groups must hold at least one point")
    names = [plain(name) for points in groups.values() for name in points]
    sizes = np.concatenate(drawn)[:, 0] / 1000
    ax.set_xlim(sizes.min() / 1.3, sizes.max() * 1.9)  # room for names on the right
    ax.margins(y=0.12)
    log_axis(ax.xaxis)
    if level is not None:
        ax.axhline(level, color=GREY, linewidth=1.0, linestyle=(0, (5, 3)), zorder=0)
    ylabel = "cross-entropy (nats per token)"
    style_axes(ax, xlabel="size of the file (kB)", ylabel=ylabel, title=title)
    places = np.stack([pairs.mean(axis=0) for pairs in drawn]) / [1000, 1]
    for name, place, (x, y, side) in zip(names, places, _room(ax, names, places), strict=True):
        ax.annotate(
            name,
            place,
            (x, y),
            textcoords="offset points",
            horizontalalignment=side,
            color=INK,
            fontsize=_LETTERS,
        )
    if len(groups) > 1:
        ax.legend(frameon=False, labelcolor=INK)
    return figure


def _room(ax: Axes, names: list[str], places: np.ndarray) -> list[tuple[float, float, str]]:
    """Where each name stands beside its point, in points of 1/72 inch, and how it is aligned: the
    first place near it, right or left, above or below, where it covers no other name and no point.
    """
    ax.autoscale_view()
    to_points = 72 / ax.figure.dpi
    dots = ax.transData.transform(places) * to_points
    edge = ax.bbox.x0 * to_points
    taken = [_Box(x - 4, y - 4, x + 4, y + 4) for x, y in dots]
    found = []
    for name, (x, y) in zip(names, dots, strict=True):
        places_near = list(_beside(x, y, 0.56 * _LETTERS * len(name)))
        free = (
            (box, right)
            for box, right in places_near
            if box.left > edge and not any(box.covers(other) for other in taken)
        )
        box, right = next(free, places_near[0])
        taken.append(box)
        found.append((6.0 if right else -6.0, float(box.low - y), "left" if right else "right"))
    return found


class _Box(NamedTuple):
    """A rectangle on the paper, in points."""

    left: float
    low: float
    right: float
    high: float

    def covers(self, other: "_Box") -> bool:
        across = self.left < other.right and other.left < self.right
        return across and self.low < other.high and other.low < self.high


def _beside(x: float, y: float, width: float) -> Iterator[tuple[_Box, bool]]:
    """Boxes of a name near a point, the nearest first, and whether each is on its right."""
    for step in range(6):
        for lift in (5 + 10 * step, -11 - 10 * step):
            for right in (True, False):
                left, low = x + 6 if right else x - 6 - width, y + lift
                yield _Box(left, low, left + width, low + _LETTERS), right


def _point(
    ax: Axes, name: str, values: ArrayLike, colour: str, marker: str, label: str
) -> np.ndarray:
    """One model, its seeds as a line from the best to the worst."""
    pairs = as_array(f"points[{name!r}]", np.atleast_2d(np.asarray(values, float)), "s", 2)
    if not np.all(pairs[:, 0] > 0):
        raise ValueError(f"points[{name!r}] must have positive bytes, got {pairs[:, 0].tolist()}")
    size, losses = pairs[:, 0].mean() / 1000, pairs[:, 1]
    ax.plot([size, size], [losses.min(), losses.max()], color=colour, linewidth=1.4)
    ax.plot([size], [losses.mean()], marker, color=colour, markersize=6, label=label or None)
    return pairs

"""Figures of fields over a base manifold: values point by point, supports and coverage.

Plain arrays in, a ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`. The
manifolds are those of :mod:`vfejax.geometry.grid`: one axis (``ring``, ``line``) is drawn as a
curve, two (``torus``, ``plane``) as an image.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, cast

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vfejax.figures.style import (
    CURVES,
    FONT_SIZE,
    INK,
    VOID,
    WIDTH,
    as_array,
    new_figure,
    plain,
    style_axes,
    style_colour_bar,
)

__all__ = ["field_maps", "supports"]

KINDS = {"ring": (1, True), "line": (1, False), "torus": (2, True), "plane": (2, False)}


class _Axis(NamedTuple):
    """Coordinates of the grid points along one axis, the edges of their cells, the period (None:
    open) and a label.
    """

    points: np.ndarray
    low: float
    high: float
    period: float | None
    label: str


def _grid_axes(shape: Sequence[int], kind: str, lengths: Sequence[float]) -> list[_Axis]:
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    num_axes, periodic = KINDS[kind]
    if len(shape) != num_axes or len(lengths) != num_axes:
        raise ValueError(
            f"a {kind} needs lengths and a grid of dimension {num_axes}, got lengths "
            f"{tuple(lengths)} and a grid of shape {tuple(shape)}"
        )
    if not all(math.isfinite(length) and length > 0 for length in lengths):
        raise ValueError(f"lengths must be positive, got {tuple(lengths)}")
    result = []
    for index, (num, length) in enumerate(zip(shape, lengths, strict=True)):
        spacing = length / (num if periodic else max(num - 1, 1))
        points = spacing * np.arange(num)
        # Only on a full turn are the user's lengths known to be angles.
        unit = " (rad)" if periodic and math.isclose(length, 2 * math.pi, rel_tol=1e-6) else ""
        label = f"coordinate {index + 1}{unit}" if num_axes > 1 else f"{kind} coordinate{unit}"
        result.append(
            _Axis(
                points, -spacing / 2, points[-1] + spacing / 2, length if periodic else None, label
            )
        )
    return result


def _close(axis: _Axis, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and values, on a ring with the first once more at the end, so that the curve
    closes.
    """
    if axis.period is None:
        return axis.points, values
    return np.append(axis.points, axis.period), np.append(values, values[..., :1], axis=-1)


def _ticks(ax: Axes, axis: _Axis, which: str) -> None:
    if axis.label.endswith("(rad)"):
        ax.set(**{f"{which}ticks": np.arange(5) * math.pi / 2})
        ax.set(**{f"{which}ticklabels": ["0", "π/2", "π", "3π/2", "2π"]})


def _draw_curve(ax: Axes, axis: _Axis, values: np.ndarray, colour: str) -> None:
    """One field along a line or ring; cells where it has no value are shaded grey."""
    void = ~np.isfinite(values)
    spacing = axis.points[1] - axis.points[0] if len(axis.points) > 1 else axis.high - axis.low
    x, y = _close(axis, np.where(void, np.nan, values))
    # A lone value between two voids has no segment: dots keep it visible on coarse grids.
    ax.plot(x, y, color=colour, linewidth=1.8, marker="o" if len(x) <= 64 else None, markersize=3)
    right = axis.points[-1] if axis.period is None else axis.period
    right = right if right > 0 else axis.high
    starts = np.flatnonzero(void & ~np.append(False, void[:-1]))
    ends = np.flatnonzero(void & ~np.append(void[1:], False))
    for start, end in zip(starts, ends, strict=True):
        low, high = axis.points[start] - spacing / 2, axis.points[end] + spacing / 2
        for shift in (0.0, axis.period) if axis.period is not None else (0.0,):
            if low + shift < right:
                ax.axvspan(
                    max(low + shift, 0.0),
                    min(high + shift, right),
                    color=VOID,
                    linewidth=0,
                    zorder=0,
                )
    ax.set_xlim(0.0, right)
    _ticks(ax, axis, "x")


def _draw_image(
    ax: Axes,
    axes: Sequence[_Axis],
    values: np.ndarray,
    label: str,
    colours: str,
    low: float,
    high: float,
) -> None:
    """One field over two axes, the first to the right, the second up; points where it has no value
    are grey.
    """
    image = ax.imshow(
        np.ma.masked_invalid(values.T),
        origin="lower",
        extent=(axes[0].low, axes[0].high, axes[1].low, axes[1].high),
        cmap=colormaps[colours].with_extremes(bad=VOID),
        vmin=low,
        vmax=high,
        interpolation="nearest",
    )
    for axis, which in zip(axes, "xy", strict=True):
        _ticks(ax, axis, which)
    ax.set_xlim(axes[0].low, axes[0].high)
    ax.set_ylim(axes[1].low, axes[1].high)
    # An inset keeps the bar as tall as the image, whatever the layout makes of it.
    figure = cast(Figure, ax.get_figure())
    bar = figure.colorbar(image, cax=ax.inset_axes((1.04, 0.0, 0.045, 1.0)))
    style_colour_bar(bar, label)


def _range(values: np.ndarray) -> tuple[str, float, float]:
    """Colours and their limits: diverging about 0 for values of both signs, sequential
    otherwise.
    """
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low < 0 < high:
        return "RdBu_r", -max(-low, high), max(-low, high)
    return "viridis", low, high if high > low else low + 1.0


def field_maps(values: Mapping[str, ArrayLike], *, kind: str, lengths: Sequence[float]) -> Figure:
    """Fields over the base manifold, one panel each.

    Args:
        values: fields ``[*grid]`` by name; write the unit into the name, as in ``"entropy
            (nats)"``. NaN where there is none, outside all supports.
        kind: ``ring``, ``line`` (one grid axis), ``torus`` or ``plane`` (two).
        lengths: length or circumference of each grid axis, as given to :mod:`vfejax.geometry.grid`;
            on a ring or torus 2 pi is read as radians.

    Returns:
        One axes per field. One grid axis: a curve over the coordinate. Two: an image, its colours
        diverging about 0 when the field has both signs, with its colour bar inset beside it. Points
        that are not finite are grey.

    Raises:
        ValueError: when ``values`` is empty, ``kind`` unknown, or shapes or lengths do not fit.
    """
    if not values:
        raise ValueError("values must hold at least one field")
    shape = np.shape(next(iter(values.values())))
    fields = {name: as_array(f"values[{name!r}]", field, *shape) for name, field in values.items()}
    axes = _grid_axes(shape, kind, lengths)
    if len(axes) == 1:
        figure = new_figure(0.7 + 1.9 * len(fields))
        panels = figure.subplots(len(fields), 1, sharex=True, squeeze=False)[:, 0]
        for index, (ax, (name, field)) in enumerate(zip(panels, fields.items(), strict=True)):
            _draw_curve(ax, axes[0], field, CURVES[index % len(CURVES)])
            style_axes(ax, ylabel=plain(name))
        panels[-1].set_xlabel(axes[0].label, color=INK, fontsize=FONT_SIZE)
        return figure
    columns = min(len(fields), 2 if len(fields) == 4 else 3)
    rows = -(-len(fields) // columns)
    aspect = (axes[1].high - axes[1].low) / (axes[0].high - axes[0].low)
    figure = new_figure(
        rows
        * (
            (WIDTH / columns - 1.0)
            * float(np.clip(aspect, 0.3, 1.2))
            * (0.8 if columns == 1 else 1.0)
            + 0.5
        )
        + 0.4
    )
    for index, (name, field) in enumerate(fields.items()):
        ax = figure.add_subplot(rows, columns, index + 1)
        _draw_image(ax, axes, field, "", *_range(field))
        xlabel = axes[0].label if index + columns >= len(fields) else ""
        ylabel = axes[1].label if index % columns == 0 else ""
        style_axes(ax, xlabel=xlabel, ylabel=ylabel, title=plain(name), grid="")
    return figure


def _index_axes(shape: Sequence[int]) -> list[_Axis]:
    return [
        _Axis(
            np.arange(num, dtype=float),
            -0.5,
            num - 0.5,
            None,
            f"grid point{f', axis {i + 1}' if len(shape) > 1 else ''}",
        )
        for i, num in enumerate(shape)
    ]


def _draw_outlines(ax: Axes, axes: Sequence[_Axis], chi: np.ndarray) -> None:
    """Where each support falls through one half. A support that never does has no outline."""
    first, closed = _close(axes[0], np.swapaxes(chi, -1, -2))
    second, closed = _close(axes[1], np.swapaxes(closed, -1, -2))
    for index, support in enumerate(closed):
        if min(support.shape) > 1 and np.min(support) < 0.5 <= np.max(support):
            ax.contour(
                first,
                second,
                support.T,
                levels=[0.5],
                colors=[CURVES[index % len(CURVES)]],
                linewidths=1.4,
                alpha=float(np.clip(3 * len(chi) ** -0.5, 0.25, 1.0)),
            )
    for axis, which in zip(axes, "xy", strict=True):
        _ticks(ax, axis, which)
    ax.set(xlim=(axes[0].low, axes[0].high), ylim=(axes[1].low, axes[1].high), aspect="equal")
    everywhere = int(np.sum(np.min(chi, axis=(1, 2)) >= 0.5))
    note = f", {everywhere} everywhere" if everywhere else ""
    style_axes(
        ax, xlabel=axes[0].label, ylabel=axes[1].label, title=f"Supports at one half{note}", grid=""
    )


def _draw_supports(above: Axes, below: Axes, axis: _Axis, chi: np.ndarray) -> None:
    """Curves ``chi [n, points]`` over one grid axis, and their sum below."""
    x, curves = _close(axis, chi)
    alpha = float(np.clip(4 * len(chi) ** -0.5, 0.15, 1.0))
    for index, curve in enumerate(curves):
        above.plot(x, curve, color=CURVES[index % len(CURVES)], linewidth=1.4, alpha=alpha)
    above.set_ylim(-0.03, 1.05 * np.max(chi, initial=1.0, where=np.isfinite(chi)))
    total = np.sum(curves, axis=0)
    below.fill_between(x, total, color=CURVES[0], alpha=0.15, linewidth=0)
    below.plot(x, total, color=CURVES[0], linewidth=1.8)
    below.set_ylim(0, 1.08 * np.max(total, initial=1.0, where=np.isfinite(total)))
    below.set_xlim(x[0], x[-1] if len(x) > 1 else x[0] + 1)
    _ticks(below, axis, "x")


def supports(
    chi: ArrayLike, *, kind: str | None = None, lengths: Sequence[float] | None = None
) -> Figure:
    """Supports of the agents over the base manifold, and how many agents cover each point.

    Args:
        chi: supports in [0, 1], ``[n, *grid]`` with one or two grid axes.
        kind: as in :func:`field_maps`, with ``lengths``; without them the axes count grid points.
        lengths: as in :func:`field_maps`.

    Returns:
        Two axes. One grid axis: the curves chi_i above their sum. Two: outlines ``chi_i = 1/2``
        beside their sum as an image, in which points that no agent covers are grey.

    Raises:
        ValueError: when ``chi`` has not one or two grid axes, or ``kind`` and ``lengths`` do not
            fit or come one without the other.
    """
    if np.ndim(chi) not in (2, 3):
        raise ValueError(
            f"chi must have shape [n, *grid] with one or two grid axes, got {np.shape(chi)}"
        )
    chi = as_array("chi", chi, *("n", "points", "points on the second axis")[: np.ndim(chi)])
    if (kind is None) != (lengths is None):
        raise ValueError("kind and lengths must be given together")
    if kind is None or lengths is None:
        axes = _index_axes(chi.shape[1:])
    else:
        axes = _grid_axes(chi.shape[1:], kind, lengths)
    coverage = np.sum(chi, axis=0)
    title = f"Coverage: at least {coverage.min():.3g}, mean {coverage.mean():.3g}"
    if len(axes) == 2:
        figure = new_figure(3.9)
        ax = figure.add_subplot(1, 2, 1)
        _draw_outlines(ax, axes, chi)
        ax = figure.add_subplot(1, 2, 2)
        _draw_image(
            ax,
            axes,
            np.where(coverage > 0, coverage, np.nan),
            "agents per point",
            *_range(coverage),
        )
        style_axes(ax, xlabel=axes[0].label, title=title, grid="")
        return figure
    figure = new_figure(4.8)
    above, below = figure.subplots(2, 1, sharex=True)
    _draw_supports(above, below, axes[0], chi)
    style_axes(above, ylabel=r"support $\chi_i$", title=f"Supports of {len(chi)} agents")
    style_axes(below, xlabel=axes[0].label, ylabel="agents per point", title=title)
    return figure

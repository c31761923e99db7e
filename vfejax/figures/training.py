"""Figures of a training run: the loss against what simple statistics of the text reach, and
whatever the model reports of itself.

As in :mod:`vfejax.figures.energies`: plain arrays in, a ``matplotlib.figure.Figure`` out, and
values that are not finite leave gaps.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vfejax.figures.style import (
    BLUE,
    CURVES,
    GREY,
    VERMILLION,
    as_array,
    label_right,
    new_figure,
    plain,
    style_axes,
)

__all__ = ["diagnostics", "loss_curves"]


def loss_curves(
    steps: ArrayLike,
    training: ArrayLike,
    validation: ArrayLike,
    *,
    levels: Mapping[str, float],
    title: str = "Loss",
) -> Figure:
    """Cross-entropy of training batches and of held-out text over updates.

    Args:
        steps: number of updates ``[t]``.
        training: nats per token ``[t]``, NaN where there is none.
        validation: the same on held-out text ``[t]``, NaN where it was not measured.
            The smallest one is ringed.
        levels: constant losses by name, drawn as dashed lines: what knowing only token frequencies,
            or pairs, would reach.
        title: heading.

    Returns:
        One axes, linear.

    Raises:
        ValueError: when an array does not fit ``steps``.
    """
    steps = as_array("steps", steps, "t")
    training = as_array("training", training, len(steps))
    validation = as_array("validation", validation, len(steps))
    figure = new_figure(4.4)
    ax = figure.add_subplot()
    labels = []
    for name, level in levels.items():
        if np.isfinite(level):
            ax.axhline(level, color=GREY, linewidth=1.0, linestyle=(0, (5, 3)))
            labels.append((f"{plain(name)} {level:.3f}", float(level), GREY))
    for name, y, colour, marker in (
        ("training", training, BLUE, None),
        ("validation", validation, VERMILLION, "o"),
    ):
        known = np.isfinite(y)
        if known.any():
            ax.plot(
                steps[known], y[known], color=colour, linewidth=1.8, marker=marker, markersize=4
            )
            labels.append((f"{name} {y[known][-1]:.3f}", float(y[known][-1]), colour))
    _mark_best(ax, steps, validation)
    ax.margins(x=0.01)
    style_axes(ax, xlabel="update", ylabel="cross-entropy (nats per token)", title=title)
    label_right(ax, labels)
    return figure


def _mark_best(ax: Axes, steps: np.ndarray, validation: np.ndarray) -> None:
    """A ring around the smallest validation loss, whose weights a run keeps."""
    known = np.flatnonzero(np.isfinite(validation))
    if len(known) < 2:
        return
    best = known[np.argmin(validation[known])]
    x, y = float(steps[best]), float(validation[best])
    ax.plot([x], [y], "o", color=VERMILLION, markerfacecolor="none", markersize=10)
    if best != known[-1]:
        text = f"best {y:.3f}"
        ax.annotate(
            text, (x, y), (0, -14), textcoords="offset points", ha="center", color=VERMILLION
        )


def diagnostics(
    steps: ArrayLike, curves: Mapping[str, ArrayLike], units: Mapping[str, str]
) -> Figure:
    """One small panel per quantity, over updates.

    Args:
        steps: number of updates ``[t]``.
        curves: quantities ``[t]`` by name. A name that ends with its unit is shown without it.
        units: the unit of a quantity by name; none for a pure number.

    Returns:
        Two columns of axes.

    Raises:
        ValueError: when ``curves`` is empty or an array does not fit ``steps``.
    """
    steps = as_array("steps", steps, "t")
    if not curves:
        raise ValueError("curves must hold at least one array")
    rows = (len(curves) + 1) // 2
    figure = new_figure(0.6 + 1.9 * rows)
    axes = figure.subplots(rows, 2, squeeze=False).ravel()
    for index, (name, values) in enumerate(curves.items()):
        y = as_array(f"curves[{name!r}]", values, len(steps))
        known = np.isfinite(y)
        axes[index].plot(steps[known], y[known], color=CURVES[index % len(CURVES)], linewidth=1.6)
        unit = units.get(name, "")
        title = plain(name.removesuffix(f"_{unit}"))
        style_axes(axes[index], xlabel="update", ylabel=unit, title=title)
    for ax in axes[len(curves) :]:
        ax.set_visible(False)
    return figure

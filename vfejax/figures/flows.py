"""Figure of the information that flows between the scales of a hierarchy.

Plain arrays in, a ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`.
"""

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from vfejax.figures.style import CURVES, as_array, label_right, new_figure, style_axes

__all__ = ["information_flow"]


def information_flow(steps: ArrayLike, down: ArrayLike, up: ArrayLike) -> Figure:
    """Information that has flowed between each scale and the one above it since the start.

    Args:
        steps: step numbers ``[t]``, rising.
        down: information to scale s from above since the last row ``[t, pairs]``, in nats.
        up: information from scale s to what is above it ``[t, pairs]``, in nats.

    Returns:
        One axes: sums over the rows, upwards solid and downwards dashed, one colour for each pair
        of scales.

    Raises:
        ValueError: when shapes do not fit.
    """
    steps = as_array("steps", steps, "t")
    below = as_array("down", down, len(steps), "pairs")
    above = as_array("up", up, *below.shape)
    figure = new_figure(4.0)
    ax = figure.add_subplot()
    labels = []
    for pair in range(below.shape[1]):
        colour = CURVES[pair % len(CURVES)]
        for name, values, line in (
            (f"up, {pair} to {pair + 1}", above, "-"),
            (f"down, {pair + 1} to {pair}", below, "--"),
        ):
            total = np.cumsum(values[:, pair])
            marker = "o" if len(steps) == 1 else None
            ax.plot(steps, total, line, color=colour, linewidth=1.8, marker=marker, markersize=4)
            labels.append((name, float(total[-1]), colour))
    ax.margins(x=0.01)
    title = "Information between scales, summed since the start"
    style_axes(ax, xlabel="step", ylabel="information (nats)", title=title)
    label_right(ax, labels)
    return figure

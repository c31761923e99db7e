"""Figures on top of a picture: how many tokens each of its patches has."""

from collections.abc import Mapping
from typing import cast

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from vfejax.figures.style import FONT_SIZE, INK, as_array, leave_room, new_figure, style_colour_bar

__all__ = ["patch_maps", "token_map"]

COLOURS = "inferno"
_MOST_PIXELS = 1200  # of a drawn picture, along its longer side
_MOST_NUMBERS = 16  # columns of patches up to which their tokens are written on them


def token_map(picture: ArrayLike, tokens: ArrayLike, patch: int) -> Figure:
    """A picture, and the tokens of its patches as a heat map on it.

    Args:
        picture: sRGB, ``[h, w, 3]``, from 0 to 1.
        tokens: of each patch, ``[rows, columns]``.
        patch: side of a patch, in pixels.

    Returns:
        Two axes with the picture, and one for the colours. The numbers stand on the patches where
        these are few.

    Raises:
        ValueError: for another shape, or patches that do not cover the picture.
    """
    pixels = as_array("picture", picture, "h", "w", 3)
    height, width, _ = pixels.shape
    counts = as_array("tokens", tokens, -(-height // patch), -(-width // patch))
    step = -(-max(height, width) // _MOST_PIXELS)
    drawn = np.clip(pixels[::step, ::step], 0, 1)
    rows, columns = counts.shape
    figure = new_figure(float(np.clip(4.0 * height / width, 0.8, 8.0)) + 0.6)
    leave_room(figure)
    left, right = figure.subplots(1, 2)
    place = (0, width, height, 0)
    left.imshow(drawn, extent=place)
    grey = drawn @ np.array([0.2126, 0.7152, 0.0722])
    right.imshow(grey, extent=place, cmap="gray", vmin=0, vmax=1)
    norm = Normalize(counts.min(), max(counts.max(), counts.min() + 1))
    heat = right.imshow(
        counts,
        extent=(0, columns * patch, rows * patch, 0),
        cmap=colormaps[COLOURS],
        norm=norm,
        alpha=0.65,
        interpolation="nearest",
    )
    if columns <= _MOST_NUMBERS:
        _write(right, counts, patch, norm)
    for ax, title in ((left, "picture"), (right, "tokens of the patches")):
        ax.set(xlim=(0, width), ylim=(height, 0))
        ax.set_axis_off()
        ax.set_title(title, color=INK, fontsize=FONT_SIZE + 1, loc="left")
    ticks = MaxNLocator(integer=True, min_n_ticks=1)
    bar = figure.colorbar(heat, ax=[left, right], shrink=0.85, aspect=30, ticks=ticks)
    cast(QuadMesh, bar.solids).set_alpha(1)
    style_colour_bar(bar, "tokens")
    return figure


def patch_maps(panels: Mapping[str, ArrayLike]) -> Figure:
    """Numbers of the patches of a picture side by side, each with its own colours.

    Args:
        panels: ``[rows, columns]`` by name, all of one shape, at least one.

    Returns:
        Two axes per panel: the numbers, and their colours.

    Raises:
        ValueError: for no panel, or panels of different shapes.
    """
    if not panels:
        raise ValueError("panels must hold at least one array, got none")
    size = as_array("panels", next(iter(panels.values())), "rows", "columns").shape
    arrays = {name: as_array(f"panels[{name!r}]", x, *size) for name, x in panels.items()}
    figure = new_figure(float(np.clip(7.0 / len(arrays) * size[0] / size[1], 0.8, 8.0)) + 0.9)
    leave_room(figure)
    axes = figure.subplots(1, len(arrays), squeeze=False)[0]
    for ax, (name, x) in zip(axes, arrays.items(), strict=True):
        image = ax.imshow(x, cmap=colormaps[COLOURS], interpolation="nearest")
        ax.set_axis_off()
        bar = figure.colorbar(image, ax=ax, location="bottom", aspect=25, pad=0.03)
        style_colour_bar(bar, name)
    return figure


def _write(ax: Axes, counts: np.ndarray, patch: int, norm: Normalize) -> None:
    """The number of tokens on each patch."""
    for (i, j), count in np.ndenumerate(counts):
        ax.text(
            (j + 0.5) * patch,
            (i + 0.5) * patch,
            f"{count:.0f}",
            color=INK if norm(count) > 0.7 else "white",
            fontsize=FONT_SIZE - 4,
            ha="center",
            va="center",
            clip_on=True,
        )

"""The look that all figures share, and the checks of what they are given.

Figures are built with ``matplotlib.figure.Figure``, never with pyplot: no global state, no window,
no style file. The colours are those of Okabe and Ito, which stay apart for colour-blind readers; a
figure is 1000 pixels wide.

Source: Okabe and Ito, Color universal design (2008).
"""

from collections.abc import Iterable, Sequence
from itertools import cycle
from typing import Literal, cast

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colorbar import Colorbar
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import ArrayLike

__all__ = [
    "BLUE",
    "CURVES",
    "FAINT",
    "GREY",
    "INK",
    "OTHERS",
    "VOID",
    "as_array",
    "label_right",
    "leave_room",
    "log_axis",
    "method_colours",
    "new_figure",
    "plain",
    "style_axes",
    "style_colour_bar",
]

INK = "#262626"
GREY = "#7f7f7f"
FAINT = "#e4e4e4"
VOID = "#c4c4c4"
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
)

CURVES = (BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY)
# One method, one colour, in every figure that compares methods: the first word found in its name
# decides.
METHODS = {"this run": BLUE, "alone": VERMILLION, "best": GREEN, "maximum likelihood": GREEN}
OTHERS = (PURPLE, ORANGE, SKY)

WIDTH = 8.0  # inches; 1000 pixels
DPI = 125
FONT_SIZE = 9.5  # points


def new_figure(height: float, width: float = WIDTH) -> Figure:
    """Empty white figure, size in inches, laid out so that nothing overlaps."""
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")


def leave_room(figure: Figure) -> None:
    """Wider margins, for axes whose aspect is fixed.

    The layout measures labels and titles before such axes shrink to their aspect, and is off by up
    to 0.08 inches: without room for that a title is cut at the edge of the picture.
    """
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # type: ignore[union-attr, call-arg]


def style_axes(
    ax: Axes,
    *,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    grid: Literal["x", "y", "both", ""] = "y",
) -> None:
    """Thin grey frame on the left and below, faint grid lines, and labels in the ink of the rest.

    Args:
        ax: what is styled.
        xlabel, ylabel: names of the axes, with their units.
        title: stands above, on the left.
        grid: the axes whose ticks have grid lines; '' for none.
    """
    ax.spines[["top", "right"]].set_visible(False)
    ax.spines[["left", "bottom"]].set_color(GREY)
    ax.tick_params(which="both", colors=GREY, labelcolor=INK, labelsize=FONT_SIZE - 1)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(axis=grid, color=FAINT, linewidth=0.8)
    ax.set_xlabel(xlabel, color=INK, fontsize=FONT_SIZE)
    ax.set_ylabel(ylabel, color=INK, fontsize=FONT_SIZE)
    ax.set_title(title, color=INK, fontsize=FONT_SIZE + 1, loc="left")


def plain(name: str) -> str:
    """A field's name as words: ``self_coupling`` reads "self coupling"."""
    return name.replace("_", " ")


def method_colours(names: Iterable[str], others: Sequence[str] = OTHERS) -> list[str]:
    """Colours of compared methods, those of ``METHODS`` by name and the ``others`` in turn for
    names it does not know.
    """
    rest = cycle(others)
    known = ([colour for word, colour in METHODS.items() if word in plain(name)] for name in names)
    return [colours[0] if colours else next(rest) for colours in known]


def _spread(positions: np.ndarray, gap: float) -> np.ndarray:
    """Positions at least ``gap`` apart and inside [0, 1] where there is room, moved as little as
    possible (least squares).
    """
    order = np.argsort(positions, kind="stable")
    count = len(positions)
    ladder = gap * np.arange(count)
    free = positions[order] - ladder
    # Isotonic regression by its min-max formula: cubic, for a handful of labels.
    means = [
        [np.mean(free[j : k + 1]) if j <= k else np.nan for k in range(count)] for j in range(count)
    ]
    fitted = np.array([max(min(means[j][i:]) for j in range(i + 1)) for i in range(count)])
    result = np.empty(count)
    result[order] = np.clip(fitted, 0.0, max(1.0 - ladder[-1], 0.0)) + ladder
    return result


def _plain_number(value: float, _: int | None) -> str:
    return f"{value:g}"


def log_axis(axis: Axis) -> None:
    """Logarithmic scale with ticks written as plain numbers, at 1, 2 and 5 when they span few
    decades; set the limits first.
    """
    low, high = axis.get_view_interval()
    name = "x" if axis is axis.axes.xaxis else "y"
    axis.axes.set(**{f"{name}scale": "log"})
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if high < 300 * low else (1.0,)))
    axis.set_major_formatter(FuncFormatter(_plain_number))
    axis.set_minor_formatter(NullFormatter())


def label_right(ax: Axes, labels: Sequence[tuple[str, float, str]]) -> None:
    """Name lines where they leave the axes, in their own colours and without overlap; call it last,
    it freezes the y limits.

    Args:
        ax: axes whose lines are drawn.
        labels: ``(text, y, colour)`` of each line, y in data units; a label with y not finite is
            put at the bottom.
    """
    if not labels:
        return
    ax.set_xlim(ax.get_xlim())
    ax.set_ylim(ax.get_ylim())
    x = ax.get_xlim()[1]
    to_fraction = ax.transScale + ax.transLimits
    wanted = np.array(
        [to_fraction.transform((x, y))[1] if np.isfinite(y) else 0.0 for _, y, _ in labels]
    )
    wanted = np.clip(wanted, 0.0, 1.0)
    figure = cast(Figure, ax.get_figure())
    height = 72.0 * figure.get_size_inches()[1] * ax.get_position().height
    for (text, _, colour), start, end in zip(
        labels, wanted, _spread(wanted, 1.4 * FONT_SIZE / height), strict=True
    ):
        ax.annotate(
            text,
            xy=(1.005, start),
            xytext=(1.04, end),
            xycoords="axes fraction",
            textcoords="axes fraction",
            color=colour,
            fontsize=FONT_SIZE,
            va="center",
            annotation_clip=False,
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.8,
                "shrinkA": 2,
                "shrinkB": 0,
                "relpos": (0.0, 0.5),
            },
        )


def as_array(name: str, values: ArrayLike, *shape: int | str) -> np.ndarray:
    """``values`` as a float64 NumPy array of the given shape.

    Args:
        name: what to call the argument in an error.
        values: NumPy or JAX array, or nested sequences.
        shape: size of each axis, or a letter for any size that is at least 1; equal letters are
            equal sizes.

    Raises:
        ValueError: when the shape does not fit, naming the argument.
    """
    array = np.asarray(values, np.float64)
    sizes: dict[str, int] = {}
    fits = array.ndim == len(shape) and all(
        size >= 1 and size == (want if isinstance(want, int) else sizes.setdefault(want, size))
        for size, want in zip(array.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"{name} must have shape [{', '.join(map(str, shape))}], not empty, got {array.shape}"
        )
    return array


def style_colour_bar(bar: Colorbar, label: str) -> None:
    """Colour bar without a frame, in the figure's ink."""
    bar.outline.set_visible(False)
    bar.ax.tick_params(which="both", colors=GREY, labelcolor=INK, labelsize=FONT_SIZE - 1)
    bar.set_label(label, color=INK, fontsize=FONT_SIZE)

"""Figures of an agent that plans: beliefs, choices, expected free energies, success.

Plain arrays in, a ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from vfejax.figures.style import (
    BLUE,
    CURVES,
    INK,
    ORANGE,
    PURPLE,
    VERMILLION,
    as_array,
    label_right,
    method_colours,
    new_figure,
    plain,
    style_axes,
    style_colour_bar,
)

__all__ = ["beliefs", "choices", "expectations", "success"]

_MOST_NAMES = 24  # that an axis has room for
_MOST_DOTS = 40
_OTHERS = (VERMILLION, PURPLE, ORANGE)


def _probabilities(
    ax: Axes, values: np.ndarray, names: Sequence[str], marked: np.ndarray, colour: str
) -> QuadMesh:
    """Probabilities ``[t, k]`` as an image with time to the right, one of each column framed."""
    edges = np.arange(len(values) + 1) - 0.5, np.arange(values.shape[1] + 1) - 0.5
    image = ax.pcolormesh(*edges, values.T, cmap="Blues", vmin=0.0, vmax=1.0)
    ax.plot(
        np.arange(len(marked)),
        marked,
        "s",
        markerfacecolor="none",
        markeredgecolor=colour,
        markeredgewidth=1.6,
        markersize=float(np.clip(150 / max(values.shape), 3.0, 9.0)),
    )
    ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    if len(names) <= _MOST_NAMES:
        ax.set_yticks(range(len(names)), names)
    ax.invert_yaxis()
    return image


def beliefs(
    probabilities: Mapping[str, ArrayLike],
    names: Sequence[Sequence[str]],
    states: ArrayLike,
) -> Figure:
    """What an agent believes about every factor over time, and what was the case.

    Args:
        probabilities: of the states of each factor by its name, ``[t, s_f]``.
        names: of the states of each factor.
        states: true ones, integers ``[t, f]``.

    Returns:
        One axes for each factor, and one for the colours; true states are framed.

    Raises:
        ValueError: when arrays do not fit each other.
    """
    given = list(probabilities.items())
    truth = as_array("states", states, "t", len(given))
    arrays = [
        as_array(f"probabilities[{name!r}]", x, len(truth), len(labels))
        for (name, x), labels in zip(given, names, strict=True)
    ]
    heights = [0.5 + 0.26 * min(x.shape[1], _MOST_NAMES) for x in arrays]
    figure = new_figure(0.6 + sum(heights))
    axes = figure.subplots(
        len(arrays), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights}
    )[:, 0]
    for f, (ax, x) in enumerate(zip(axes, arrays, strict=True)):
        image = _probabilities(ax, x, names[f], truth[:, f], VERMILLION)
        last = f + 1 == len(arrays)
        style_axes(ax, xlabel="observation" if last else "", title=given[f][0], grid="")
    bar = figure.colorbar(image, ax=axes, shrink=0.9, aspect=30)
    style_colour_bar(bar, "believed probability (frame: the truth)")
    return figure


def choices(
    controls: ArrayLike, names: Sequence[str], taken: ArrayLike, entropy: ArrayLike
) -> Figure:
    """Probabilities of the next control over time, those that were taken, and how open the choice
    of a policy was.

    Args:
        controls: probabilities ``[t, u]``.
        names: of the controls.
        taken: integers ``[t]``.
        entropy: of the policy posterior, in nats, ``[t]``.

    Returns:
        Two axes and one for the colours; controls that were taken are framed.

    Raises:
        ValueError: when arrays do not fit each other.
    """
    x = as_array("controls", controls, "t", len(names))
    marked, spread = as_array("taken", taken, len(x)), as_array("entropy", entropy, len(x))
    heights = [0.5 + 0.3 * min(len(names), _MOST_NAMES), 1.6]
    figure = new_figure(0.6 + sum(heights))
    top, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": heights})
    image = _probabilities(top, x, names, marked, VERMILLION)
    style_axes(top, title="Next control", grid="")
    bar = figure.colorbar(image, ax=top, aspect=12)
    style_colour_bar(bar, "probability (frame: taken)")
    spread = np.where(np.isfinite(spread), spread, np.nan)
    below.plot(np.arange(len(x)), spread, color=BLUE, linewidth=1.8, marker="o", markersize=4)
    below.set_ylim(0.0, 1.08 * float(np.max(spread, initial=0.1, where=np.isfinite(spread))))
    style_axes(below, xlabel="observation", ylabel="nats", title="Entropy of the policy posterior")
    return figure


def expectations(terms: Mapping[str, ArrayLike], free_energy: ArrayLike) -> Figure:
    """Terms of the expected free energy over time, and the free energy of what was observed.

    Args:
        terms: in nats by name, ``[t]``, of the step that the agent chose at each moment.
        free_energy: of each observation, in nats, ``[t]``.

    Returns:
        Two axes.

    Raises:
        ValueError: for no term, and when arrays do not fit each other.
    """
    observed = as_array("free_energy", free_energy, "t")
    if not terms:
        raise ValueError("terms must hold at least one array")
    figure = new_figure(5.2)
    top, below = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [3, 2]})
    times, labels = np.arange(len(observed)), []
    for index, (name, values) in enumerate(terms.items()):
        y = as_array(f"terms[{name!r}]", values, len(times))
        colour = CURVES[index % len(CURVES)]
        top.plot(times, y, color=colour, linewidth=1.8, marker="o", markersize=4)
        labels.append((plain(name), float(y[-1]), colour))
    below.plot(times, observed, color=INK, linewidth=1.8, marker="o", markersize=4)
    below.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    style_axes(top, ylabel="nats", title="Expected of the next step, under the action taken")
    style_axes(
        below, xlabel="observation", ylabel="nats", title="Free energy of what was then observed"
    )
    label_right(top, labels)
    return figure


def success(
    episodes: ArrayLike,
    panels: Mapping[str, ArrayLike],
    levels: Mapping[str, Mapping[str, float]],
) -> Figure:
    """How agents fared over episodes, beside what others reach.

    Args:
        episodes: number of episodes ``[n]``.
        panels: quantities ``[n]`` by name, with their unit in the name; NaN where there is none.
        levels: for some of the panels, constants by name, drawn as dashed lines.

    Returns:
        One axes for each panel.

    Raises:
        ValueError: for no panel, and when an array does not fit ``episodes``.
    """
    x = as_array("episodes", episodes, "n")
    if not panels:
        raise ValueError("panels must hold at least one array")
    figure = new_figure(0.5 + 2.1 * len(panels))
    axes = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for ax, (name, values) in zip(axes, panels.items(), strict=True):
        y = as_array(f"panels[{name!r}]", values, len(x))
        marker = "o" if len(x) <= _MOST_DOTS else ""
        ax.plot(x, y, color=BLUE, linewidth=1.8, marker=marker, markersize=4)
        known = y[np.isfinite(y)]
        labels = [("this run", float(known[-1]), BLUE)] if len(known) else []
        others = levels.get(name, {})
        for label, colour in zip(others, method_colours(others, _OTHERS), strict=True):
            if np.isfinite(others[label]):
                ax.axhline(others[label], color=colour, linewidth=1.2, linestyle=(0, (5, 3)))
                labels.append((label, others[label], colour))
        ax.margins(x=0.01, y=0.1)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        style_axes(ax, title=name, xlabel="episode" if ax is axes[-1] else "")
        label_right(ax, labels)
    return figure

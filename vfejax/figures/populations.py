"""Figures of a population's state: attention, beliefs and frames.

Plain arrays in, a ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`.
"""

from collections.abc import Sequence

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from vfejax.figures.ellipses import (
    axis_labels,
    check_axes,
    ellipses,
    limits,
    project,
    project_truth,
)
from vfejax.figures.style import (
    CURVES,
    FAINT,
    FONT_SIZE,
    GREY,
    INK,
    VOID,
    WIDTH,
    as_array,
    leave_room,
    new_figure,
    style_axes,
    style_colour_bar,
)

__all__ = ["attention_matrix", "belief_ellipses", "frames"]

# Orthographic view from (1, 1, 1): z upwards, x to the left front, y to the right front; the last
# row points at the reader.
VIEW = np.array([[-1, 1, 0], [-1, -1, 2], [1, 1, 1]]) / np.sqrt([[2], [6], [3]])


def _effective_neighbours(beta: np.ndarray) -> np.ndarray:
    """``exp(H(beta_i))`` of every row that has any weight, all of it finite."""
    beta = beta[np.isfinite(beta).all(axis=1) & (np.sum(beta, axis=1) > 0)]
    share = beta / np.sum(beta, axis=1, keepdims=True)
    return np.exp(-np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1))


def attention_matrix(weights: ArrayLike) -> Figure:
    """Attention weights as a heat map: row i shows how agent i shares its attention among the
    others.

    Args:
        weights: beta ``[n, n]``, n at least 2, rows are receivers. The diagonal is not drawn: an
            agent does not listen to itself.

    Returns:
        Two axes: the matrix (excluded and NaN entries grey) and its colour bar, on which the
        uniform level 1 / (n - 1) is marked. The title gives the median effective number of
        neighbours, ``exp(H(beta_i))``.

    Raises:
        ValueError: when ``weights`` is not square with n of at least 2.
    """
    beta = as_array("weights", weights, "n", "n")
    n = len(beta)
    if n < 2:
        raise ValueError("weights must have shape [n, n] with n of at least 2, got n = 1")
    itself = np.eye(n, dtype=bool)
    heard = _effective_neighbours(np.where(itself, 0.0, beta))
    beta = np.where(itself | ~np.isfinite(beta), np.nan, beta)
    figure = new_figure(6.6)
    leave_room(figure)
    ax = figure.add_subplot()
    peak = np.nanmax(beta, initial=0.0)
    uniform = 1.0 / (n - 1)
    colours = colormaps["Blues"].with_extremes(bad=VOID)
    image = ax.imshow(
        np.ma.masked_invalid(beta), cmap=colours, vmin=0.0, vmax=max(peak, min(1.25 * uniform, 1.0))
    )
    title = (
        f"Attention: an agent hears {np.median(heard):.3g} of {n - 1} others (median)"
        if heard.size
        else "Attention"
    )
    style_axes(ax, xlabel="sender j", ylabel="receiver i", title=title, grid="")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    bar = figure.colorbar(image, ax=ax, shrink=0.85)
    style_colour_bar(bar, r"attention weight $\beta_{ij}$")
    bar.ax.axhline(uniform, color=INK, linewidth=1.4)
    bar.ax.annotate(
        f"uniform\n1/{n - 1}",
        (0, uniform),
        xycoords=("axes fraction", "data"),
        xytext=(-4, 0),
        textcoords="offset points",
        ha="right",
        va="center",
        color=INK,
        fontsize=FONT_SIZE - 1,
    )
    return figure


def _draw_block(ax: Axes, centres: np.ndarray, covs: np.ndarray, colour: str) -> None:
    """One landmark as all agents believe it: 2 sigma outlined, 1 sigma filled, the mean as a point;
    fainter the more agents there are.
    """
    strength = max(len(centres), 1) ** -0.5
    edge, fill = np.clip(1.6 * strength, 0.08, 0.8), np.clip(0.6 * strength, 0.02, 0.25)
    for radius, face in ((2.0, 0.0), (1.0, fill)):
        ax.add_collection(
            PolyCollection(
                list(ellipses(centres, covs, radius)),
                facecolors=[to_rgba(colour, face)],
                edgecolors=[to_rgba(colour, edge if radius == 1.0 else 0.5 * edge)],
                linewidths=0.8,
            )
        )
    ax.plot(
        *centres.T,
        "o",
        color=colour,
        markersize=np.clip(20 * strength, 1.5, 5),
        markeredgewidth=0,
        alpha=0.8,
    )


def _key(label: str, colour: str, marker: str = "o") -> Line2D:
    return Line2D(
        [],
        [],
        linestyle="",
        marker=marker,
        color=colour,
        markersize=7,
        markeredgewidth=1.8,
        label=label,
    )


def _legend(figure: Figure, keys: Sequence[Line2D]) -> None:
    """One legend for all panels, beneath them."""
    if keys:
        text = {"fontsize": FONT_SIZE, "labelcolor": INK}
        figure.legend(
            handles=keys, loc="outside lower center", ncols=len(keys), frameon=False, **text
        )


def _draw_beliefs(ax: Axes, means: np.ndarray, covs: np.ndarray, crosses: np.ndarray) -> None:
    """All blocks of one panel, and the true points."""
    for b in range(means.shape[1]):
        _draw_block(ax, means[:, b], covs[:, b], CURVES[b % len(CURVES)])
    ax.plot(*crosses.T, "x", color="white", markersize=11, markeredgewidth=4)
    ax.plot(*crosses.T, "x", color=INK, markersize=9, markeredgewidth=2)


def _keys(num_blocks: int, *, with_truth: bool) -> list[Line2D]:
    """What the legend explains: blocks when there are several, and the truth."""
    blocks = [_key(f"landmark {b + 1}", CURVES[b % len(CURVES)]) for b in range(num_blocks)]
    truth = [_key("truth", INK, "x")] if with_truth else []
    return [*(blocks if num_blocks > 1 else []), *truth]


def belief_ellipses(
    panels: Sequence[tuple[str, ArrayLike, ArrayLike]],
    *,
    truth: ArrayLike | None = None,
    axes: tuple[int, int] = (0, 1),
    block: int = 3,
    unit: str = "m",
) -> Figure:
    """Beliefs projected to a plane, with their 1 and 2 sigma covariance ellipses, in panels with
    common limits.

    Args:
        panels: ``(title, means [n, k], covariances [n, k, k])`` of each panel, such as before and
            after.
        truth: true points, ``[m, block]`` or already projected ``[m, 2]``, drawn as crosses; by
            default none.
        axes: the two coordinates of each block to draw.
        block: components per block: k = 9 with ``block`` 3 is three landmarks, each in its own
            colour.
        unit: unit of the components, for the axis labels; "" for none.

    Returns:
        One axes per panel. In each, block after block: a ``PolyCollection`` of 2 sigma outlines,
        one of 1 sigma ellipses, and a line of means. An agent whose belief is not finite is left
        out.

    Raises:
        ValueError: when ``panels`` is empty, k is not a multiple of ``block``, or a shape does not
            fit.
    """
    if not panels:
        raise ValueError("panels must hold at least one panel")
    check_axes(axes, block)
    crosses = project_truth(truth, axes, block)
    drawn = [
        (title, *project(f"panels[{index}]", means, covs, axes, block))
        for index, (title, means, covs) in enumerate(panels)
    ]
    low, high = limits(
        np.concatenate([m.reshape(-1, 2) for _, m, _ in drawn]),
        np.concatenate([c.reshape(-1, 2, 2) for _, _, c in drawn]),
        crosses,
    )
    columns = min(len(drawn), 3)
    rows = -(-len(drawn) // columns)
    figure = new_figure(rows * 0.95 * WIDTH / max(columns, 1.4) + 0.6)
    leave_room(figure)
    for index, (title, means, covs) in enumerate(drawn):
        ax = figure.add_subplot(
            rows, columns, index + 1, aspect="equal", xlim=(low[0], high[0]), ylim=(low[1], high[1])
        )
        _draw_beliefs(ax, means, covs, crosses)
        labels = axis_labels(axes, block, unit)
        style_axes(
            ax,
            xlabel=labels[0],
            ylabel=labels[1] if index % columns == 0 else "",
            title=title,
            grid="both",
        )
    num_blocks = max(means.shape[1] for _, means, _ in drawn)
    _legend(figure, _keys(num_blocks, with_truth=len(crosses) > 0))
    return figure


def _globe(ax: Axes) -> None:
    """A sphere seen from (1, 1, 1): its outline, and the three great circles of the coordinate
    planes, faint behind.
    """
    ax.add_patch(Circle((0, 0), 1.0, facecolor="#fafafa", edgecolor=GREY, linewidth=1.0, zorder=0))
    turn = np.linspace(0, 2 * np.pi, 181)
    for axis in range(3):
        ring = np.insert(np.stack([np.cos(turn), np.sin(turn)]), axis, 0.0, axis=0)
        x, y, depth = VIEW @ ring
        ax.plot(x, np.where(depth >= 0, y, np.nan), color=VOID, linewidth=0.8, zorder=1)
        ax.plot(x, np.where(depth <= 0, y, np.nan), color=FAINT, linewidth=0.8, zorder=0.5)


def _draw_images(ax: Axes, points: np.ndarray, axis: int) -> None:
    """Where the frames send one unit axis, ``[n, 3]`` on the sphere, and the axis itself sticking
    out of it.
    """
    colour = CURVES[axis]
    x, y, depth = VIEW @ points.T
    size = np.clip(60 * max(len(points), 1) ** -0.5, 3, 9)
    for side, alpha, layer in ((depth < 0, 0.18, 2), (depth >= 0, 0.75, 3)):
        look = {"markersize": size, "markeredgewidth": 0, "alpha": alpha, "zorder": layer}
        ax.plot(x[side], y[side], "o", color=colour, **look)
    tip = VIEW[:2, axis]
    ax.plot(*zip(tip, 1.28 * tip, strict=True), color=INK, linewidth=0.8, zorder=4)
    right, up = 1.4 * tip
    label = ax.text(right, up, "xyz"[axis], color=colour, ha="center", va="center", zorder=5)
    label.set(fontsize=FONT_SIZE + 3, weight="bold")


def frames(panels: Sequence[tuple[str, ArrayLike]]) -> Figure:
    """Frames as the points on the sphere to which they send the unit axes x, y and z.

    Args:
        panels: ``(title, rotations [n, 3, 3])`` of each panel. Relative to the truth, scatter
            before and concentration after an alignment show at a glance.

    Returns:
        One axes per panel: the sphere seen from (1, 1, 1), nearer points full and farther ones
        faint. The median angle between a frame and the mean frame, which no global rotation
        changes, stands beneath.

    Raises:
        ValueError: when ``panels`` is empty or a shape does not fit.

    Source: the mean frame is the projected arithmetic mean of Moakher, SIAM J. Matrix Anal. Appl.
    24 (2002) 1.
    """
    if not panels:
        raise ValueError("panels must hold at least one panel")
    arrays = [
        (title, as_array(f"panels[{i}] rotations", r, "n", 3, 3))
        for i, (title, r) in enumerate(panels)
    ]
    columns = min(len(arrays), 3)
    rows = -(-len(arrays) // columns)
    figure = new_figure(rows * (WIDTH / max(columns, 1.6) + 0.4) + 0.4)
    for index, (title, rotations) in enumerate(arrays):
        ax = figure.add_subplot(
            rows, columns, index + 1, aspect="equal", xlim=(-1.2, 1.2), ylim=(-1.1, 1.25)
        )
        _globe(ax)
        rotations = rotations[np.all(np.isfinite(rotations), axis=(1, 2))]
        for axis in range(3):
            _draw_images(ax, rotations[:, :, axis], axis)
        ax.set_title(title, color=INK, fontsize=FONT_SIZE + 1)
        ax.set_axis_off()
        ax.text(
            0, -1.1, _spread_text(rotations), color=INK, fontsize=FONT_SIZE, ha="center", va="top"
        )
    _legend(
        figure, [_key(f"image of the {name} axis", CURVES[axis]) for axis, name in enumerate("xyz")]
    )
    return figure


def _spread_text(rotations: np.ndarray) -> str:
    """Median angle to the mean frame, in words."""
    if not len(rotations):
        return "no finite frame"
    u, _, vt = np.linalg.svd(rotations.mean(axis=0))
    u[:, -1] *= np.sign(np.linalg.det(u @ vt))
    chord = np.linalg.norm(rotations - u @ vt, axis=(1, 2)) / np.sqrt(8.0)
    angle = np.degrees(np.median(2 * np.arcsin(np.minimum(chord, 1.0))))
    return f"median angle to the mean frame: {angle:.3g}°"

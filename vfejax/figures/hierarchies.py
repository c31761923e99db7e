"""Figures of a population that organises itself in scales: memberships, energies of the scales,
beliefs of groups.

Plain arrays in, a ``matplotlib.figure.Figure`` out, as in :mod:`vfejax.figures.energies`. Rows of a
hierarchy are numbered as in its arrays: a row's ``parent`` is the row of its meta-agent one scale
up, and its own number when it has none.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb, to_rgba
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from vfejax.figures.ellipses import axis_labels, check_axes, ellipses, limits, project
from vfejax.figures.energies import energy_terms
from vfejax.figures.style import (
    CURVES,
    FONT_SIZE,
    GREY,
    INK,
    VOID,
    as_array,
    leave_room,
    new_figure,
    style_axes,
)

__all__ = ["belief_map", "energy_of_scales", "memberships"]

EVENTS = {"condensation": "^", "dissolution": "v"}
NOBODY = "#f2f2f2"  # an agent without a meta-agent
MAX_STRIPS = 64  # more agents than that are drawn without gaps between them


def _ancestors(parent: np.ndarray, num_scales: int) -> np.ndarray:
    """Chain of each row, itself first: ``[scales, rows]``; a chain that ends repeats its last
    row.
    """
    chain = [np.arange(len(parent))]
    for _ in range(num_scales - 1):
        chain.append(parent[chain[-1]])
    return np.stack(chain)


def _order(parent: np.ndarray, num_agents: int, num_scales: int) -> np.ndarray:
    """Agents sorted by their final groups, the coarsest first; larger groups first, loners last."""
    chain = _ancestors(parent, num_scales)[:, :num_agents]
    keys: list[np.ndarray] = []  # the last key of lexsort counts most
    for finer, coarser in pairwise(chain):
        alone = coarser == finer
        sizes = np.bincount(coarser, minlength=len(parent))[coarser]
        keys += [coarser, -sizes, alone]
    return np.lexsort(keys) if keys else np.arange(num_agents)


def _colours(parents: np.ndarray, num_rows: int) -> np.ndarray:
    """A colour of each meta-agent's row, ``[rows, 3]``: in turn from top to bottom at the end, then
    those that were gone by then.
    """
    met = dict.fromkeys(parents[-1].tolist()) | dict.fromkeys(np.unique(parents).tolist())
    colours = np.tile(to_rgb(VOID), (num_rows, 1))
    for place, row in enumerate(met):
        colours[row] = to_rgb(CURVES[place % len(CURVES)])
    return colours


def _draw_strips(ax: Axes, steps: np.ndarray, parents: np.ndarray, active: np.ndarray) -> None:
    """One strip per agent, coloured by its meta-agent: parents and activity are ``[t, agents]``,
    -1 for none.
    """
    num_rows = parents.max(initial=-1) + 2
    joined = np.where(parents < 0, num_rows - 1, parents)
    members = np.where(parents < 0, -1, parents)
    colours = _colours(np.where(members < 0, num_rows - 1, members), num_rows)
    colours[-1] = to_rgb(NOBODY)
    image = np.where(active[..., None], colours[joined], 1.0)
    # Half a step beyond the first and the last, and unequal steps as they are.
    middle = (steps[1:] + steps[:-1]) / 2
    first = steps[0] - (middle[0] - steps[0] if len(middle) else 0.5)
    last = steps[-1] + (steps[-1] - middle[-1] if len(middle) else 0.5)
    edges = np.concatenate([[first], middle, [last]])
    ax.pcolormesh(edges, np.arange(parents.shape[1] + 1) - 0.5, image.swapaxes(0, 1))
    ax.set_ylim(parents.shape[1] - 0.5, -0.5)
    if parents.shape[1] <= MAX_STRIPS:
        ax.hlines(np.arange(1, parents.shape[1]) - 0.5, first, last, color="white", linewidth=0.5)


def _draw_tree(ax: Axes, parent: np.ndarray, order: np.ndarray, active: np.ndarray) -> int:
    """Brackets from the strips of members to their meta-agent, scale after scale; the number of
    scales drawn.
    """
    height = {int(row): float(place) for place, row in enumerate(order) if active[row]}
    scale = 0
    while True:
        members: dict[int, list[float]] = {}
        for row, place in height.items():
            if parent[row] != row and active[parent[row]]:
                members.setdefault(int(parent[row]), []).append(place)
        if not members or scale > len(parent):
            return scale
        for places in members.values():
            _draw_bracket(ax, places, scale, len(order))
        height = {row: (min(places) + max(places)) / 2 for row, places in members.items()}
        scale += 1


def _draw_bracket(ax: Axes, places: list[float], scale: int, num_strips: int) -> None:
    """Lines from the members of one meta-agent to its dot, one scale to the right."""
    low, high, right = min(places), max(places), scale + 0.5
    # More lines than pixels are a grey block: then the first and the last, apart from those of the
    # next group.
    if num_strips > MAX_STRIPS:
        gap = 0.003 * num_strips
        low, high = low + gap, high - gap
        places = [low, high]
    for place in places:
        ax.plot([scale, right], [place, place], color=GREY, linewidth=0.9)
    ax.plot([right, right], [low, high], color=GREY, linewidth=0.9)
    middle = (low + high) / 2
    ax.plot([right, scale + 1], [middle, middle], color=GREY, linewidth=0.9)
    ax.plot([scale + 1], [middle], "o", color=INK, markersize=4, zorder=3)


def memberships(
    steps: ArrayLike,
    parent: ArrayLike,
    active: ArrayLike,
    *,
    num_agents: int,
    limits: tuple[float, float] | None = None,
) -> Figure:
    """Who joined whom, over time: one strip per agent, coloured by its meta-agent, and the tree of
    scales at the end.

    Args:
        steps: step numbers ``[t]``, rising.
        parent: row of each row's meta-agent ``[t, rows]``; its own row for none. The first
            ``num_agents`` rows are the agents of scale 0.
        active: whether a row is in use ``[t, rows]``.
        num_agents: number of agents at scale 0.
        limits: the first and the last step that are shown; by default half a step more on both
            sides than there are.

    Returns:
        Two axes: the strips, sorted by final group, pale where an agent has no meta-agent and white
        where it is not active; and brackets that join members to their meta-agent, a dot, and
        meta-agents to theirs.

    Raises:
        ValueError: when shapes do not fit, or a parent is no row.
    """
    steps = as_array("steps", steps, "t")
    who = as_array("parent", parent, len(steps), "rows").astype(int)
    num_rows = who.shape[1]
    used = as_array("active", active, len(steps), num_rows).astype(bool)
    if not 1 <= num_agents <= num_rows:
        raise ValueError(f"num_agents must be from 1 to {num_rows} rows, got {num_agents}")
    if who.min() < 0 or who.max() >= num_rows:
        raise ValueError(
            f"parent must hold rows from 0 to {num_rows - 1}, got {who.min()} to {who.max()}"
        )
    order = _order(who[-1], num_agents, num_rows)
    alone = (who == np.arange(num_rows)) | ~np.take_along_axis(used, who, axis=1)
    figure = new_figure(min(2.0 + 0.09 * num_agents, 7.5))
    left, right = figure.subplots(1, 2, width_ratios=(5, 1.6))
    _draw_strips(left, steps, np.where(alone, -1, who)[:, order], used[:, order])
    num_scales = _draw_tree(right, who[-1], order, used[-1])
    ends = len(np.unique(who[-1][order][~alone[-1][order]]))
    title = f"Who joined whom: {ends} group{'' if ends == 1 else 's'} at the end"
    style_axes(left, xlabel="step", ylabel="agents, sorted by final group", title=title, grid="")
    left.yaxis.set_major_locator(MaxNLocator(integer=True))
    if limits is not None:
        left.set_xlim(*limits)
    style_axes(right, xlabel="scale", title="Final hierarchy", grid="")
    right.set(xlim=(-0.05, max(num_scales, 1) + 0.15), ylim=left.get_ylim(), yticks=[])
    right.set_xticks(range(max(num_scales, 1) + 1))
    right.spines["left"].set_visible(False)
    return figure


def energy_of_scales(
    steps: ArrayLike, energies: ArrayLike, events: Sequence[tuple[float, str, int]] = ()
) -> Figure:
    """Free energy of every scale and their total over steps, with the events that changed the
    hierarchy.

    Args:
        steps: step numbers ``[t]``, rising.
        energies: free energy of each scale ``[t, scales]``, in nats.
        events: ``(step, "condensation" or "dissolution", scale)``: the scale whose meta-agent came
            or went. By default none.

    Returns:
        One axes as :func:`vfejax.figures.energies.energy_terms` draws it, a curve per scale that is
        not 0 throughout. An event is a triangle on the curve of its scale (of the total, where the
        scale has no curve): up for a condensation, down for a dissolution.

    Raises:
        ValueError: when shapes do not fit, or an event is of another kind or scale.
    """
    steps = as_array("steps", steps, "t")
    values = as_array("energies", energies, len(steps), "scales")
    num_scales = values.shape[1]
    for _, kind, scale in events:
        if kind not in EVENTS or not 0 <= scale < num_scales:
            raise ValueError(
                f"events must be a condensation or a dissolution at a scale below {num_scales}, "
                f"got {kind!r} at scale {scale}"
            )
    total = values.sum(axis=1)
    figure = energy_terms(
        steps, {**{f"scale {s}": values[:, s] for s in range(num_scales)}, "total": total}
    )
    ax = figure.axes[0]
    ax.set_title("Free energy, scale by scale", color=INK, fontsize=FONT_SIZE + 1, loc="left")
    drawn = [s for s in range(num_scales) if np.any(np.nan_to_num(values[:, s], nan=1.0) != 0)]
    seen = []
    for step, kind, scale in events:
        curve = values[:, scale] if scale in drawn else total
        colour = CURVES[drawn.index(scale) % len(CURVES)] if scale in drawn else INK
        look: dict[str, Any] = {"markeredgecolor": "white", "markersize": 8, "zorder": 4}
        ax.plot([step], [np.interp(step, steps, curve)], EVENTS[kind], color=colour, **look)
        seen.append(kind)
    keys = [
        Line2D([], [], linestyle="", marker=marker, color=GREY, markersize=8, label=kind)
        for kind, marker in EVENTS.items()
        if kind in seen
    ]
    if keys:
        text = {"fontsize": FONT_SIZE, "labelcolor": INK}
        ax.legend(handles=keys, loc="best", frameon=False, **text)
    return figure


def _draw_group(
    ax: Axes, means: np.ndarray, covs: np.ndarray, colour: str, *, is_meta: bool
) -> None:
    """Beliefs in one colour: members faint and filled at 1 sigma, a meta-agent outlined at 2
    sigma.
    """
    means, covs = means.reshape(-1, 2), covs.reshape(-1, 2, 2)
    strength = max(len(means), 1) ** -0.5
    radius = 2.0 if is_meta else 1.0
    ax.add_collection(
        PolyCollection(
            list(ellipses(means, covs, radius)),
            facecolors=[to_rgba(colour, 0.0 if is_meta else np.clip(0.6 * strength, 0.03, 0.25))],
            edgecolors=[to_rgba(colour, 1.0 if is_meta else np.clip(2 * strength, 0.15, 0.6))],
            linewidths=2.0 if is_meta else 0.7,
            zorder=4 if is_meta else 2,
        )
    )
    size = 7 if is_meta else np.clip(12 * strength, 1.5, 4)
    look: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 1.0 if is_meta else 0.0}
    ax.plot(*means.T, "o", color=colour, markersize=size, zorder=5 if is_meta else 3, **look)


def belief_map(
    means: ArrayLike,
    covs: ArrayLike,
    groups: ArrayLike,
    meta_means: ArrayLike,
    meta_covs: ArrayLike,
    *,
    axes: tuple[int, int] = (0, 1),
    block: int = 3,
    unit: str = "m",
    title: str = "Beliefs of agents and of their meta-agents",
) -> Figure:
    """Beliefs projected to a plane, coloured by group, under the ellipses of their meta-agents.

    All beliefs in one frame: transport them to the common one first.

    Args:
        means: of the agents ``[n, k]``.
        covs: covariances of the agents ``[n, k, k]``.
        groups: place of each agent's meta-agent in ``meta_means`` ``[n]``; negative for none.
        meta_means: of the meta-agents ``[m, k]``, m at least 1.
        meta_covs: covariances of the meta-agents ``[m, k, k]``.
        axes: the two coordinates of each block to draw.
        block: components per block: k = 9 with ``block`` 3 is three landmarks, drawn in one plane.
        unit: unit of the components, for the axis labels; "" for none.
        title: stands above.

    Returns:
        One axes. For each group the 1 sigma ellipses of its members, faint, and the 2 sigma outline
        of its meta-agent, bold; agents without one in grey. A belief that is not finite is left
        out.

    Raises:
        ValueError: when a shape does not fit, k is not a multiple of ``block``, or a group is not
            among the meta-agents.
    """
    check_axes(axes, block)
    mean = as_array("means", means, "n", "k")
    label = as_array("groups", groups, len(mean)).astype(int)
    cov = as_array("covs", covs, len(mean), mean.shape[1], mean.shape[1])
    meta = as_array("meta_means", meta_means, "m", mean.shape[1])
    meta_cov = as_array("meta_covs", meta_covs, len(meta), mean.shape[1], mean.shape[1])
    if label.max() >= len(meta):
        raise ValueError(f"groups must be below {len(meta)} meta-agents, got {label.max()}")
    label = np.maximum(label, -1)
    figure = new_figure(6.6)
    leave_room(figure)
    ax = figure.add_subplot(aspect="equal")
    for group in (-1, *range(len(meta))):
        colour = GREY if group < 0 else CURVES[group % len(CURVES)]
        own = label == group
        if own.any():
            flat = project("agents'", mean[own], cov[own], axes, block)
            _draw_group(ax, *flat, colour, is_meta=False)
        if group >= 0:
            flat = project("meta-agents'", meta[[group]], meta_cov[[group]], axes, block)
            _draw_group(ax, *flat, colour, is_meta=True)
    everyone = np.concatenate([mean, meta]), np.concatenate([cov, meta_cov])
    points, spreads = project("all", *everyone, axes, block)
    low, high = limits(points.reshape(-1, 2), spreads.reshape(-1, 2, 2), np.empty((0, 2)))
    ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    labels = axis_labels(axes, block, unit)
    style_axes(ax, xlabel=labels[0], ylabel=labels[1], title=title, grid="both")
    return figure

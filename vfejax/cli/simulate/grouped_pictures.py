"""The pictures of meta-agents: memberships, energies of the scales, beliefs of groups, information
between scales.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vfejax.agents.hierarchy import Hierarchy, Scales, presence
from vfejax.beliefs.gaussian import covariance
from vfejax.cli.drawing import sketched
from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.cli.simulate.places import at_point, most_covered
from vfejax.cli.simulate.problem import Problem
from vfejax.errors import UserError
from vfejax.geometry.transport import frames
from vfejax.runs.events import Event
from vfejax.runs.report import Picture

__all__ = ["history", "pictures"]

if TYPE_CHECKING:
    from vfejax.figures import flows
    from vfejax.figures import hierarchies as hierarchy_figures
else:
    flows = sketched("vfejax.figures.flows")
    hierarchy_figures = sketched("vfejax.figures.hierarchies")

# More moments than pixels only make a picture slow to draw, and more marks than that hide it.
_MOST_MOMENTS = 600
_MOST_MARKS = 40
# Events that change which meta-agents there are, and whether theirs is there afterwards.
_ACTIVE = {"condensation": True, "dissolution": False}


def history(
    events: Sequence[Event], scales: Scales, logged: Sequence[int]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Who was whose member, and which rows were active, from the events of a run.

    Args:
        events: in the order in which they happened.
        scales: how the rows are divided.
        logged: steps to tell of, from 0 to the last.

    Returns:
        Steps ``[t]``: those that are logged, and those before and at which something happened; the
        parents after them ``[t, N]``, and the activity ``[t, N]``.

    Raises:
        UserError: for an event of a row that the run has not.

    >>> told = [Event(5, "condensation", 1, 2, (0, 1))]
    >>> steps, parent, active = history(told, Scales(2, (1,)), [0, 9])
    >>> steps.tolist(), parent.tolist()
    ([0, 4, 5, 9], [[0, 1, 2], [0, 1, 2], [2, 2, 2], [2, 2, 2]])
    """
    for event in events:
        highest = max((event.row, *event.members))
        if highest >= scales.num_rows:
            raise UserError(
                f"events.csv tells of row {highest} at step {event.step}, and the run has rows 0 "
                f"to {scales.num_rows - 1}; correct or remove the line, then --resume makes the "
                "report"
            )
    changed = [e.step for e in events]
    steps = np.unique([*logged, *changed, *(max(step - 1, 0) for step in changed)]).astype(int)
    parent, active = np.arange(scales.num_rows), scales.of_rows == 0
    parents, actives, told = [], [], list(events)
    for step in steps:
        while told and told[0].step <= step:
            event = told.pop(0)
            who = list(event.members)
            parent[who] = event.row if event.event in ("condensation", "adoption") else who
            if event.event in _ACTIVE:
                active[event.row] = _ACTIVE[event.event]
        parents.append(parent.copy())
        actives.append(active.copy())
    return steps, np.stack(parents), np.stack(actives)


def _thinned(count: int, most: int) -> np.ndarray:
    """Indices of at most that many things, evenly chosen, the first and the last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int))


def _energy(metrics: dict, events: Sequence[Event], scales: Scales) -> Picture:
    energies = np.stack([metrics[f"energy_scale_{s}"] for s in range(scales.num_scales)], axis=1)
    told = [(e.step, e.event, e.scale) for e in events if e.event in _ACTIVE]
    marks = [told[i] for i in _thinned(len(told), _MOST_MARKS)] if told else []
    fewer = f" ({len(marks)} of {len(told)} events are marked.)" if len(marks) < len(told) else ""
    caption = (
        "Free energy of each scale and their sum. Each term is counted once, at the scale of its "
        "agent. Triangles: a meta-agent of that scale forms, or dissolves. The total "
        f"need not fall at such a step, nor while the temperature changes.{fewer}"
    )
    figure = hierarchy_figures.energy_of_scales(metrics["step"], energies, marks)
    return Picture("energy_scales", "Energy of each scale", caption, figure)


def _flow(metrics: dict, scales: Scales) -> Picture:
    pairs = range(len(scales.capacities))
    down, up = (
        np.stack([metrics[f"information_{name(s)}"] for s in pairs], axis=1)
        for name in (lambda s: f"{s + 1}_to_{s}", lambda s: f"{s}_to_{s + 1}")
    )
    caption = (
        "Total decrease of the terms between two scales: down, by the steps of the members "
        "towards their meta-agents; up, by the steps of the meta-agents towards their members. "
        "A falling curve means that other terms moved them apart."
    )
    figure = flows.information_flow(metrics["step"], down, up)
    return Picture("information", "Information between scales", caption, figure)


def _map(
    config: SimulateConfig, problem: Problem, hierarchy: Hierarchy, scales: Scales
) -> Picture | None:
    """Beliefs and meta-agents in the common frame; None without meta-agents, or without a plane."""
    index, _ = most_covered(problem)
    chi = np.asarray(presence(hierarchy)).reshape(scales.num_rows, -1)[:, index]
    belief, phi = at_point(hierarchy.population, index)
    inward = np.asarray(compiled_once(frames)(-phi, problem.group))
    means = np.einsum("nij,nj->ni", inward, np.asarray(belief.mean))
    covs = np.einsum("nij,njk,nlk->nil", inward, np.asarray(covariance(belief)), inward)
    is_row = chi > 0
    metas = np.flatnonzero(is_row & (scales.of_rows > 0))
    agents = np.flatnonzero(is_row & (scales.of_rows == 0))
    landmarks = config.group == "so3" and set(config.irreps) == {1}
    block = 3 if landmarks else means.shape[1]
    if not len(metas) or block < 2:
        return None
    place = np.full(scales.num_rows, -1)
    place[metas] = np.arange(len(metas))
    groups = place[np.asarray(hierarchy.parent)[agents]]
    caption = (
        "Beliefs of the agents in the common frame, projected to the x-y plane, with 1 sigma "
        "ellipses in the colour of their meta-agent, and the 2 sigma outlines of the meta-agents "
        "of every scale. When it forms, a meta-agent is as wide as its members and their "
        "disagreement together; then it moves by the free energy of its own scale."
    )
    figure = hierarchy_figures.belief_map(
        means[agents],
        covs[agents],
        groups,
        means[metas],
        covs[metas],
        block=block,
        unit="m" if landmarks else "",
    )
    return Picture("meta_agents", "Beliefs of agents and meta-agents", caption, figure)


def pictures(
    config: SimulateConfig,
    problem: Problem,
    hierarchy: Hierarchy,
    scales: Scales,
    metrics: dict,
    events: Sequence[Event],
) -> Iterator[Picture]:
    """The pictures of meta-agents.

    Args:
        config: the command's options.
        problem: what was computed.
        hierarchy: the last state.
        scales: how its rows are divided.
        metrics: the columns of the run's metrics.
        events: what happened in the run.
    """
    steps, parent, active = history(events, scales, metrics["step"])
    kept = _thinned(len(steps), _MOST_MOMENTS)
    caption = (
        "Each strip is an agent, in the colour of its meta-agent at scale 1, pale while it has "
        "none. On the right, who is whose member at the end, scale by scale."
    )
    if not np.array_equal(parent[-1], np.asarray(hierarchy.parent)):
        caption += (
            " This is what events.csv tells, and it does not lead to the state at the end: lines "
            "of the file are missing or were changed."
        )
    figure = hierarchy_figures.memberships(
        steps[kept],
        parent[kept],
        active[kept],
        num_agents=scales.num_agents,
        limits=(0, max(steps[-1], 1)),
    )
    yield Picture("hierarchy", "Who joined whom", caption, figure)
    believed = _map(config, problem, hierarchy, scales)
    if believed is not None:
        yield believed
    yield _energy(metrics, events, scales)
    yield _flow(metrics, scales)

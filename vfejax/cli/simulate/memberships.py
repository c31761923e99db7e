"""Who joined and who left meta-agents in the steps of a run, as events."""

import numpy as np

from vfejax.agents.hierarchy import Scales
from vfejax.problems.emergent_flow import EmergentInfo
from vfejax.runs.events import Event

__all__ = ["changes"]


def _members_events(
    number: int, before: np.ndarray, out: np.ndarray, gone: np.ndarray, scales: Scales
) -> list[Event]:
    """Departures and dissolutions of one step.

    Args:
        number: of the step.
        before: parents before it.
        out: rows that left their parent.
        gone: rows that are no meta-agents any more.
        scales: how the rows are divided.
    """
    events = []
    for row in np.unique(before[out | gone[before]]):
        if row < scales.num_agents:
            continue
        members = np.flatnonzero((before == row) & (np.arange(len(before)) != row))
        scale, leave = int(scales.of_rows[row]), out[members]
        if leave.any():
            who = tuple(members[leave].tolist())
            events.append(Event(number, "departure", scale, int(row), who))
        if gone[row]:
            who = tuple(members[~leave].tolist())
            events.append(Event(number, "dissolution", scale, int(row), who))
    return events


def changes(
    step: int, infos: EmergentInfo, before: np.ndarray, scales: Scales
) -> tuple[list[Event], np.ndarray]:
    """What happened in the steps up to ``step``, and the parents after them.

    Args:
        step: number of the last of these steps.
        infos: of the steps, ``[steps, ...]``.
        before: the parents before them.
        scales: how the rows are divided.
    """
    parents, own = np.asarray(infos.parent), np.arange(scales.num_rows)
    left, gone = np.asarray(infos.dissolved.left), np.asarray(infos.dissolved.dissolved)
    formed, adopted = np.asarray(infos.condensed.formed), np.asarray(infos.condensed.adopted)
    events = []
    for place in np.flatnonzero(np.any(left | gone | formed | adopted, axis=1)):
        number = step - len(parents) + 1 + int(place)
        after = parents[place]
        out = (before != own) & (left[place] | gone[place])
        events += _members_events(number, before, out, gone[place], scales)
        joined = {
            "adoption": adopted[place],
            "condensation": formed[place][after] & (after != own),
        }
        for kind, joining in joined.items():
            for row in np.unique(after[joining]):
                who = tuple(np.flatnonzero(joining & (after == row)).tolist())
                events.append(Event(number, kind, int(scales.of_rows[row]), int(row), who))
        before = after
    return events, np.array(before)

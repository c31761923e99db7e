"""Events of a run: ``events.csv``, which groups of agents formed, lost members and came apart, each
exact to its step.
"""

import os
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from vfejax.data.files import atomic_write
from vfejax.errors import UserError
from vfejax.runs.append_only import append_lines, complete_lines
from vfejax.runs.directory import RunDirectory

__all__ = ["KINDS", "Event", "append_events", "read_events", "truncate_events"]

KINDS = ("departure", "dissolution", "adoption", "condensation")
_FILE = "events.csv"
_HEADER = "step,event,scale,row,members"


class Event(NamedTuple):
    """Something that happened to a meta-agent.

    Attributes:
        step: after which it was so.
        event: ``condensation``: it formed. ``adoption``: agents joined it. ``departure``: members
            left it. ``dissolution``: it is gone.
        scale: of the meta-agent, 1 or above.
        row: of the meta-agent, in the arrays of the hierarchy.
        members: rows of those who formed it, who joined, who left, of the last that it had.
    """

    step: int
    event: str
    scale: int
    row: int
    members: tuple[int, ...]


def append_events(run: RunDirectory, events: Iterable[Event]) -> None:
    """Add events to ``events.csv``, on the disk when this returns. The file begins with the first
    call, also when there is nothing to tell.

    Raises:
        UserError: when the file is damaged or cannot be written. A failed write leaves no trace.
    """
    append_lines(run, _FILE, f"{_HEADER}\n", "".join(f"{_line(event)}\n" for event in events))


def _line(event: Event) -> str:
    return ",".join(map(str, event[:-1])) + "," + " ".join(map(str, event.members))


def truncate_events(run: RunDirectory, step: int) -> None:
    """Drop every event later than ``step``, and half a line at the end, in one atomic step.

    Raises:
        UserError: when a line in the middle is damaged.
    """
    path = run.path / _FILE
    if not path.exists():
        return
    if not complete_lines(path):
        path.unlink()  # only a piece of the header was written
        return
    kept = [_line(event) for event in read_events(run) if event.step <= step]
    atomic_write(path, "".join(f"{line}\n" for line in (_HEADER, *kept)))


def read_events(run: str | os.PathLike) -> list[Event]:
    """The events of a run, in the order in which they happened. Half a line at the end is not read.

    Args:
        run: a run, or the path of one; it may be going.

    Returns:
        Its events; none for a run that keeps no such list.

    Raises:
        UserError: when a line is damaged.

    >>> import tempfile
    >>> from vfejax.runs import directory
    >>> with directory.create(tempfile.mkdtemp() + "/run", {"steps": 10}) as run:
    ...     append_events(run, [Event(5, "condensation", 1, 64, (0, 3, 7))])
    ...     read_events(run)
    [Event(step=5, event='condensation', scale=1, row=64, members=(0, 3, 7))]
    """
    path = Path(run) / _FILE
    if not path.exists():
        return []
    lines = complete_lines(path)
    if lines and lines[0] != _HEADER:
        raise UserError(
            f"{path} line 1 is not {_HEADER}, so no run wrote it; move the file elsewhere, then "
            "--resume goes on and begins a new one"
        )
    return [_event(path, number, line) for number, line in enumerate(lines[1:], 2)]


def _event(path: Path, number: int, line: str) -> Event:
    try:
        step, event, scale, row, members = line.split(",")
        found = Event(int(step), event, int(scale), int(row), tuple(map(int, members.split())))
        if event not in KINDS or found.scale < 1 or min(found.step, found.row, *found.members) < 0:
            raise ValueError(line)
        return found
    except ValueError:
        raise UserError(f"{path} line {number} is damaged; correct or remove the line") from None

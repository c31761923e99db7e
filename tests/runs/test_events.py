"""Events of a run: exact to the step, in a file that fits the checkpoint after any stop."""

import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.errors import UserError
from vfejax.runs import checkpoint, directory, loop
from vfejax.runs.events import Event, append_events, read_events, truncate_events

TOLD = [
    Event(3, "condensation", 1, 9, (0, 4)),
    Event(5, "departure", 1, 9, (4,)),
    Event(5, "dissolution", 1, 9, (0,)),
    Event(8, "dissolution", 2, 12, ()),
]


@pytest.fixture
def run(tmp_path):
    with directory.create(tmp_path / "run", {"seed": 0}) as run:
        yield run


def test_events_are_read_as_they_were_told(run):
    assert read_events(run) == []
    append_events(run, [])
    assert (run.path / "events.csv").read_text() == "step,event,scale,row,members\n"
    append_events(run, TOLD[:2])
    append_events(run, TOLD[2:])
    assert read_events(run) == TOLD


@pytest.mark.parametrize(("step", "count"), [(8, 4), (5, 3), (4, 1), (-1, 0)])
def test_later_events_and_half_a_line_are_dropped(step, count, run):
    append_events(run, TOLD)
    with open(run.path / "events.csv", "ab") as file:
        file.write(b"8,conden")
    assert read_events(run) == TOLD
    truncate_events(run, step)
    assert read_events(run) == TOLD[:count]
    append_events(run, TOLD[count:])
    assert read_events(run) == TOLD


def test_a_piece_of_the_header_is_begun_anew(run):
    (run.path / "events.csv").write_text("step,ev")
    truncate_events(run, 4)
    append_events(run, TOLD)
    assert read_events(run) == TOLD


@pytest.mark.parametrize(
    "line",
    [
        *("3,condensation,1,9", "3,rumour,1,9,0", "x,condensation,1,9,0", "3,condensation,1,9,0;4"),
        *("-3,condensation,1,9,0", "3,condensation,0,9,0", "3,condensation,1,9,-1"),
    ],
)
def test_a_damaged_line_is_named(line, run):
    append_events(run, TOLD[:1])
    with open(run.path / "events.csv", "a") as file:
        file.write(f"{line}\n")
    with pytest.raises(UserError, match="line 3 is damaged"):
        read_events(run)


def test_a_file_of_another_kind_is_refused(run):
    (run.path / "events.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="no run wrote it"):
        read_events(run)


def _program():
    """Counts, and tells of every third number."""

    def observe(step, state, infos, memory):
        numbers = [] if infos is None else np.asarray(infos).tolist()
        told = [Event(n, "condensation", 1, n, (0, n)) for n in numbers if n % 3 == 0]
        return loop.Observation({"x": float(state)}, memory, events=told)

    return loop.Program(
        init=lambda: jnp.int32(0), step=lambda x, _: (x + 1, x + 1), observe=observe
    )


def test_a_loop_that_lost_a_checkpoint_tells_the_same_events_again(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    cadence = loop.Cadence(12, 2, 4)
    with directory.create(whole, {"seed": 0}) as run:
        loop.run(run, _program(), cadence, quiet=True)
    assert [event.step for event in read_events(whole)] == [3, 6, 9, 12]
    shutil.copytree(whole, broken)
    for step in (8, 12):
        shutil.rmtree(broken / "checkpoints" / f"{step:08d}")
    assert checkpoint.latest_step(broken) == 4
    with directory.open_existing(broken) as run:
        loop.run(run, _program(), cadence, resume=True, quiet=True)
    for name in ("events.csv", "metrics.csv"):
        assert (broken / name).read_bytes() == (whole / name).read_bytes()

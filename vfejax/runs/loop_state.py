"""A loop under way: the state that is passed from chunk to chunk, and what is saved after each."""

import functools
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import jax
import numpy as np

from vfejax.errors import UserError
from vfejax.runs import checkpoint, processes
from vfejax.runs.chunk import compiled
from vfejax.runs.directory import RunDirectory
from vfejax.runs.events import append_events, truncate_events
from vfejax.runs.metrics import append_metrics, truncate_metrics
from vfejax.types import PyTree

if TYPE_CHECKING:
    from vfejax.runs.loop import Cadence, Observation, Program

__all__ = ["LoopState", "Row", "Saved", "restored"]

Row: TypeAlias = Mapping[str, float]


class Saved(NamedTuple):
    """What a checkpoint holds: the state on the device, and the host's memory."""

    state: PyTree
    memory: PyTree


class LoopState:
    """A program of :mod:`vfejax.runs.loop` on its way from its first step to its last.

    Args:
        run: the run, held.
        program: what to run.
        cadence: how far, and how often to write.
        latest: the step to begin at, of which there is a checkpoint; None for step 0.
        writers: called with every row besides ``metrics.csv``, in the first process.
        jit_fn: compiles the chunks, as ``jax.jit`` does.

    Attributes:
        state, memory: as the last chunk left them.
        step: how many are done.
        stop: why the loop ends before its last step; empty when it goes on.
    """

    def __init__(
        self,
        run: RunDirectory,
        program: "Program",
        cadence: "Cadence",
        latest: int | None,
        writers: Iterable[Callable[[int, Row], None]],
        jit_fn: Callable[..., Any] = jax.jit,
    ) -> None:
        self._began = time.monotonic()
        self._run, self._program, self._cadence = run, program, cadence
        self._writers: Sequence[Callable[[int, Row], None]] = ()
        if processes.leads():
            self._writers = (functools.partial(_append, run), *writers)
        _drop_later(run, -1 if latest is None else latest)
        self.step, self.stop, self._before = latest or 0, "", 0.0
        if latest is None:
            self.state, self.memory = program.place(program.init()), program.memory
        else:
            self._restore(latest)
        self._chunk = compiled(program.step, self.state, jit_fn)

    @property
    def seconds(self) -> float:
        """How long the run took, over all its sessions."""
        return self._before + time.monotonic() - self._began

    @property
    def ends(self) -> bool:
        """Whether nothing is left to do."""
        return self.step >= self._cadence.num_steps or bool(self.stop)

    def begin(self) -> None:
        """Write down step 0."""
        self._take_down(self._program.observe(0, self.state, None, self.memory))
        self.save()

    def advance(self) -> Row:
        """Compute a chunk and write it down; what to show of it."""
        program, num_steps = self._program, _chunk_length(self.step, self._cadence)
        inputs = None if program.inputs is None else program.inputs(self.step, num_steps)
        self.state, infos = self._chunk(self.state, inputs, num_steps)
        self._check(infos)
        self.step += num_steps
        observation = program.observe(self.step, self.state, infos, self.memory)
        self._take_down(observation)
        return observation.row if observation.shown is None else observation.shown

    def save(self) -> None:
        """Write a checkpoint."""
        saved = Saved(self._program.stored(self.state), self.memory)
        checkpoint.save(self._run.path, self.step, saved, {"seconds": self.seconds})
        self._program.saved(self.step, self.memory)

    def _restore(self, step: int) -> None:
        program = self._program
        self.state, memory, self._before = restored(self._run, program, step)
        self.memory = program.prepare(step, self.state, memory)
        self.stop = program.ended(step, self.memory)

    def _take_down(self, observation: "Observation") -> None:
        self.memory, self.stop = observation.memory, observation.stop
        if observation.events is not None and processes.leads():
            append_events(self._run, observation.events)
        for write in self._writers:
            write(self.step, observation.row)

    def _check(self, infos: PyTree) -> None:
        """Raise a UserError for the first step whose numbers are not finite, or that failed."""
        watched, failed = self._program.watched(infos), self._program.failed(infos)
        first, what = _first_fault(watched, failed)
        if what:
            raise UserError(
                f"{what} at step {self.step + first + 1}. The last good checkpoint is step "
                f"{checkpoint.latest_step(self._run)} in {self._run.path}; {self._program.advice}"
            )


def restored(
    run: str | os.PathLike, program: "Program", step: int | None
) -> tuple[PyTree, PyTree, float]:
    """State, memory and seconds of a checkpoint, the state on the devices that it should be on.

    Args:
        run: directory of the run.
        program: that of the run.
        step: which checkpoint.
    """
    shapes = jax.eval_shape(program.template or program.init)
    if program.shardings is not None:
        shapes = jax.tree.map(_on, shapes, program.shardings(shapes))
    saved, meta = checkpoint.restore(run, Saved(shapes, program.memory), step)
    return program.place(saved.state), saved.memory, float(meta.get("seconds", 0.0))


def _on(leaf: jax.ShapeDtypeStruct, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _first_fault(watched: Mapping[str, PyTree], failed: Mapping[str, PyTree]) -> tuple[int, str]:
    """The first step in which something went wrong, and what; empty when nothing did."""
    for name, x in (*watched.items(), *failed.items()):
        if np.ndim(x) != 1:
            raise ValueError(
                f"watched and failed must say one thing of every step, [num_steps], got {name!r} "
                f"of shape {np.shape(x)}"
            )
    diverged = {name: ~np.isfinite(np.asarray(x)) for name, x in watched.items()}
    broken = {name: np.asarray(x) for name, x in failed.items()}
    faults = [x for x in (*diverged.values(), *broken.values()) if np.any(x)]
    if not faults:
        return 0, ""
    first = min(int(np.argmax(x)) for x in faults)
    what = ", ".join(name for name, bad in broken.items() if bad[first])
    names = [name for name, bad in diverged.items() if bad[first]]
    names = [name for name in names if name != "total"] or names
    # A step that failed explains what is not finite in it.
    return first, what or f"diverged: {', '.join(names)} not finite"


def _drop_later(run: RunDirectory, step: int) -> None:
    """Drop what was written of later steps, once all processes have read what they needed."""
    processes.barrier()
    if processes.leads():
        run.file("checkpoints/")
        checkpoint.sweep(run)
        truncate_metrics(run, step)
        truncate_events(run, step)
    processes.barrier()


def _chunk_length(step: int, cadence: "Cadence") -> int:
    """Steps to the next multiple: a run that is resumed between two keeps its rhythm."""
    return min(cadence.log_every - step % cadence.log_every, cadence.num_steps - step)


def _append(run: RunDirectory, step: int, row: Row) -> None:
    append_metrics(run, ["step", *row], [[step, *row.values()]])

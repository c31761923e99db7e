"""One resumable loop: for the commands, and for programs of your own.

A loop repeats a pure function ``step``, compiled once for a chunk of ``log_every`` steps. After
every chunk it checks that the numbers are finite, writes a row of ``metrics.csv``, shows progress,
and, when it is due, saves a checkpoint. A run that was killed, interrupted or given more steps goes
on from its newest checkpoint, and gives bit for bit what an unbroken run gives.

Processes that have joined (:mod:`vfejax.runs.process_group`) run one loop together: each calls
:func:`run`, the first one alone writes files and shows progress, all write their parts of a
checkpoint, and a signal to any of them ends the loop of all after the same chunk.
"""

import contextlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vfejax.errors import UserError
from vfejax.runs import checkpoint, processes
from vfejax.runs.directory import RunDirectory
from vfejax.runs.events import Event
from vfejax.runs.interrupt import Interrupt
from vfejax.runs.loop_state import LoopState, Row, restored
from vfejax.runs.progress import progress
from vfejax.types import PyTree

__all__ = ["Cadence", "Observation", "Outcome", "Program", "restore", "run", "start_step"]


def _copied(state: PyTree) -> PyTree:
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, jax.Array) else leaf, state)


class Observation(NamedTuple):
    """What the host makes of a chunk.

    Attributes:
        row: columns of ``metrics.csv`` besides ``step``; the same names in every call.
        memory: pytree of NumPy arrays that the host carries on, and that checkpoints hold, such as
            the best loss so far.
        shown: quantities beside the progress bar; the row by default.
        stop: why the loop should end here; empty to go on.
        events: lines of ``events.csv`` since the last call; None for a program that keeps none.
    """

    row: Row
    memory: PyTree = ()
    shown: Row | None = None
    stop: str = ""
    events: Sequence[Event] | None = None


class Program(NamedTuple):
    """What a loop runs.

    Attributes:
        init: ``() -> state``, the state of step 0, a pytree of arrays.
        step: ``(state, inputs) -> (state, info)``: pure, scanned and compiled by the loop.
        observe: ``(step, state, infos, memory) -> Observation``, on the host after every chunk, and
            at step 0 with ``infos = None``; ``infos`` has the steps as leading axis ``[num_steps,
            ...]``. Arrays of the state that it keeps must be copied: the next chunk takes over
            their memory.
        memory: what ``observe`` is given at first.
        inputs: ``(step, num_steps) -> arrays [num_steps, ...]`` that the steps from ``step`` on
            read, such as batches; None when they read nothing.
        watched: ``infos -> {name: [num_steps]}``, numbers that must stay finite.
        failed: ``infos -> {what went wrong: [num_steps]}``, True in a step that must not count.
        advice: what a user can do when they do not.
        prepare: ``(step, state, memory) -> memory``, called with what a resumed run goes on from.
        saved: ``(step, memory)``, called when a checkpoint is complete.
        ended: ``(step, memory) -> str``: why a run, as it is resumed, had ended early; empty when
            it goes on.
        template: as ``init``, traced for the shapes of a restored state; None when ``init`` itself
            can be traced.
        place: ``state -> state`` on the devices that it should be on, for fresh and restored ones;
            a copy by default, so that arrays that ``init`` did not make itself survive the loop.
            Across processes it must put every leaf on devices of all of them.
        shardings: ``shapes -> shardings`` of a state as checkpoints hold it, on which it is read;
            None for the first device, on which the whole of it must have room then. ``place`` is
            given what was read.
        stored: ``state -> state`` as checkpoints hold it: all of it by default. What it leaves out
            ``place`` adds again, to what ``init`` makes too.
    """

    init: Callable[[], PyTree]
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]
    observe: Callable[[int, PyTree, PyTree | None, PyTree], Observation]
    memory: PyTree = ()
    inputs: Callable[[int, int], PyTree] | None = None
    watched: Callable[[PyTree], Mapping[str, Any]] = lambda infos: {}
    failed: Callable[[PyTree], Mapping[str, Any]] = lambda infos: {}
    advice: str = "try a smaller step"
    prepare: Callable[[int, PyTree, PyTree], PyTree] = lambda step, state, memory: memory
    saved: Callable[[int, PyTree], None] = lambda step, memory: None
    ended: Callable[[int, PyTree], str] = lambda step, memory: ""
    template: Callable[[], PyTree] | None = None
    place: Callable[[PyTree], PyTree] = _copied
    shardings: Callable[[PyTree], PyTree] | None = None
    stored: Callable[[PyTree], PyTree] = lambda state: state


class Cadence(NamedTuple):
    """How far a loop goes, and how often it writes.

    Attributes:
        num_steps: the last step.
        log_every: steps between rows of the metrics, and in a compiled chunk.
        checkpoint_every: steps between checkpoints, a multiple of ``log_every``.
    """

    num_steps: int
    log_every: int = 10
    checkpoint_every: int = 100


class Outcome(NamedTuple):
    """Where a loop ended.

    Attributes:
        state, memory, step: of the last step.
        seconds: how long the run took, over all its sessions.
        stop: why it ended before ``num_steps``; empty when it did not.
        interrupted: whether a signal ended it.
    """

    state: PyTree
    memory: PyTree
    step: int
    seconds: float
    stop: str
    interrupted: bool


def _check_cadence(cadence: Cadence) -> None:
    for name, least in (("num_steps", 0), ("log_every", 1), ("checkpoint_every", 1)):
        value = getattr(cadence, name)
        if not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
    if cadence.checkpoint_every % cadence.log_every:
        raise ValueError(
            f"checkpoint_every must be a multiple of log_every {cadence.log_every}, got "
            f"{cadence.checkpoint_every}"
        )


def start_step(run: RunDirectory, cadence: Cadence, *, resume: bool) -> int | None:
    """The step that a resumed run goes on from; None when it begins at 0.

    Args:
        run: the run, held.
        cadence: how far it should go.
        resume: whether it is a resumed run at all.

    Raises:
        UserError: when it is beyond ``num_steps`` already, and when a run that has checkpoints is
            not resumed: a loop that began at 0 would mix its own with those of another.
    """
    latest = checkpoint.latest_step(run)
    if latest is not None and not resume:
        raise UserError(
            f"the run in {run.path} has a checkpoint of step {latest}; resume=True goes on from "
            "there, and vfejax.runs.directory.create with overwrite=True begins again"
        )
    if latest is not None and latest > cadence.num_steps:
        raise UserError(
            f"--steps {cadence.num_steps}: the run in {run.path} is at step {latest} already; give "
            "at least that"
        )
    return latest


def run(
    run: RunDirectory,
    program: Program,
    cadence: Cadence,
    *,
    resume: bool = False,
    quiet: bool = False,
    description: str = "run",
    unit: str = "steps",
    units_per_step: int = 1,
    interrupt: Interrupt | None = None,
    writers: Iterable[Callable[[int, Row], None]] = (),
    opened: Callable[[int | None, str], None] = lambda start, stop: None,
    jit_fn: Callable[..., Any] = jax.jit,
) -> Outcome:
    """Run a program to its last step, to an early stop, or to an interruption.

    Args:
        run: the run, held: :func:`vfejax.runs.directory.create` or ``open_existing``.
        program: what to run.
        cadence: how far, and how often to write.
        resume: go on from the newest checkpoint, if there is one. Rows and events of later steps
            are dropped.
        quiet: show no progress.
        description, unit, units_per_step: what progress shows, and what its rate counts.
        interrupt: what signals do; by default the first one ends the loop after its chunk.
        writers: called with every row besides ``metrics.csv``.
        opened: called before anything is computed, with the step that the run goes on from (None:
            it begins at 0) and why it had ended early, if it had.
        jit_fn: compiles the chunks, as ``jax.jit`` does.

    Returns:
        Where it ended; a checkpoint of that step has been saved, which :func:`restore` reads.

    Raises:
        UserError: when a watched number is not finite, naming the step; when the run has
            checkpoints and is not resumed; when the disk is full, and so on. The checkpoints until
            then stay.
        ValueError: for a cadence that is none, and for watched numbers that are not one per step.

    >>> import tempfile, jax.numpy as jnp
    >>> from vfejax.runs import directory, loop
    >>> from vfejax.runs.metrics import read_metrics
    >>> halve = loop.Program(
    ...     init=lambda: jnp.float32(64),
    ...     step=lambda x, _: (x / 2, x / 2),
    ...     observe=lambda step, x, infos, _: loop.Observation({"x": float(x)}))
    >>> path = tempfile.mkdtemp() + "/run"
    >>> with directory.create(path, {"seed": 0}) as run:
    ...     short = loop.run(run, halve, loop.Cadence(3, 1, 1), quiet=True)
    >>> with directory.open_existing(path) as run:  # later, in another process: more steps
    ...     long = loop.run(run, halve, loop.Cadence(5, 1, 1), resume=True, quiet=True)
    >>> float(short.state), float(long.state), read_metrics(path)["x"].tolist()
    (8.0, 2.0, [64.0, 32.0, 16.0, 8.0, 4.0, 2.0])
    >>> float(loop.restore(path, halve).state)  # in a notebook
    2.0
    """
    _check_cadence(cadence)
    latest = start_step(run, cadence, resume=resume)
    current = LoopState(run, program, cadence, latest, writers, jit_fn)
    opened(latest, current.stop)
    with contextlib.ExitStack() as stack:
        interrupt = stack.enter_context(Interrupt()) if interrupt is None else interrupt
        stack.enter_context(interrupt.graceful())
        if latest is None:
            current.begin()
        update = stack.enter_context(
            progress(
                cadence.num_steps,
                quiet=quiet or not processes.leads(),
                description=description,
                start=current.step,
                unit=unit,
                units_per_step=units_per_step,
            )
        )
        interrupted = processes.any_of(interrupt.requested)
        while not (current.ends or interrupted):
            shown = current.advance()
            update(current.step, shown)
            interrupted = processes.any_of(interrupt.requested)
            if current.ends or interrupted or current.step % cadence.checkpoint_every == 0:
                current.save()
    return Outcome(
        current.state, current.memory, current.step, current.seconds, current.stop, interrupted
    )


def restore(run: str | os.PathLike, program: Program, step: int | None = None) -> Outcome:
    """What a loop has saved, to look at; the run may be going.

    Args:
        run: directory of the run.
        program: that of the run. Its ``template`` (or ``init``), ``shardings``, ``place`` and
            ``ended`` are called.
        step: which checkpoint; the newest by default.

    Returns:
        State, memory, step and seconds of that checkpoint.

    Raises:
        UserError: when there is none, when it is damaged, or when it is not of this program.

    >>> import tempfile, jax.numpy as jnp
    >>> from vfejax.runs import directory, loop
    >>> double = loop.Program(
    ...     init=lambda: jnp.float32(1),
    ...     step=lambda x, _: (2 * x, x),
    ...     observe=lambda step, x, infos, _: loop.Observation({"x": float(x)}))
    >>> path = tempfile.mkdtemp() + "/run"
    >>> with directory.create(path, {"seed": 0}) as held:
    ...     outcome = loop.run(held, double, loop.Cadence(3, 1, 1), quiet=True)
    >>> found = loop.restore(path, double, step=2)
    >>> float(found.state), found.step
    (4.0, 2)
    """
    number = checkpoint.latest_step(run) if step is None else step
    try:
        state, memory, seconds = restored(run, program, number)
    except UserError:
        if step is None and checkpoint.latest_step(run) != number:  # replaced by newer ones
            return restore(run, program)
        raise
    assert number is not None  # else there was nothing to read
    return Outcome(state, memory, number, seconds, program.ended(number, memory), False)

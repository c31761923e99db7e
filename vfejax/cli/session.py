"""One session of a command that makes a run: the directory opened, signals heeded, the inputs
compared, the loop run, the report written.

A command is then its configuration, its problem and its pictures.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from vfejax.cli import drawing, executable_cache, options
from vfejax.cli.options import RunOptions
from vfejax.data.files import atomic_write
from vfejax.runs import checkpoint, loop, processes, shared_directory, tensorboard
from vfejax.runs import directory as run_directory
from vfejax.runs import inputs as run_inputs
from vfejax.runs.interrupt import Interrupt
from vfejax.runs.report import Report

__all__ = ["Session", "begin", "compare"]


class Session(NamedTuple):
    """A run held by this process, and what the user is told about it.

    Attributes:
        config: the command's options.
        run: the directory.
        name: of the command.
        interrupt: what signals do.
        settings: what ``config.toml`` will say once the loop goes on.
        before: the run's options before it was resumed; None for a new run.
        notes: remarks so far, for the terminal and for the report.
    """

    config: RunOptions
    run: run_directory.RunDirectory
    name: str
    interrupt: Interrupt
    settings: dict[str, Any]
    before: RunOptions | None
    notes: list[str]

    @property
    def cadence(self) -> loop.Cadence:
        """How far the run goes, and how often it writes."""
        return loop.Cadence(self.config.steps, self.config.log_every, self.config.checkpoint_every)

    @property
    def start(self) -> int | None:
        """The step that the run goes on from; None when it begins at 0."""
        return loop.start_step(self.run, self.cadence, resume=self.config.resume)

    def note(self, text: str) -> None:
        """A remark that the report repeats."""
        self.notes.append(text)
        self.say(text)

    def say(self, text: str) -> None:
        """A line on standard error, unless the user asked for quiet; the first process says it."""
        if not self.config.quiet and processes.leads():
            # A run must not end because standard error cannot be written.
            with contextlib.suppress(OSError, ValueError):
                print(f"vfejax {self.name}: {text}", file=sys.stderr, flush=True)

    def advance(
        self,
        program: loop.Program,
        *,
        unit: str = "steps",
        units_per_step: int = 1,
        jit_fn: Callable[..., Any] = executable_cache.jit,
    ) -> loop.Outcome:
        """Run the program as far as the options say.

        Args:
            program: what to run.
            unit: what the rate beside the progress bar counts, such as tokens.
            units_per_step: how many of them one step makes.
            jit_fn: compiles the steps, as ``jax.jit`` does.

        Returns:
            Where it ended; a checkpoint of that step has been saved.

        Raises:
            UserError: when a watched number is not finite, or the disk is full; the checkpoints
                until then stay.
        """
        config = self.config
        with contextlib.ExitStack() as stack:
            writers = []
            if config.tensorboard and processes.leads():
                writers.append(stack.enter_context(tensorboard.writer(self.run, self.start)))
            return loop.run(
                self.run,
                program,
                self.cadence,
                resume=config.resume,
                quiet=config.quiet,
                description=self.name,
                unit=unit,
                units_per_step=units_per_step,
                interrupt=self.interrupt,
                writers=writers,
                opened=self._opened,
                jit_fn=jit_fn,
            )

    def _opened(self, start: int | None, stop: str) -> None:
        """Write down and announce what a resumed run does differently."""
        if self.before is None or stop:
            return
        if start is None:
            self.say(f"{self.run.path} has no checkpoint, so it begins at step 0")
        for change in options.changes(self.before, self.config):
            self.note(f"resumed at step {start or 0}: {change}")
        if not processes.leads():
            return
        run_directory.write_config(self.run, self.settings)
        run_directory.renew_environment(self.run, self.settings, start or 0)

    def finish(
        self,
        outcome: loop.Outcome,
        report: Report | None,
        summary: dict[str, Any],
        text: Callable[[dict[str, Any]], str],
    ) -> int:
        """Write report and summary, print the text, and return the exit status.

        Args:
            outcome: of the loop.
            report: what to show; the remarks so far join its notes. None in processes that write
                none: all but the first.
            summary: what ``summary.json`` says; how long the run took joins it.
            text: the summary for a terminal.

        Raises:
            KeyboardInterrupt: when a signal ended the loop.
        """
        if report is not None:
            self._write(outcome, report, summary, text)
        if outcome.interrupted:
            raise KeyboardInterrupt
        return 0

    def _write(
        self,
        outcome: loop.Outcome,
        report: Report,
        summary: dict[str, Any],
        text: Callable[[dict[str, Any]], str],
    ) -> None:
        notes = (*report.notes, *self.notes)
        if outcome.stop:
            notes = (*notes, outcome.stop)
        settings = run_directory.read_config(self.run)
        report._replace(notes=notes).write(self.run, settings, drawing.drawn)
        whole = {**summary, "seconds": round(outcome.seconds, 1)}
        atomic_write(self.run.file("summary.json"), json.dumps(whole, indent=2) + "\n")
        if not self.config.quiet:
            print(text(whole))
            if outcome.stop:
                print(outcome.stop)
            print(f"report: {self.config.out / 'report.html'}")


def compare(config: RunOptions, inputs: run_inputs.Inputs) -> None:
    """Refuse inputs that cannot be read, those that a resumed run was not made from, and those that
    ``--overwrite`` would remove, before any is read.

    Raises:
        UserError: naming option and file.
    """
    run_inputs.check_readable(inputs)
    if config.overwrite and processes.leads():
        run_inputs.check_kept(config.out, inputs)
    if config.resume:
        run_inputs.check(config.out, inputs)


def _opened(
    config: RunOptions, settings: dict[str, Any], inputs: run_inputs.Inputs
) -> run_directory.RunDirectory:
    """The directory of the run: a new one, or that of a resumed run."""
    if not processes.leads():
        return shared_directory.join(config.out)
    if config.resume:
        return run_directory.open_existing(config.out)
    if config.overwrite:
        run_inputs.check_kept(config.out, inputs)
    return run_directory.create(config.out, settings, overwrite=config.overwrite)


@contextlib.contextmanager
def begin(
    config: RunOptions,
    name: str,
    inputs: run_inputs.Inputs | None = None,
) -> Iterator[Session]:
    """Open the run that a resumed command goes on with, or make a new one.

    Args:
        config: the command's options.
        name: of the command.
        inputs: the files that the run is computed from, by option. A new run keeps their checksums;
            a resumed one refuses changed ones.

    Of several processes the first one holds the run, and the others read it.

    Raises:
        UserError: when the directory cannot be used, or an input has changed.
    """
    inputs = {} if inputs is None else inputs
    settings = options.settings(config)
    if config.tensorboard:
        tensorboard.require()
    with Interrupt(f"vfejax {name}: interrupted") as interrupt:
        before = None
        if config.resume:
            before = options.stored(type(config), config.out, program=f"vfejax {name}")
        with _opened(config, settings, inputs) as run:
            known = config.resume and run_inputs.is_recorded(run)
            begins = not config.resume or checkpoint.latest_step(run) is None
            if begins and not known and processes.leads():
                run_inputs.record(run, inputs)
            shared_directory.meet(run)
            if known or not processes.leads():
                run_inputs.check(run, inputs)
            yield Session(config, run, name, interrupt, settings, before, [])

"""Progress of a long loop: a bar on a terminal, a few plain lines elsewhere, nothing when quiet."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn

__all__ = ["ProgressFn", "progress"]

_MAX_LINES = 20
_MIN_INTERVAL = 2.0  # seconds between plain lines


class ProgressFn(Protocol):
    """Report: ``step`` are done, and these quantities have these values now."""

    def __call__(self, step: int, postfix: Mapping[str, float], /) -> None: ...


@contextlib.contextmanager
def progress(
    total: int,
    *,
    quiet: bool = False,
    description: str = "",
    start: int = 0,
    unit: str = "steps",
    units_per_step: int = 1,
    stream: IO[str] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[ProgressFn]:
    """Show how far a loop is: steps, the caller's quantities, rate and time left.

    On a terminal one bar, redrawn; elsewhere at most 20 lines, the first report and the last among
    them, the others at least 2 s and a nineteenth of the run apart. The rate counts from the first
    report, so that compilation does not spoil it.

    Args:
        total: step at which the loop ends.
        quiet: show nothing.
        description: what is going on, in a word.
        start: step at which the loop begins, when it continues an earlier one.
        unit: what the rate counts.
        units_per_step: how many of them a step is.
        stream: where to; standard error if None.
        clock: seconds.

    Yields:
        ``update(step, postfix)``, to be called now and then, with the last call at ``step =
        total``.
    """
    stream = sys.stderr if stream is None else stream
    status = _status(total, unit, units_per_step, clock)
    if quiet:
        yield lambda step, postfix: None
    elif stream.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(total, description, start, stream) as draw:
            yield lambda step, postfix: draw(step, status(step, postfix))
    else:
        yield _lines(total, description, start, stream, clock, status)


@contextlib.contextmanager
def _bar(
    total: int, description: str, start: int, stream: IO[str]
) -> Iterator[Callable[[int, str], None]]:
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=None),
        TaskProgressColumn(),
        TextColumn("{task.fields[status]}", markup=False),
    )
    console = Console(file=stream, force_terminal=True, force_jupyter=False)
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task(description, total=total, completed=start, status="compiling")
        yield lambda step, status: bar.update(
            task, completed=step, status=status, refresh=step >= total
        )


def _lines(
    total: int,
    description: str,
    start: int,
    stream: IO[str],
    clock: Callable[[], float],
    status: Callable[[int, Mapping[str, float]], str],
) -> ProgressFn:
    printed: list[tuple[int, float]] = []
    gap = (total - start) / (_MAX_LINES - 1)

    def update(step: int, postfix: Mapping[str, float]) -> None:
        text = status(step, postfix)
        due = not printed or (
            step - printed[-1][0] >= gap and clock() - printed[-1][1] >= _MIN_INTERVAL
        )
        if due or (step >= total and printed[-1][0] < step):
            printed.append((step, clock()))
            percent = 100 * step // max(total, 1)
            print(
                f"{description} {step}/{total} ({percent} %) {text}".strip(),
                file=stream,
                flush=True,
            )

    return update


def _status(
    total: int, unit: str, units_per_step: int, clock: Callable[[], float]
) -> Callable[[int, Mapping[str, float]], str]:
    first: list[tuple[int, float]] = []

    def status(step: int, postfix: Mapping[str, float]) -> str:
        now = clock()
        if not first:
            first.append((step, now))
        done, seconds = step - first[0][0], now - first[0][1]
        parts = [f"{name} {float(value):.6g}" for name, value in postfix.items()]
        if done > 0 and seconds > 0:
            parts.append(f"{done * units_per_step / seconds:.4g} {unit}/s")
            parts.append(f"{_duration((total - step) * seconds / done)} left")
        return "  ".join(parts)

    return status


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"

"""Progress of a long loop: a bar on a terminal, a few plain lines elsewhere, nothing when quiet."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from typing import IO, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn
from rich.table import Column

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
    status = _Status(total, unit, units_per_step, clock)
    if quiet:
        yield lambda step, postfix: None
    elif stream.isatty() and os.environ.get("TERM") != "dumb":
        with _bar(total, description, start, stream) as draw:
            yield lambda step, postfix: draw(step, status(step, postfix))
    else:
        yield _Lines(total, description, start, stream, clock, status)


@contextlib.contextmanager
def _bar(
    total: int, description: str, start: int, stream: IO[str]
) -> Iterator[Callable[[int, str], None]]:
    columns = (
        TextColumn(
            "{task.description} {task.percentage:>3.0f}%",
            markup=False,
            # However narrow the terminal is.
            table_column=Column(no_wrap=True, min_width=len(description) + 5),
        ),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[status]}", markup=False),
    )
    console = Console(file=stream, force_terminal=True, force_jupyter=False)
    with Progress(*columns, console=console, expand=True) as bar:
        task = bar.add_task(description, total=total, completed=start, status="compiling")
        yield lambda step, status: bar.update(
            task, completed=step, status=status, refresh=step >= total
        )


class _Lines:
    """A few plain lines: the first report and the last, and others some way and time apart."""

    def __init__(
        self,
        total: int,
        description: str,
        start: int,
        stream: IO[str],
        clock: Callable[[], float],
        status: Callable[[int, Mapping[str, float]], str],
    ) -> None:
        self._total, self._description, self._stream = total, description, stream
        self._clock, self._status = clock, status
        self._gap = (total - start) / (_MAX_LINES - 1)
        self._last: tuple[int, float] | None = None  # step and time of the line before

    def __call__(self, step: int, postfix: Mapping[str, float], /) -> None:
        text = self._status(step, postfix)
        if not self._is_due(step):
            return
        self._last = (step, self._clock())
        percent = 100 * step // max(self._total, 1)
        line = f"{self._description} {step}/{self._total} ({percent} %) {text}".strip()
        # A run must not end because its progress cannot be shown.
        with contextlib.suppress(OSError, ValueError):
            print(line, file=self._stream, flush=True)

    def _is_due(self, step: int) -> bool:
        if self._last is None:
            return True
        last, when = self._last
        apart = step - last >= self._gap and self._clock() - when >= _MIN_INTERVAL
        return apart or (step >= self._total and last < step)


class _Status:
    """Quantities, rate and time left, as text. The rate counts from the first call."""

    def __init__(
        self, total: int, unit: str, units_per_step: int, clock: Callable[[], float]
    ) -> None:
        self._total, self._unit, self._units_per_step = total, unit, units_per_step
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def __call__(self, step: int, postfix: Mapping[str, float]) -> str:
        now = self._clock()
        if self._first is None:
            self._first = (step, now)
        done, seconds = step - self._first[0], now - self._first[1]
        parts = [f"{name} {float(value):.6g}" for name, value in postfix.items()]
        if done > 0 and seconds > 0:
            parts.append(f"{done * self._units_per_step / seconds:.4g} {self._unit}/s")
            parts.append(f"{_duration((self._total - step) * seconds / done)} left")
        return "  ".join(parts)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}"

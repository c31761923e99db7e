"""Pictures of a command drawn by two processes: this one, and one beside it that is ready by the
time there are pictures.

Matplotlib holds Python's lock, so that threads would not help. The second process draws the same
pixels; whatever goes wrong with it, this one draws.
"""

import contextlib
import os
import pickle
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from vfejax.runs import report
from vfejax.runs.report import Picture

__all__ = ["Painter", "allowed", "begin", "drawn"]

_PATIENCE = 60.0  # seconds that a picture is waited for
_PROGRAM = "import sys; sys.path[:] = {}; from vfejax.figures.png import serve; serve()"


class Painter:
    """A process that draws one picture at a time.

    >>> from matplotlib.figure import Figure
    >>> with contextlib.closing(Painter()) as painter:
    ...     png = painter.draw(Figure(figsize=(1, 1))).result()
    >>> png == report.figure_png(Figure(figsize=(1, 1)))
    True
    """

    def __init__(self) -> None:
        # In a session of its own, where Ctrl-C in a terminal does not reach it.
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM.format(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        self._thread = ThreadPoolExecutor(1)
        self._last: Future[Any] = self._thread.submit(self._answer)

    @property
    def idle(self) -> bool:
        """Whether it is ready and has nothing to do."""
        return self._last.done() and self._process.poll() is None

    def draw(self, figure: Any) -> "Future[bytes]":
        """The picture to come of a Matplotlib figure."""
        self._last = self._thread.submit(self._ask, figure)
        return self._last

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._thread.shutdown(cancel_futures=True)
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            with contextlib.suppress(OSError):
                stream.close()  # type: ignore[union-attr]

    def _ask(self, figure: Any) -> bytes:
        question = pickle.dumps(figure)
        self._process.stdin.write(question)  # type: ignore[union-attr]
        self._process.stdin.flush()  # type: ignore[union-attr]
        return self._answer()

    def _answer(self) -> Any:
        return pickle.load(self._process.stdout)  # type: ignore[arg-type]


class _Beside:
    """Whether this process may start another, and the one that it started."""

    def __init__(self) -> None:
        self.may = False
        self.painter: Painter | None = None


_BESIDE = _Beside()


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Within it :func:`begin` starts a process, which ends with it."""
    _BESIDE.may = True
    try:
        yield
    finally:
        painter, _BESIDE.may, _BESIDE.painter = _BESIDE.painter, False, None
        if painter is not None:
            painter.close()


def _spare() -> bool:
    """Whether this process may use two processors, and others leave one of them alone."""
    own = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    load = getattr(os, "getloadavg", lambda: (0.0,))()[0]  # of the last minute
    return len(own) > 1 and load < (os.cpu_count() or 1)


def begin() -> None:
    """Start the second process where that is allowed and there is a processor to spare."""
    if _BESIDE.may and _BESIDE.painter is None and sys.executable and _spare():
        with contextlib.suppress(OSError):
            _BESIDE.painter = Painter()


def drawn(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, bytes]]:
    """Pictures in their order, each with its PNG, drawn by both processes where there are two.

    Args:
        pictures: what is drawn.
    """
    painter, waiting = _BESIDE.painter, deque[tuple[Picture, Future[bytes] | None, bytes]]()
    for picture in pictures:
        if painter is not None and painter.idle:
            waiting.append((picture, painter.draw(picture.figure), b""))
        else:
            waiting.append((picture, None, report.figure_png(picture.figure)))
        while waiting and (waiting[0][1] is None or waiting[0][1].done()):
            yield _received(*waiting.popleft())
    for entry in waiting:
        yield _received(*entry)


def _received(
    picture: Picture, answer: "Future[bytes] | None", png: bytes
) -> tuple[Picture, bytes]:
    """The picture with its PNG, drawn here if the other process fails."""
    if answer is not None:
        try:
            return picture, answer.result(_PATIENCE)
        except Exception:
            png = report.figure_png(picture.figure)
    return picture, png

"""Pictures of a command, drawn by processes that are ready by the time there is something to draw.

Matplotlib holds Python's lock, so that threads would not help. One process imports it while the
command computes, and divides into as many as there are processors; the command itself then has no
need of Matplotlib. They make the same pixels. Whatever goes wrong with them, the command draws.
"""

import contextlib
import importlib
import io
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import IO, Any, NamedTuple

import jax

from vfejax.cli.background import import_beside
from vfejax.runs import report
from vfejax.runs.report import Picture

__all__ = ["Painters", "Sketch", "allowed", "begin", "drawn", "sketched"]

_PATIENCE = 60.0  # seconds that a picture is waited for
_MOST = 4  # processes
_PROGRAM = "import sys; sys.path[:] = {}; from vfejax.figures.png import serve; serve({})"


class Sketch(NamedTuple):
    """A figure that is made where it is drawn, by a function that is imported there.

    >>> Sketch("math", "hypot", (3.0, 4.0), {})()
    5.0
    """

    module: str
    function: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    def __call__(self) -> Any:
        """The figure."""
        function = getattr(importlib.import_module(self.module), self.function)
        return function(*self.arguments, **self.options)


class _Sketched:
    def __init__(self, module: str) -> None:
        self._module = module

    def __getattr__(self, function: str) -> Any:
        if function.startswith("_"):
            raise AttributeError(function)
        return lambda *arguments, **options: Sketch(self._module, function, arguments, options)


def sketched(module: str) -> Any:
    """A stand-in for a module of :mod:`vfejax.figures`: its functions return a :class:`Sketch` in
    place of a figure, so that Matplotlib is imported where it is drawn.

    >>> sketched("math").hypot(3.0, 4.0)()
    5.0
    """
    return _Sketched(module)


class _Pickler(pickle.Pickler):
    """Arrays of JAX become NumPy's, so that who draws need not import JAX."""

    def reducer_override(self, x: Any) -> Any:
        return jax.device_get(x).__reduce_ex__(5) if isinstance(x, jax.Array) else NotImplemented


def _packed(figure: Any) -> bytes:
    """A figure or a sketch of one as :func:`vfejax.figures.png.serve` reads it."""
    buffer = io.BytesIO()
    _Pickler(buffer, 5).dump(tuple(figure) if isinstance(figure, Sketch) else figure)
    return buffer.getvalue()


class _Painter(NamedTuple):
    """Both ends that this process has of a process that draws."""

    questions: IO[bytes]
    answers: IO[bytes]


class Painters:
    """Processes that draw, each one picture at a time.

    Args:
        count: how many.

    >>> from matplotlib.figure import Figure
    >>> with contextlib.closing(Painters(2)) as painters:
    ...     png = painters.draw(Figure(figsize=(1, 1))).result()
    >>> png == report.figure_png(Figure(figsize=(1, 1)))
    True
    """

    def __init__(self, count: int) -> None:
        pipes = [(*os.pipe(), *os.pipe()) for _ in range(count)]
        theirs = [(a, d) for a, _, _, d in pipes]  # they read a and write d
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM.format(sys.path, theirs)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=sum(theirs, ()),
                # In a session of their own, where Ctrl-C in a terminal does not reach them.
                start_new_session=True,
            )
        finally:
            for end in sum(theirs, ()):
                os.close(end)
        self._threads = ThreadPoolExecutor(count)
        self._all = [_Painter(os.fdopen(b, "wb"), os.fdopen(c, "rb")) for _, b, c, _ in pipes]
        self._idle: queue.SimpleQueue[_Painter] = queue.SimpleQueue()
        for painter in self._all:
            self._idle.put(painter)

    def draw(self, figure: Any) -> "Future[bytes]":
        """The picture to come of a Matplotlib figure, or of a :class:`Sketch`."""
        return self._threads.submit(self._ask, figure)

    def close(self) -> None:
        """End the processes, whatever they do."""
        with contextlib.suppress(OSError):  # there are none any more
            os.killpg(self._process.pid, signal.SIGKILL)
        self._threads.shutdown(cancel_futures=True)
        self._process.wait()
        for end in (end for painter in self._all for end in painter):
            with contextlib.suppress(OSError):
                end.close()

    def _ask(self, figure: Any) -> bytes:
        question = _packed(figure)
        painter = self._idle.get()  # at once: there are as many as threads
        try:
            painter.questions.write(question)
            painter.questions.flush()
            return pickle.load(painter.answers)
        finally:
            self._idle.put(painter)


class _Beside:
    """Whether this process may start others, and those that it started."""

    def __init__(self) -> None:
        self.may = False
        self.painters: Painters | None = None


_BESIDE = _Beside()


@contextlib.contextmanager
def allowed() -> Iterator[None]:
    """Within it :func:`begin` starts processes, which end with it."""
    _BESIDE.may = True
    try:
        yield
    finally:
        painters, _BESIDE.may, _BESIDE.painters = _BESIDE.painters, False, None
        if painters is not None:
            painters.close()


def begin() -> None:
    """Start the processes where that is allowed and there are several processors; elsewhere import
    Matplotlib in a thread.
    """
    if _BESIDE.painters is not None:
        return
    own = getattr(os, "sched_getaffinity", lambda _: range(os.cpu_count() or 1))(0)
    count = min(len(own), _MOST)
    if _BESIDE.may and sys.executable and hasattr(os, "fork") and count > 1:
        with contextlib.suppress(OSError):
            _BESIDE.painters = Painters(count)
            return
    import_beside("matplotlib.backends.backend_agg")


def drawn(pictures: Iterable[Picture]) -> Iterator[tuple[Picture, bytes]]:
    """Pictures in their order, each with its PNG.

    Args:
        pictures: what is drawn.
    """
    painters = _BESIDE.painters
    if painters is None:
        yield from report.in_turn(pictures)
        return
    waiting = deque[tuple[Picture, Future[bytes]]]()
    for picture in pictures:
        waiting.append((picture, painters.draw(picture.figure)))
        while waiting and (waiting[0][1].done() or len(waiting) > 2 * _MOST):
            yield _received(*waiting.popleft())
    for entry in waiting:
        yield _received(*entry)


def _received(picture: Picture, answer: "Future[bytes]") -> tuple[Picture, bytes]:
    """The picture with its PNG, drawn here if another process fails."""
    try:
        return picture, answer.result(_PATIENCE)
    except Exception:
        return picture, report.figure_png(picture.figure)

"""Stopping a run without losing what it computed."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import Any, NoReturn

__all__ = ["INTERRUPTED", "Interrupt", "end_process"]

INTERRUPTED = 130  # exit status of a program that Ctrl-C or SIGTERM stopped
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupt:
    """What Ctrl-C and SIGTERM do while a run is made.

    Within :meth:`graceful` the first one only sets ``requested``, so that the loop can end its
    chunk and save. Every other one stops at once. To stop at once is to end the process with status
    130: an exception raised in the middle of a compilation, or beside the threads that write a
    checkpoint, would be met by crashes and tracebacks instead. A run survives that as it survives a
    kill. In an interactive session it raises KeyboardInterrupt.

    Python runs signal handlers between two of its own instructions, so not during a compilation.
    A thread therefore waits for the signals, and obeys them at any time.

    Outside the main thread, where Python allows no signal handlers, nothing is changed.

    >>> with Interrupt(ends_process=False) as interrupt, interrupt.graceful():
    ...     signal.raise_signal(signal.SIGINT)
    >>> interrupt.requested
    True
    """

    def __init__(self, message: str = "interrupted", *, ends_process: bool | None = None) -> None:
        """``message`` is the line on standard error when the process is ended;
        ``ends_process=None`` ends it except in an interactive session.
        """
        self.requested = False
        self._message = message
        self._graceful = False
        self._ends_process = not _is_interactive() if ends_process is None else ends_process
        self._before: dict[signal.Signals, Any] = {}
        self._wakeup: tuple[int, int] | None = None  # our pipe's end, and the one before

    def __enter__(self) -> "Interrupt":
        if threading.current_thread() is not threading.main_thread():
            return self
        if self._ends_process:
            reader, writer = os.pipe()
            os.set_blocking(writer, False)
            before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
            self._wakeup = (writer, before)
            threading.Thread(target=self._watch, args=(reader,), daemon=True).start()
        self._before = {sig: signal.signal(sig, self._handle) for sig in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for sig, handler in self._before.items():
            signal.signal(sig, handler)
        self._before = {}
        if self._wakeup is not None:
            writer, before = self._wakeup
            signal.set_wakeup_fd(before)
            os.close(writer)
            self._wakeup = None

    @contextlib.contextmanager
    def graceful(self) -> Iterator[None]:
        """While this lasts the first signal is remembered, not obeyed."""
        self._graceful = True
        try:
            yield
        finally:
            self._graceful = False

    def _watch(self, reader: int) -> None:
        """Read the numbers of signals as they arrive, until the pipe is closed."""
        while number := os.read(reader, 1):
            if number[0] in _SIGNALS:
                self._receive()
        os.close(reader)

    def _handle(self, signum: int, frame: Any) -> None:
        if not self._ends_process:
            self._receive()

    def _receive(self) -> None:
        if self._graceful and not self.requested:
            self.requested = True
        elif self._ends_process:
            end_process(self._message)
        else:
            raise KeyboardInterrupt


def end_process(message: str, status: int = INTERRUPTED) -> NoReturn:
    """End at once, whatever other threads do, with one line and the cursor shown again.

    Args:
        message: the line, for standard error.
        status: of the process.
    """
    with contextlib.suppress(OSError, ValueError, AttributeError):
        shown = "\x1b[?25h\n" if sys.stderr.isatty() else ""
        line = f"{shown}{message}\n".encode(errors="backslashreplace")
        os.write(sys.stderr.fileno(), line)
    os._exit(status)


def _is_interactive() -> bool:
    return hasattr(sys, "ps1") or "ipykernel" in sys.modules

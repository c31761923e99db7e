"""How processes join into one job, and how each ends when another is lost.

``jax.distributed`` connects them: the first process runs a service that all report to. A collective
that waits for a lost process cannot be cancelled, and the client of that service ends its process
by ``abort()``, with a page of native messages. What users see instead is one line: the messages go
to a temporary file, and a handler of the abort reads there who was lost.
"""

import atexit
import contextlib
import ctypes
import os
import re
import signal
import socket
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple, TextIO

import jax

from vfejax.data.files import one_line
from vfejax.errors import UserError
from vfejax.runs import processes
from vfejax.runs.interrupt import end_process

__all__ = ["FAILED", "Group", "joined"]

FAILED = 2
"""Exit status of a process that ends because another was lost."""

_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as lost
_PATIENCE = 24 * 3600  # seconds that a process which is done waits for the others
_FATAL = "JAX distributed service detected fatal errors"
_UNHEALTHY = re.compile(r"stopped sending heartbeats\):\s*((?:\S*\d+\s)+)")
_CONNECTION = re.compile(r"gloo|nccl|coordination|connection (reset|closed|refused)", re.IGNORECASE)
_NOISE = re.compile(r"\[Gloo\] Rank|\d+ is connected to \d+ peer ranks")


class Group(NamedTuple):
    """The processes of one job.

    Attributes:
        coordinator: ``HOST:PORT`` of the first process, where all reach it.
        size: how many there are.
        rank: which of them this is, from 0; the first one listens at ``coordinator``.
    """

    coordinator: str
    size: int
    rank: int


@contextlib.contextmanager
def joined(group: Group, name: str, *, wait: float = 120.0) -> Iterator[None]:
    """Within it this process is one of the group. Enter before anything touches a device.

    In the end every process waits for the others. When one is lost the others end, with status 2
    and one line that names it: at once where its connections break, within a minute where it only
    falls silent. After an exception this process leaves the others when the interpreter ends.

    Args:
        group: the processes.
        name: of the command, in front of messages.
        wait: seconds for all processes to come. When not all do, the process ends, with status 2
            and one line.

    Raises:
        UserError: when the first process cannot listen at the coordinator's port, and when not all
            processes have as many devices.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    native = _Native()
    watch = _Watch(group, name, native)
    native.divert()
    watch.begin()
    try:
        with watch.deadline(wait):
            _connect(group, wait)
            _check_devices()
            processes.barrier()
        watch.connected = True
        yield
    except Exception as error:
        if _is_of_connection(error):
            watch.lost_connection()
        watch.failing = True
        atexit.register(_leave, native, FAILED if isinstance(error, UserError) else 1)
        raise
    except KeyboardInterrupt:  # all processes stop at the same step, and each says so
        _part(watch, native)
        raise
    else:
        _part(watch, native)


def _part(watch: "_Watch", native: "_Native") -> None:
    """Leave together, and put back what was changed."""
    jax.distributed.shutdown()
    watch.end()
    native.put_back()


def _leave(native: "_Native", status: int) -> None:
    """End without waiting for the others, who do not come. The first process stays a moment: its
    service ends with it, and others may be about to report the same error.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if status != FAILED:  # an error of its own kind is one line
        native.replay()
    if processes.leads():
        time.sleep(2)
    os._exit(status)


def _connect(group: Group, wait: float) -> None:
    try:
        if group.rank == 0:  # beside another listener the service of jaxlib may crash
            socket.create_server(("", int(group.coordinator.rpartition(":")[2]))).close()
        jax.distributed.initialize(
            group.coordinator,
            group.size,
            group.rank,
            cluster_detection_method="deactivate",
            initialization_timeout=int(wait) + 60,  # later than our own
            heartbeat_timeout_seconds=_HEARTBEAT,
            shutdown_timeout_seconds=_PATIENCE,
        )
    except Exception as error:
        raise UserError(
            f"--coordinator {group.coordinator}: process {group.rank} cannot join there "
            f"({one_line(error, 120)}); give a free port of the machine of process 0"
        ) from error


def _check_devices() -> None:
    """Raise a UserError, in every process, unless all have as many devices."""
    counts = Counter(device.process_index for device in jax.devices())
    for index, count in counts.items():
        if count != counts[0]:
            raise UserError(
                f"process {index} has {count} devices and process 0 has {counts[0]}; give every "
                "process as many"
            )


def _is_of_connection(error: BaseException | None) -> bool:
    """Whether an error, or what it comes from, is the end of a connection to another process."""
    while error is not None:
        if not isinstance(error, UserError) and _CONNECTION.search(str(error)):
            return True
        error = error.__cause__ or error.__context__
    return False


class _Native:
    """What native code writes on standard output and error goes to a temporary file; what Python
    writes goes where it went before.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115 (it is for the whole process)
        self._before: tuple[TextIO, TextIO] = (sys.stdout, sys.stderr)
        self._kept: list[tuple[int, int]] = []

    def divert(self) -> None:
        """From here on native code writes into the file."""
        sys.stdout, sys.stderr = map(_moved, self._before)
        for number in (1, 2):
            self._kept.append((number, os.dup(number)))
            os.dup2(self._file.fileno(), number)

    def put_back(self) -> None:
        """Undo it, and show what was written meanwhile."""
        self.replay()
        sys.stdout.flush()
        for number, kept in self._kept:
            os.dup2(kept, number)
            os.close(kept)
        for moved, before in zip((sys.stdout, sys.stderr), self._before, strict=True):
            if moved is not before:
                moved.close()
        sys.stdout, sys.stderr = self._before

    def read(self) -> str:
        """All that native code has written."""
        size = os.fstat(self._file.fileno()).st_size
        return os.pread(self._file.fileno(), size, 0).decode(errors="replace")

    def replay(self) -> None:
        """Show it on standard error, without the noise that every connection makes."""
        lines = self.read().splitlines(keepends=True)
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write("".join(line for line in lines if not _NOISE.search(line)))
            sys.stderr.flush()


def _moved(stream: TextIO) -> TextIO:
    """The same stream through another descriptor, where it has one."""
    try:
        descriptor = os.dup(stream.fileno())
    except (OSError, ValueError):
        return stream
    return open(descriptor, "w", buffering=1, encoding=stream.encoding, errors=stream.errors)


class _Watch:
    """Turns the ways in which a process can be lost into one line."""

    def __init__(self, group: Group, name: str, native: _Native) -> None:
        self.connected = False
        self.failing = False  # this process has an error of its own, which it reports
        self._group, self._name, self._native = group, name, native
        self._said = threading.Lock()
        self._libc = ctypes.CDLL(None)
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: self._aborted())

    def begin(self) -> None:
        """Handle ``abort()`` of native code. A handler of Python would run after it: never."""
        self._libc.signal(signal.SIGABRT, self._handler)

    def end(self) -> None:
        """Handle it no longer."""
        self._libc.signal(signal.SIGABRT, None)

    @contextlib.contextmanager
    def deadline(self, wait: float) -> Iterator[None]:
        """End the process when the others have not come within ``wait`` seconds."""
        timer = threading.Timer(wait, lambda: self._end(self._alone(f"within {wait:g} s")))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def lost_connection(self) -> None:
        """End the process: the main thread met a broken connection."""
        if self._group.size > 2 and self.connected:
            time.sleep(2 * _HEARTBEAT)  # until the service knows whose it was, and aborts
        self._end(self._lost([]) if self.connected else self._alone("in time"))

    def _aborted(self) -> None:
        said = self._native.read()
        if self.failing:
            time.sleep(5)  # while the main thread reports its own error
            os._exit(FAILED)
        if _FATAL not in said:
            self._native.replay()
            self._end("native code ended this process; what it said is above")
        self._end(self._lost(_named(said)) if self.connected else self._alone("in time"))

    def _end(self, message: str) -> None:
        """The last line of this process; the first caller writes it."""
        self._said.acquire()
        end_process(f"vfejax {self._name}: {message}", FAILED)

    def _lost(self, named: list[int]) -> str:
        if self._group.size == 2:
            named = [1 - self._group.rank]
        numbers = ", ".join(map(str, named))
        who = f"process {numbers} of {self._group.size}" if named else "another process"
        return (
            f"{who} ended or was lost, so this one ends; the checkpoints stay: start all "
            "processes again, with --resume, to go on from the newest"
        )

    def _alone(self, when: str) -> str:
        coordinator, size, rank = self._group
        if rank and not _listens(coordinator):
            return (
                f"--coordinator {coordinator}: no process 0 answers there {when}; start it on that "
                f"machine, with --process 0 and the same --coordinator and --processes"
            )
        return (
            f"--processes {size}: not all of them came {when}; start each with the same "
            "--coordinator and --processes, and its own --process"
        )


def _named(said: str) -> list[int]:
    """The lost processes, as the messages of the service name them."""
    if found := _UNHEALTHY.search(said):
        return sorted({int(number) for number in re.findall(r"\d+(?=\s)", found[1])})
    return [0] if "Failed to send RPC to coordination service" in said else []


def _listens(coordinator: str) -> bool:
    host, _, port = coordinator.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=2).close()
    except (OSError, ValueError):
        return False
    return True

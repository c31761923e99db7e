"""How processes join into one job, and how each ends when another is lost.

``jax.distributed`` connects them: the first process runs a service that all report to. A collective
that waits for a lost process cannot be cancelled, and the client of that service ends its process
by ``abort()``, with a page of native messages. What users see instead is one line: the messages go
to a temporary file, and a handler of the abort reads there who was lost. Before all that the
processes meet (:mod:`vfejax.runs.rendezvous`), and by the connections of that rendezvous each tells
the others its error.
"""

import atexit
import contextlib
import ctypes
import importlib.metadata
import os
import re
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple, NoReturn

import jax

from vfejax import __version__
from vfejax.data.files import one_line
from vfejax.errors import UserError
from vfejax.runs import processes, rendezvous
from vfejax.runs.connections import Links
from vfejax.runs.interrupt import INTERRUPTED, end_process
from vfejax.runs.native_output import NativeOutput

__all__ = ["FAILED", "Group", "joined"]

FAILED = 2
"""Exit status of a process that ends because another was lost."""

_SETTINGS = (
    *("JAX_ENABLE_X64", "JAX_THREEFRY_PARTITIONABLE", "JAX_DEFAULT_PRNG_IMPL"),
    "JAX_DEFAULT_MATMUL_PRECISION",
)
"""What decides the numbers of a program, so that copies of one state would differ."""

_HEARTBEAT = 30  # seconds without a sign of life after which a process counts as lost
_CONNECTING = 60  # seconds for the service of JAX, once all have met
_WORD = 3.0  # seconds for what another process tells, or for an error of its own
_PATIENCE = 24 * 3600  # seconds that a process which is done waits for the others
_FATAL = "JAX distributed service detected fatal errors"
_UNHEALTHY = re.compile(r"stopped sending heartbeats\):\s*((?:\S*\d+\s)+)")
_CONNECTION = re.compile(r"gloo|nccl|coordination|connection (reset|closed|refused)", re.IGNORECASE)


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
def joined(
    group: Group, name: str, alike: Mapping[str, Any] | None = None, *, wait: float = 120.0
) -> Iterator[None]:
    """Within it this process is one of the group. Enter before anything touches a device.

    In the end every process waits for the others. When one is lost the others end, with status 2
    and one line that names it: at once where its connections break, within a minute where it only
    falls silent. Once the first process, which writes for all, has written all there is, those
    whose own work is done end as ever. An exception of one ends the others too, with a line that
    repeats what it says; the process itself leaves the others when the interpreter ends.

    Args:
        group: the processes.
        name: of the command, in front of messages.
        alike: what must be the same in all processes besides their versions of vfejax and JAX and
            settings of JAX that decide its numbers, by the name that users know; JSON values.
        wait: seconds for all processes to come.

    Raises:
        UserError: in every process, when they are not alike, have other numbers of devices, or do
            not all come; in the first one, when it cannot listen at the coordinator's port; in the
            others, when it does not answer.
    """
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM for itself
    links = rendezvous.meet(*group, _versions(group) | dict(alike or {}), wait=wait)
    native = NativeOutput()
    watch = _Watch(group, name, native, links)
    native.divert()
    watch.begin()
    try:
        with watch.deadline(wait):
            _connect(group)
            _check_devices()
            processes.barrier()
        watch.connected = True
        yield
    except Exception as error:
        if _is_of_connection(error):
            watch.lost_connection()
        watch.failing = True
        kind = "" if isinstance(error, UserError) else f"{type(error).__name__}: "
        links.tell(kind + one_line(error, 400))
        atexit.register(_leave, native, FAILED if isinstance(error, UserError) else 1, group.rank)
        raise
    except KeyboardInterrupt:  # all processes stop at the same step, and each says so
        _part(watch, native, links, INTERRUPTED)
        raise
    else:
        _part(watch, native, links, 0)


def _versions(group: Group) -> dict[str, Any]:
    return {
        "vfejax": __version__,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        **{name: str(jax.config.values[name.lower()]) for name in _SETTINGS},
        "--processes": group.size,
    }


def _part(watch: "_Watch", native: NativeOutput, links: Links, status: int) -> None:
    """Leave together, and put back what was changed."""
    watch.done = status
    links.finish()
    jax.distributed.shutdown()
    links.close()
    watch.end()
    native.put_back()


def _leave(native: NativeOutput, status: int, rank: int) -> None:
    """End without waiting for the others, who do not come. The first process stays a moment: its
    service ends with it, and others may be about to report the same error.
    """
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
    if status != FAILED:  # an error of its own kind is one line
        native.replay()
    if rank == 0:
        time.sleep(2)
    os._exit(status)


def _connect(group: Group) -> None:
    try:
        jax.distributed.initialize(
            *group,
            cluster_detection_method="deactivate",
            initialization_timeout=_CONNECTING,
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
    try:
        devices = jax.devices()
    except (AssertionError, RuntimeError) as error:
        if _is_of_connection(error):
            raise
        raise UserError(
            f"JAX has no device to use ({one_line(error)}); see JAX_PLATFORMS, JAX_NUM_CPU_DEVICES "
            "and other variables in the environment of every process"
        ) from error
    counts = Counter(device.process_index for device in devices)
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


class _Watch:
    """Turns the ways in which a process can be lost into one line."""

    def __init__(self, group: Group, name: str, native: NativeOutput, links: Links) -> None:
        self.connected = False
        self.failing = False  # this process has an error of its own, which it reports
        self.done: int | None = None  # status of this process, which waits for the others to leave
        self._group, self._name, self._native, self._links = group, name, native, links
        self._said = threading.Lock()
        self._libc = ctypes.CDLL(None)
        self._handler = ctypes.CFUNCTYPE(None, ctypes.c_int)(lambda number: self._aborted())

    def begin(self) -> None:
        """Handle ``abort()`` of native code. A handler of Python would run after it: never."""
        self._libc.signal(signal.SIGABRT, self._handler)
        self._links.listen(self._told)

    def end(self) -> None:
        """Handle it no longer."""
        self._libc.signal(signal.SIGABRT, None)

    @contextlib.contextmanager
    def deadline(self, wait: float) -> Iterator[None]:
        """End the process when it is not connected to the others within ``wait`` seconds."""
        timer = threading.Timer(wait, lambda: self._end(self._apart(f"within {wait:g} s", [])))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def lost_connection(self) -> None:
        """End the process: the main thread met a broken connection."""
        self._links.heard.wait(_WORD)  # whose it was, or why it ended
        self._end_without([])

    def _told(self) -> None:
        """End the process where another has told why it ends, or left before all were connected.
        All may have the same error.
        """
        time.sleep(_WORD)
        if not self.failing and (self._links.failed or not self.connected):
            self._end_without([])

    def _aborted(self) -> None:
        said = self._native.read()
        if self.failing:
            time.sleep(5)  # while the main thread reports its own error
            os._exit(FAILED)
        if _FATAL not in said:
            self._native.replay()
            self._end("native code ended this process; what it said is above")
        self._end_without(_named(said))

    def _end_without(self, named: list[int]) -> None:
        """End the process, since another has ended."""
        named = self._links.lost[:1] or named  # the first: others may have ended for its sake
        if self.done is not None and (self._group.rank == 0 or self._links.finished):
            self._end_done(self.done, named)
        if self._links.failed:
            self._end(self._links.failed)
        self._end(self._lost(named) if self.connected else self._apart("in time", named))

    def _end_done(self, status: int, named: list[int]) -> NoReturn:
        """End as if all had left together: all that there is to write is written."""
        self._said.acquire()
        with contextlib.suppress(OSError, ValueError):
            sys.stdout.flush()
        lost = f"{self._who(named)} ended or was lost as all left; the run is complete"
        if status or self._group.rank:
            end_process(f"vfejax {self._name}: {'interrupted' if status else lost}", status)
        os._exit(status)

    def _end(self, message: str) -> None:
        """The last line of this process; the first caller writes it."""
        self._said.acquire()
        end_process(f"vfejax {self._name}: {message}", FAILED)

    def _who(self, named: list[int]) -> str:
        if self._group.size == 2:
            named = [1 - self._group.rank]
        numbers = ", ".join(map(str, named))
        return f"process {numbers} of {self._group.size}" if named else "another process"

    def _lost(self, named: list[int]) -> str:
        return (
            f"{self._who(named)} ended or was lost, so this one ends; the checkpoints stay: start "
            "all processes again, with --resume, to go on from the newest"
        )

    def _apart(self, when: str, named: list[int]) -> str:
        if named:
            return f"process {named[0]} ended or was lost as all joined; start all of them again"
        return (
            f"--processes {self._group.size}: all of them came, but did not connect to each other "
            f"{when}; see that their machines reach each other at all ports"
        )


def _named(said: str) -> list[int]:
    """The lost processes, as the messages of the service name them."""
    if found := _UNHEALTHY.search(said):
        return sorted({int(number) for number in re.findall(r"\d+(?=\s)", found[1])})
    return [0] if "Failed to send RPC to coordination service" in said else []

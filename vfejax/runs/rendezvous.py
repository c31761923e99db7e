"""The rendezvous of the processes of one job: how they meet before JAX connects them.

The service of JAX waits in silence for whoever calls. So before it starts, process 0 listens at the
coordinator's port itself: each of the others introduces itself, process 0 compares it with itself,
and tells all of them to begin, or why not. The connections stay open. The error that ends one
process is told to all by them, and one that breaks says who was lost. What is said is one JSON
object a line.
"""

import contextlib
import json
import selectors
import socket
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from vfejax.data.files import one_line
from vfejax.errors import UserError
from vfejax.runs.connections import Links, Peer

__all__ = ["meet"]

_LINGER = 3.0  # seconds in which process 0, when it refuses, tells those who come late
_SILENCE = 30.0  # seconds without a word after which a listener is no process 0
_TRY = 10.0  # seconds that one attempt to connect takes
_LATE = 15.0  # seconds that the others give process 0 beyond its own limit


def meet(
    coordinator: str, size: int, rank: int, alike: Mapping[str, Any], *, wait: float = 120.0
) -> Links:
    """Wait until all processes have come, and are alike.

    Args:
        coordinator: ``HOST:PORT`` of process 0.
        size: how many processes there are.
        rank: which of them this is, from 0.
        alike: what every process must have the same, by the name that users know; JSON values.
        wait: seconds for all to come.

    Returns:
        The connections of this process to the others.

    Raises:
        UserError: in every process that has come, saying who did not or what differs; in process 0,
            when it cannot listen there; in another one, when process 0 does not answer.

    >>> meet("127.0.0.1:0", 1, 0, {}).close()
    """
    if rank == 0:
        return _Host(coordinator, size, alike).hold(wait)
    return _attend(coordinator, {"process": rank, "alike": dict(alike)}, wait)


class _Host:
    """The rendezvous as process 0 holds it."""

    def __init__(self, coordinator: str, size: int, alike: Mapping[str, Any]) -> None:
        self._coordinator, self._size = coordinator, size
        self._alike = json.loads(json.dumps(alike))
        self._present: dict[int, Peer] = {}
        self._refused: list[Peer] = []
        self._reason, self._refused_at = "", 0.0

    def hold(self, wait: float) -> Links:
        with self._listening() as listener, selectors.DefaultSelector() as selector:
            selector.register(listener, selectors.EVENT_READ)
            end = time.monotonic() + wait
            while len(self._present) + len(self._refused) < self._size - 1:
                if self._reason:
                    end = min(end, self._refused_at + _LINGER)
                if (left := end - time.monotonic()) <= 0:
                    break
                self._wait(listener, selector, left)
            selector.unregister(listener)
            callers = [key.data for key in selector.get_map().values()]
        return self._concluded(wait, callers)

    def _wait(
        self, listener: socket.socket, selector: selectors.BaseSelector, seconds: float
    ) -> None:
        """Take in who calls and what callers say, once something of that happens."""
        for key, _ in selector.select(seconds):
            if key.fileobj is listener:
                _welcome(listener, selector)
            elif not self._hear(key.data):
                selector.unregister(key.fileobj)

    def _listening(self) -> socket.socket:
        host, port = _address(self._coordinator)
        try:
            socket.getaddrinfo(host, port)
            return _listener(port)
        except OSError as error:
            why = one_line(error, 120).partition(" (while")[0]
            raise UserError(
                f"--coordinator {self._coordinator}: process 0 cannot listen there ({why}); give "
                "the name and a free port of its machine"
            ) from error

    def _hear(self, peer: Peer) -> bool:
        """Listen to a caller; whether more may come from it."""
        words = peer.receive()
        if words is not None:
            match words.get("vfejax"):
                case {"process": int(rank), "alike": dict(alike)}:
                    peer.send(heard=True)
                    self._compare(rank, alike, peer)
                case _:
                    peer.ended = True  # a stranger
        if peer.ended:  # another may come in its place
            self._present = {rank: p for rank, p in self._present.items() if p is not peer}
            peer.close()
        return not peer.ended

    def _compare(self, rank: int, alike: dict[str, Any], peer: Peer) -> None:
        """Take in a process, or keep in mind why not."""
        reason = _difference(rank, alike, self._alike)
        if not reason and rank in self._present:
            reason = f"--process {rank}: given to two processes; give each its own number"
        if not reason:
            self._present[rank] = peer
            return
        self._refused.append(peer)
        if not self._reason:
            self._reason, self._refused_at = reason, time.monotonic()

    def _concluded(self, wait: float, callers: list[Peer]) -> Links:
        """Tell all callers how it ends."""
        missing = [str(rank) for rank in range(1, self._size) if rank not in self._present]
        if missing and not self._reason:
            self._reason = (
                f"--processes {self._size}: process {', '.join(missing)} did not come within "
                f"{wait:g} s; start each with the same --coordinator and --processes, and its own "
                "--process"
            )
        if self._reason:
            for peer in callers:
                peer.send(refused=self._reason)
                peer.close()
            raise UserError(self._reason)
        for peer in callers:
            if peer in self._present.values():
                peer.send(begin=True)
            else:
                peer.close()
        return Links(0, self._present)


def _welcome(listener: socket.socket, selector: selectors.BaseSelector) -> None:
    with contextlib.suppress(OSError):  # gone before it was met
        connection, _ = listener.accept()
        peer = Peer(connection)
        selector.register(peer, selectors.EVENT_READ, peer)


def _listener(port: int) -> socket.socket:
    """Listen on all interfaces, as the service of JAX will."""
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):
            return socket.create_server(
                ("::", port), family=socket.AF_INET6, dualstack_ipv6=True, backlog=1024
            )
    return socket.create_server(("", port), backlog=1024)


def _address(coordinator: str) -> tuple[str, int]:
    host, _, port = coordinator.rpartition(":")
    try:
        host.encode("idna")  # sockets raise an error of their own kind
    except UnicodeError:
        raise UserError(f"--coordinator {coordinator}: {host} is no name of a machine") from None
    return host.strip("[]"), int(port)


def _difference(rank: int, theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """In what a process differs from process 0; empty when it does not."""
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if theirs.get(name) != ours.get(name):
            return (
                f"process {rank} has {name} {_shown(theirs.get(name))} and process 0 has "
                f"{_shown(ours.get(name))}; give every process the same"
            )
    return ""


def _shown(value: Any) -> str:
    if value is None:
        return "not given"
    text = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return (text if text.isprintable() else ascii(text))[:160]


def _attend(coordinator: str, introduction: dict[str, Any], wait: float) -> Links:
    """The rendezvous as the others see it."""
    peer = _reach(coordinator, introduction, wait)
    words = peer.hear(wait + _LATE) or {}
    if "begin" in words:
        return Links(introduction["process"], {0: peer})
    peer.close()
    raise UserError(
        str(words["refused"])
        if "refused" in words
        else f"--coordinator {coordinator}: process 0 ended, or fell silent, before all processes "
        "had come; start all of them again"
    )


def _reach(coordinator: str, introduction: dict[str, Any], wait: float) -> Peer:
    """A connection to process 0, which knows who this is."""
    end, why = time.monotonic() + wait, ""
    while (left := end - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(_address(coordinator), min(left, _TRY))
        except OSError as error:
            why = one_line(error, 120)
        else:
            # Where no one listens, a port that the system gives out can meet itself.
            itself = connection.getsockname() == connection.getpeername()
            peer = Peer(connection)
            peer.send(vfejax=introduction)
            words = peer.hear(min(left, _SILENCE))
            if words is not None and "heard" in words:
                return peer
            peer.close()
            if (words is not None or not peer.ended) and not itself:
                _refuse_stranger(coordinator, silent=words is None)
            why = "what connects there is cut off"
        time.sleep(min(left, 0.3))
    raise UserError(
        f"--coordinator {coordinator}: no process 0 answers there within {wait:g} s ({why}); start "
        "it on that machine, with --process 0 and the same --coordinator and --processes"
    )


def _refuse_stranger(coordinator: str, *, silent: bool) -> NoReturn:
    what = "something listens there and says nothing" if silent else "something else answers there"
    raise UserError(
        f"--coordinator {coordinator}: {what}, no process 0 that waits for others; give a port of "
        "that machine which is free, or end the other program or run"
    )

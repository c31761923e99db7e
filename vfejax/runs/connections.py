"""Connections between the processes of one job, by which each tells the others why it ends."""

import contextlib
import json
import selectors
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["Links", "Peer"]

_LONGEST = 1 << 20  # bytes of a line
_SENDING = 5.0  # seconds that a process waits for another to take a line


class Peer:
    """Another process at the end of a connection, which says one JSON object a line.

    Attributes:
        ended: whether the other has hung up.

    >>> one, other = map(Peer, socket.socketpair())
    >>> one.send(begin=True)
    >>> other.hear(1.0)
    {'begin': True}
    >>> one.close(), other.hear(1.0), other.ended
    (None, None, True)
    >>> other.close()
    """

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(_SENDING)
        self.ended = False
        self._connection = connection
        self._line = b""
        self._sending = threading.Lock()

    def fileno(self) -> int:
        """For selectors."""
        return self._connection.fileno()

    def send(self, **words: Any) -> None:
        """Say something, if the other still listens."""
        with contextlib.suppress(OSError), self._sending:
            self._connection.sendall(json.dumps(words).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """The line that ends in what there is to read; None when none does. One that is no JSON
        object, as of a stranger, is an empty one.
        """
        try:
            ready = self._connection.recv(1 << 16, socket.MSG_PEEK)
            self._line += self._connection.recv(ready.find(b"\n") + 1 or len(ready))
        except TimeoutError:
            return None
        except OSError:
            ready = b""
        if not ready:
            self.ended = True
        elif self._line.endswith(b"\n"):
            line, self._line = self._line, b""
            return _words(line)
        strange = len(self._line) > _LONGEST or not b"{".startswith(self._line[:1])
        return {} if strange else None

    def hear(self, seconds: float) -> dict[str, Any] | None:
        """The next line; None when the other hangs up, or says none within so many seconds."""
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self, selectors.EVENT_READ)
            while not self.ended and selector.select(max(end - time.monotonic(), 0)):
                if (words := self.receive()) is not None:
                    return words
        return None

    def close(self) -> None:
        """Hang up; who reads here sees an end."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._connection.close()


def _words(line: bytes) -> dict[str, Any]:
    try:
        words = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return words if isinstance(words, dict) else {}


class Links:
    """The connections of one process: process 0 has one to each of the others, and passes on what
    they say; the others have one to process 0.

    One that breaks ends nothing, since something between two machines may have dropped it. But it
    is known then whose it was, should JAX find that a process is lost.

    Attributes:
        failed: what ended another process; empty when none has told.
        finished: whether process 0 has told that it has written all there is to write.
        lost: the processes whose connections broke, in that order.
        heard: set when there is either.
    """

    def __init__(self, rank: int, peers: Mapping[int, Peer]) -> None:
        self.failed = ""
        self.finished = False
        self.lost: list[int] = []
        self.heard = threading.Event()
        self._rank, self._peers = rank, dict(peers)

    def listen(self, told: Callable[[], None]) -> None:
        """Call back, in a thread, when another process fails or is lost."""
        selector = selectors.DefaultSelector()
        for rank, peer in self._peers.items():  # here, since a thread may begin after close()
            selector.register(peer, selectors.EVENT_READ, rank)
        threading.Thread(target=self._listen, args=(selector, told), daemon=True).start()

    def tell(self, reason: str) -> None:
        """Tell all others what ends this process."""
        self._pass_on(self._rank, failed=f"process {self._rank} ended: {reason}")

    def finish(self) -> None:
        """Process 0 tells all others that it has written all there is to write."""
        if self._rank == 0:
            self._pass_on(self._rank, finished=True)

    def close(self) -> None:
        """Leave the others, which are done too."""
        self._pass_on(self._rank, done=True)
        for peer in self._peers.values():
            peer.close()

    def _listen(self, selector: selectors.BaseSelector, told: Callable[[], None]) -> None:
        with selector:
            while any(self._peers[key.data].fileno() >= 0 for key in selector.get_map().values()):
                for key, _ in selector.select():
                    if not self._listen_to(key.data, told):
                        selector.unregister(key.fileobj)

    def _listen_to(self, rank: int, told: Callable[[], None]) -> bool:
        """Take in what a process says; whether more may come."""
        peer = self._peers[rank]
        words = peer.receive()
        if peer.ended:
            words = {"lost": rank}
        if words == {"finished": True}:
            self.finished = True
        elif words is not None and "done" not in words:
            self._note(rank, words)
            told()
        return not peer.ended and words != {"done": True}

    def _note(self, source: int, words: dict[str, Any]) -> None:
        """Keep what a process says, and pass it on."""
        self.failed = self.failed or str(words.get("failed", ""))
        if isinstance(rank := words.get("lost"), int):
            self.lost.append(rank)
        if self._rank == 0:
            self._pass_on(source, **words)
        self.heard.set()  # after that, since process 0 may end at once

    def _pass_on(self, source: int, **words: Any) -> None:
        for rank, peer in self._peers.items():
            if rank != source:
                peer.send(**words)

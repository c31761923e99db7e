"""Lines of a file descriptor as they arrive, in constant memory, until the end or a signal."""

import os
import select
from collections.abc import Callable, Iterator

__all__ = ["LONGEST", "lines"]

LONGEST = 1 << 20  # bytes of a line; the rest of a longer one is dropped
_WAIT = 0.1  # seconds between looks at whether to stop


def lines(descriptor: int, stopped: Callable[[], bool]) -> Iterator[bytes | None]:
    """Each line without its break as soon as it is complete, and the last one without a break too.

    Args:
        descriptor: of a pipe, a terminal or a file.
        stopped: asked several times a second; the lines end when it is true.

    Yields:
        The line; None in place of one that is longer than 1 MiB.

    >>> reader, writer = os.pipe()
    >>> os.write(writer, b"1,2\\r\\n3"); os.close(writer)
    6
    >>> list(lines(reader, lambda: False))
    [b'1,2', b'3']
    """
    held = b""
    too_long = False
    while not stopped():
        readable, _, _ = select.select([descriptor], [], [], _WAIT)
        if not readable:
            continue
        piece = os.read(descriptor, 1 << 16)
        *complete, rest = (held + piece).split(b"\n")
        for line in complete:
            if stopped():
                return
            yield None if too_long else line.rstrip(b"\r")
            too_long = False
        held = rest
        if len(held) > LONGEST:
            held, too_long = b"", True
        if not piece:
            if held or too_long:
                yield None if too_long else held.rstrip(b"\r")
            return

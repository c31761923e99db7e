"""What native code writes on standard output and error, apart from what Python writes."""

import contextlib
import os
import re
import sys
import tempfile
from typing import TextIO

__all__ = ["NativeOutput"]

# Threads write it piece by piece, so pieces of two such lines may make any other.
_NOISE = re.compile(
    r"(?:\[Gloo\] Rank|is connected to|peer ranks\.|Expected number of connected peer ranks is :"
    r"|[\d\s])*"
)


class NativeOutput:
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
            sys.stderr.write("".join(line for line in lines if not _NOISE.fullmatch(line)))
            sys.stderr.flush()


def _moved(stream: TextIO) -> TextIO:
    """The same stream through another descriptor, where it has one."""
    try:
        descriptor = os.dup(stream.fileno())
    except (OSError, ValueError):
        return stream
    return open(descriptor, "w", buffering=1, encoding=stream.encoding, errors=stream.errors)

"""Output of a command: files that replace nothing without --overwrite, and text on the terminal."""

import os
import re
import stat
import sys
from pathlib import Path

from vfejax.data.files import atomic_write, read_errors, write_errors
from vfejax.errors import UserError

__all__ = ["as_bytes", "check_replaceable", "show", "write"]

_ESCAPED = re.compile("([\udc80-\udcff]+)")  # bytes of a shell argument that are not UTF-8


def check_replaceable(path: Path | None, overwrite: bool) -> None:
    """Refuse an output file that would replace something or has no folder, before anything is
    computed.

    Args:
        path: the file, as ``--out`` gives it; None for no file.
        overwrite: whether the user allows it.

    Raises:
        UserError: for a directory, for a file in a folder that does not exist, and, without
            ``overwrite``, for a file that has content.
    """
    if path is None:
        return
    with read_errors(path):
        try:
            status = path.stat()
        except FileNotFoundError:
            folder = (path.resolve() if path.is_symlink() else path).parent
            if not folder.is_dir():
                raise UserError(
                    f"--out {path}: there is no folder {folder}; make it, or choose another place"
                ) from None
            return
    if stat.S_ISDIR(status.st_mode):
        raise UserError(f"--out {path}: is a directory; give the name of a file")
    if stat.S_ISREG(status.st_mode) and status.st_size and not overwrite:
        raise UserError(
            f"--out {path}: exists already; replace it with --overwrite, or choose another name"
        )


def write(path: Path, text: str) -> None:
    """Write a text as UTF-8.

    An ordinary file is replaced in one step. A device, a pipe and whatever a symbolic link points
    to are written in place, so that they stay what they are.
    """
    content = as_bytes(text, "utf-8")
    if not os.path.lexists(path) or (path.is_file() and not path.is_symlink()):
        atomic_write(path, content)
        return
    with write_errors(path), open(path, "wb", buffering=0) as file:
        rest = memoryview(content)
        while rest:
            rest = rest[file.write(rest) :]


def show(text: str) -> None:
    """Print a line. A character that the terminal's encoding lacks is printed as its escape; a byte
    of a shell argument that is not UTF-8 is printed as that byte.
    """
    if sys.stdout is None:
        return
    encoding = sys.stdout.encoding or "utf-8"
    if buffer := getattr(sys.stdout, "buffer", None):
        sys.stdout.flush()
        buffer.write(as_bytes(text + os.linesep, encoding))
        buffer.flush()
    else:  # a notebook
        print(text.encode(encoding, "backslashreplace").decode(encoding))


def as_bytes(text: str, encoding: str) -> bytes:
    """A text in an encoding that may lack some of its characters.

    Args:
        text: any text; lone surrogates between U+DC80 and U+DCFF stand for bytes.
        encoding: name of the encoding.

    >>> as_bytes("caf\\udce9 \\u263a", "latin-1")
    b'caf\\xe9 \\\\u263a'
    """
    pieces = _ESCAPED.split(text)
    return b"".join(
        piece.encode(encoding, "surrogateescape" if index % 2 else "backslashreplace")
        for index, piece in enumerate(pieces)
    )

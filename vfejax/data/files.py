"""Writing files so that a reader finds either the old content or the new, never half of it."""

import codecs
import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from vfejax.errors import UserError

__all__ = [
    "UTF_16",
    "atomic_file",
    "atomic_write",
    "is_temporary",
    "one_line",
    "read_errors",
    "write_errors",
]

UTF_16 = "UTF-16 text, and UTF-8 is needed; save it as UTF-8"
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)


def one_line(error: BaseException, limit: int = 200) -> str:
    """What an exception says, on one line of at most ``limit`` characters."""
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(said.split())[:limit]


@contextlib.contextmanager
def write_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError of the body into a UserError that names ``path``, the reason and the
    remedy.
    """
    _check_name(path)
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            remedy = "free some space or choose another place with --out"
        elif error.errno in _FORBIDDEN:
            remedy = "check its permissions or choose another place with --out"
        else:
            remedy = "choose another place with --out"
        raise UserError(f"cannot write {os.fspath(path)}: {one_line(error)}; {remedy}") from error


@contextlib.contextmanager
def read_errors(path: str | os.PathLike) -> Iterator[None]:
    """Turn an OSError or a decoding error of the body into a UserError that names ``path`` and the
    reason.
    """
    _check_name(path)
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(f"{os.fspath(path)} does not exist; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{os.fspath(path)} is {_encoding(error.object)}") from error
    except OSError as error:
        raise UserError(
            f"cannot read {os.fspath(path)}: {one_line(error)}; check the path"
        ) from error


def _encoding(content: bytes) -> str:
    """What bytes that are not UTF-8 are, and what to do."""
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return UTF_16
    return "not UTF-8 text; check that it is the right file"


def _check_name(path: str | os.PathLike) -> None:
    if "\0" in os.fspath(path):
        raise UserError(f"{os.fspath(path)!r} holds a NUL, which no path can; check the path")


def is_temporary(name: str) -> bool:
    """Whether ``name`` is that of a file :func:`atomic_file` had begun when its process was
    killed.
    """
    return name.startswith(".") and name.endswith(".tmp")


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike) -> Iterator[IO[bytes]]:
    """A binary file that appears at ``path``, complete and on the disk, when the body ends, and not
    at all if the body fails.

    The content goes to a hidden file beside it, which replaces ``path`` in one step.

    Raises:
        UserError: when it cannot be written.
    """
    path = Path(path)
    hidden = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with write_errors(path):
        try:
            with open(hidden, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(hidden, path)
        except BaseException:
            with contextlib.suppress(OSError):
                hidden.unlink()
            raise
        _sync_folder(path.parent)


def atomic_write(path: str | os.PathLike, content: bytes | str) -> None:
    """Write bytes, or text as UTF-8, through :func:`atomic_file`."""
    data = content.encode() if isinstance(content, str) else content
    with atomic_file(path) as file:
        file.write(data)


def _sync_folder(path: Path) -> None:
    # The rename itself must reach the disk; some network file systems cannot sync a folder and need
    # not.
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

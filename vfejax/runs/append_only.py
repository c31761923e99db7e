"""Files of a run that grow line by line, such as ``metrics.csv``: whole lines, even after a
kill.
"""

import io
import os
from pathlib import Path

from vfejax.data.files import read_errors, write_errors
from vfejax.errors import UserError
from vfejax.runs.directory import RunDirectory

__all__ = ["append_lines", "complete_lines"]


def append_lines(run: RunDirectory, name: str, header: str, text: str) -> None:
    """Add lines to a file, on the disk when this returns; the header is written with the first.

    Args:
        run: the run, held.
        name: of the file.
        header: the first line, the same in every call.
        text: complete lines; may be empty.

    Raises:
        UserError: when the file has another header or ends in half a line, or cannot be written. A
            failed write leaves no trace.
    """
    path = run.file(name)
    with write_errors(path), open(path, "a+b", buffering=0) as file:
        size = file.seek(0, os.SEEK_END)
        if size:
            _check_appendable(path, file, header)
        data = memoryview((text if size else header + text).encode())
        try:
            while data:
                data = data[file.write(data) :]
            os.fsync(file.fileno())
        except OSError:
            file.truncate(size)
            raise


def _check_appendable(path: Path, file: io.FileIO, header: str) -> None:
    file.seek(0)
    if file.read(len(header.encode())) != header.encode():
        raise UserError(
            f"{path} has other columns than this run writes ({header.strip()}); move the file "
            "elsewhere, then --resume goes on and begins a new one"
        )
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        raise UserError(
            f"{path} ends in half a line, left by a process that was killed; continue the run with "
            "--resume"
        )


def complete_lines(path: Path) -> list[str]:
    """Lines of a file without their breaks; half a line at the end is left out.

    Raises:
        UserError: when it cannot be read.
    """
    with read_errors(path):
        text = path.read_text(encoding="utf-8")
    return text.split("\n")[:-1]  # what follows the last line break is empty, or half a line

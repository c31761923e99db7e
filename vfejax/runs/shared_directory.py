"""The directory of a run that several processes make: the first one holds it, the others read."""

import contextlib
import io
import os
import time
from pathlib import Path

from vfejax.errors import UserError
from vfejax.runs import processes
from vfejax.runs.directory import RunDirectory, atomic_write
from vfejax.runs.written_files import OWN

__all__ = ["join", "meet"]

_TRIES = 50  # at seeing a new file; disks that machines share may take some seconds


def join(path: str | os.PathLike) -> RunDirectory:
    """The run that the first process holds, as the others have it: without a lock of their own.

    >>> import tempfile
    >>> with join(tempfile.mkdtemp()) as run:
    ...     run.path.is_dir()
    True
    """
    return RunDirectory(Path(path), io.FileIO(os.devnull))


def meet(run: RunDirectory) -> None:
    """Make sure that all processes see the directory that the first one holds, and all that it has
    written there. All of them must call it.

    Raises:
        UserError: in every process, when one of them does not see it.
    """
    if processes.count() == 1:
        return
    mark = run.path / OWN / "mark"
    if processes.leads():
        atomic_write(mark, str(int.from_bytes(os.urandom(4), "big") >> 1))
    processes.barrier()
    seen = processes.gathered(_seen(mark))
    if processes.leads():
        mark.unlink(missing_ok=True)
    for index, found in enumerate(seen):
        if found != seen[0]:
            raise UserError(
                f"process {index} does not see what process 0 wrote in --out (here "
                f"{run.path.absolute()}); give the absolute path of a folder on a disk that all "
                "processes share"
            )


def _seen(mark: Path) -> int:
    """What the first process wrote; 0 where it does not appear."""
    for _ in range(_TRIES):
        with contextlib.suppress(OSError, ValueError):
            return int(mark.read_text())
        time.sleep(0.1)
    return 0

"""A run is a directory: configuration, environment, metrics, and the lock that keeps two processes
apart.

``config.toml`` (fully resolved), ``environment.json``, ``metrics.csv``, ``checkpoints/``,
``figures/``, ``report.html`` and ``summary.json``; a simulation adds ``initial.npz`` and
``final.npz``, a training ``vocabulary.json`` and ``best/`` (its best weights). Every file is
written atomically except ``metrics.csv``, which grows and whose half last line, after a kill, is
never read.
"""

import contextlib
import fcntl
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w

from vfejax import __version__
from vfejax.errors import UserError
from vfejax.data.files import atomic_write, is_temporary, one_line, read_errors, write_errors

__all__ = [
    "RunDirectory",
    "append_metrics",
    "atomic_write",
    "create",
    "environment",
    "open_existing",
    "read_config",
    "read_metrics",
    "truncate_metrics",
    "write_config",
    "write_errors",
]

_LOCK = "lock"
# What --overwrite removes. The configuration goes last, so that a directory half removed is still
# known as a run.
_WRITTEN = (
    "metrics.csv",
    "checkpoints",
    "best",
    "vocabulary.json",
    "figures",
    "report.html",
    "summary.json",
    "initial.npz",
    "final.npz",
    "environment.json",
    "config.toml",
)


class RunDirectory(NamedTuple):
    """A run held by this process: ``path``, and the open ``lock`` file. Leave it with ``with`` or
    :meth:`close`.

    It counts as a path, so that functions that only read take a RunDirectory or a path.
    """

    path: Path
    lock: io.FileIO

    def __fspath__(self) -> str:
        return os.fspath(self.path)

    def __enter__(self) -> "RunDirectory":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let the next process have the directory. Closing twice is harmless."""
        self.lock.close()


def create(path: str | os.PathLike, config: Mapping[str, Any], *, overwrite: bool = False) -> RunDirectory:
    """Begin a run at ``path``: make the directory, take its lock, write ``config.toml`` and
    ``environment.json``.

    Args:
        path: a directory that does not exist, or is empty, or (with ``overwrite``) holds an earlier
            run.
        config: every setting, resolved. Entries that are None are left out, paths become strings,
            tuples lists.
        overwrite: remove what the earlier run wrote, and nothing else. A directory that has content
            but was not made by
            a run is never touched.

    Returns:
        The run, held until it is closed or the process ends in whatever way.

    Raises:
        UserError: when the path is used, in use, or cannot be written.
        TypeError: for a setting that TOML has no type for.
    """
    path = Path(path)
    document = tomli_w.dumps(_plain(config, "config"))
    _check_free(path, overwrite)
    # Before anything is written: it takes a while, and a kill then would leave a directory that is
    # no run yet.
    surroundings = json.dumps(environment(config), indent=2) + "\n"
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    lock = _acquire(path)
    try:
        _check_free(path, overwrite)  # again, now that no other process can write
        with write_errors(path):
            _clear(path)
            (path / "checkpoints").mkdir()
            (path / "figures").mkdir()
        atomic_write(path / "environment.json", surroundings)
        atomic_write(path / "config.toml", document)
    except BaseException:
        lock.close()
        raise
    return RunDirectory(path, lock)


def open_existing(path: str | os.PathLike) -> RunDirectory:
    """Take the lock of a run that exists, to continue it.

    Raises:
        UserError: when it is missing, no run, unreadable, or in use.
    """
    path = Path(path)
    read_config(path)
    return RunDirectory(path, _acquire(path))


def read_config(path: str | os.PathLike) -> dict[str, Any]:
    """The settings of a run, as ``config.toml`` has them. Needs no lock.

    Raises:
        UserError: when the directory is missing or no run, or the file is not TOML.
    """
    path = Path(path)
    file = path / "config.toml"
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; give the directory of a run")
    if not file.is_file():
        raise UserError(f"{path} holds no run (it has no config.toml); give the directory of a run")
    with read_errors(file):
        text = file.read_text(encoding="utf-8")
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise UserError(
            f"{file} is not valid TOML: {one_line(error)}; mend it or start again with --overwrite"
        ) from error


def write_config(run: RunDirectory, config: Mapping[str, Any]) -> None:
    """Replace ``config.toml``, for a run that is continued with other settings (more steps,
    say).
    """
    atomic_write(run.path / "config.toml", tomli_w.dumps(_plain(config, "config")))


def environment(config: Mapping[str, Any]) -> dict[str, Any]:
    """What a run depended on besides its configuration: versions, device, seed, git revision if
    any.
    """
    import jax

    device = jax.devices()[0]
    found = {
        "python": platform.python_version(),
        "vfejax": __version__,
        "jax": jax.__version__,
        "jaxlib": importlib.metadata.version("jaxlib"),
        "numpy": np.__version__,
        "system": platform.platform(),
        "device_platform": device.platform,
        "device_kind": device.device_kind,
        "num_devices": jax.device_count(),
        "seed": config.get("seed"),
        "git_revision": _git_revision(),
    }
    return {name: value for name, value in found.items() if value is not None}


def _git_revision() -> str | None:
    """Commit of the vfejax sources, with ``-dirty`` after it when they were changed; None outside a
    repository.
    """
    sources = Path(__file__).resolve().parents[1]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(sources), *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()

    try:
        git(
            "ls-files", "--error-unmatch", "__init__.py"
        )  # an installed copy inside somebody else's repository is not ours
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*") or None
    except (OSError, subprocess.SubprocessError):
        return None


def _plain(value: Any, name: str) -> Any:
    if value is None:
        raise TypeError(f"{name} is None, which TOML cannot hold")
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{name}.{key}") for key, item in value.items() if item is not None}
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is of type {type(value).__name__}, which TOML cannot hold")


def _check_free(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; choose another place with --out")
    with read_errors(path):
        content = [name for name in os.listdir(path) if name != _LOCK and not is_temporary(name)]
    if not content:
        return
    # Every run has a lock from its first moment: a config.toml alone may be anybody's.
    if not ((path / "config.toml").is_file() and (path / _LOCK).is_file()):
        raise UserError(
            f"{path} is not empty and holds no run, so nothing there is touched; choose another place with --out"
        )
    if not overwrite:
        raise UserError(
            f"{path} already holds a run; continue it with --resume, replace it with --overwrite, or choose another --out"
        )


def _clear(path: Path) -> None:
    for entry in (*(path / name for name in _WRITTEN), *filter(lambda item: is_temporary(item.name), path.iterdir())):
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink(missing_ok=True)


def _acquire(path: Path) -> io.FileIO:
    """Lock the directory. The kernel lets go when the process ends, however it ends; the file
    itself stays.
    """
    file = path / _LOCK
    with write_errors(file):
        lock = io.FileIO(os.open(file, os.O_RDWR | os.O_CREAT, 0o666), "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = lock.read(20).decode(errors="replace").strip()
        lock.close()
        if isinstance(error, BlockingIOError):
            raise UserError(
                f"{path} is in use by another process (pid {holder or 'unknown'}); wait for it or choose another --out"
            ) from error
        raise UserError(
            f"cannot lock {file}: {one_line(error)}; choose a place on another file system with --out"
        ) from error
    with contextlib.suppress(OSError):  # the number is only a courtesy to whoever meets the lock
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
    return lock


def append_metrics(run: RunDirectory, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Add rows to ``metrics.csv``, on the disk when this returns; the header is written with the
    first of them.

    Args:
        run: the run, held.
        columns: names, one of them ``step``; the same in every call.
        rows: numbers, one per column. Integers stay integers; every float is written so that
            reading gives it back exactly.

    Raises:
        UserError: when the file has other columns or ends in half a line, or cannot be written. A
            failed write leaves no trace.
        ValueError: for a row that does not fit the columns.
    """
    columns = tuple(columns)
    if "step" not in columns or any(set(name) & set(',"\r\n') for name in columns):
        raise ValueError(f"columns must include step and hold no comma, quote or line break, got {columns}")
    rows = [tuple(row) for row in rows]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"every row must have {len(columns)} entries, as many as there are columns {columns}")
    header = ",".join(columns) + "\n"
    text = "".join(",".join(map(_cell, row)) + "\n" for row in rows)
    path = run.path / "metrics.csv"
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
            f"{path} has other columns than this run writes ({header.strip()}); start again with --overwrite"
        )
    file.seek(-1, os.SEEK_END)
    if file.read(1) != b"\n":
        raise UserError(
            f"{path} ends in half a line, left by a process that was killed; continue the run with --resume"
        )


def _cell(value: Any) -> str:
    number = np.asarray(value).item()
    return str(int(number)) if isinstance(number, int) else repr(float(number))


def truncate_metrics(run: RunDirectory, step: int) -> None:
    """Drop every row whose step is greater than ``step``, and half a line at the end, in one atomic
    step.

    Raises:
        UserError: when a line in the middle is damaged.
    """
    path = run.path / "metrics.csv"
    if not path.exists():
        return
    lines, rows = _rows(path)
    if not lines:
        path.unlink()  # only a piece of the header was written
        return
    position = lines[0].split(",").index("step")
    kept = [line for line, row in zip(lines[1:], rows, strict=True) if row[position] <= step]
    atomic_write(path, "".join(f"{line}\n" for line in (lines[0], *kept)))


def read_metrics(run: str | os.PathLike) -> dict[str, np.ndarray]:
    """The columns of ``metrics.csv``: ``step`` as int64, the others as float64. Half a line at the
    end is not read.

    Args:
        run: a run, or the path of one; it may be going.

    Raises:
        UserError: when there are no metrics, or a line is damaged.
    """
    path = Path(run) / "metrics.csv"
    lines, rows = _rows(path)
    if not lines:
        raise UserError(f"{path} is empty; the run has not come to its first logged step")
    columns = lines[0].split(",")
    table = np.asarray(rows, np.float64).reshape(len(rows), len(columns))
    return {name: table[:, i].astype(np.int64 if name == "step" else np.float64) for i, name in enumerate(columns)}


def _rows(path: Path) -> tuple[list[str], list[list[float]]]:
    """Complete lines of the file, and the numbers of those after the header."""
    with read_errors(path):
        text = path.read_text(encoding="utf-8")
    lines = text.split("\n")[:-1]  # what follows the last line break is empty, or half a line
    if lines and "step" not in lines[0].split(","):
        raise UserError(f"{path} line 1 has no column step; start again with --overwrite")
    rows = []
    for number, line in enumerate(lines[1:], 2):
        try:
            row = [float(cell) for cell in line.split(",")]
        except ValueError:
            row = []
        if len(row) != lines[0].count(",") + 1:
            raise UserError(f"{path} line {number} is damaged; remove the line or start again with --overwrite")
        rows.append(row)
    return lines, rows

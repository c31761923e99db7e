"""A run is a directory: configuration, environment, and the lock that keeps two processes apart.

Every run has ``config.toml`` (its settings), ``environment.json``, ``metrics.csv``,
``checkpoints/``, ``figures/``, ``report.html`` and ``summary.json``; a command adds its own
results. The folder ``.vfejax`` holds the lock, and the list of the files that the run wrote: these
are what ``--overwrite`` removes. Every file is written atomically except ``metrics.csv``, which
grows, and whose half last line, after a kill, is never read.

A run is made in an order that a kill or a full disk may cut anywhere: first ``.vfejax``, then
``config.toml``, then all else. A directory with nothing but ``.vfejax`` counts as empty.
"""

import contextlib
import fcntl
import io
import json
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tomli_w

from vfejax.data.files import atomic_write, one_line, read_errors, write_errors
from vfejax.errors import UserError
from vfejax.runs.environment import environment
from vfejax.runs.written_files import (
    CONFIG,
    OWN,
    clear,
    is_bare,
    is_first_version,
    is_own,
    is_rest,
    note,
)

__all__ = [
    "RunDirectory",
    "atomic_write",
    "create",
    "open_existing",
    "read_config",
    "renew_environment",
    "write_config",
    "write_errors",
]


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

    def file(self, name: str) -> Path:
        """Path of a file that the run is about to write.

        The name is noted first, so that ``--overwrite`` removes the file and nothing else, and the
        folder of the file is made when it is missing.

        Args:
            name: relative path, such as ``"final.npz"`` or ``"figures/energy.png"``; one that ends
                in ``/`` is a folder of checkpoints.

        Raises:
            UserError: when it cannot be written.
        """
        path = self.path / name
        with write_errors(path):
            note(self.path, [name])
            (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        return path


def create(
    path: str | os.PathLike, config: Mapping[str, Any], *, overwrite: bool = False
) -> RunDirectory:
    """Begin a run at ``path``: make the directory, take its lock, write ``config.toml`` and
    ``environment.json``.

    Args:
        path: a directory that does not exist, or is empty, or (with ``overwrite``) holds an earlier
            run.
        config: every setting, resolved. Entries that are None are left out, paths become strings,
            tuples lists.
        overwrite: remove what the earlier run wrote, and nothing else. A directory that has content
            but was not made by a run is never touched.

    Returns:
        The run, held until it is closed or the process ends in whatever way.

    Raises:
        UserError: when the path is used, in use, or cannot be written; for a setting that is no
            UTF-8 text.
        TypeError: for a setting that TOML has no type for.

    >>> import tempfile
    >>> from vfejax.runs import metrics
    >>> place = Path(tempfile.mkdtemp()) / "run"
    >>> with create(place, {"steps": 10}) as run:
    ...     metrics.append_metrics(run, ("step", "energy"), [(0, 2.5)])
    >>> read_config(place), metrics.read_metrics(place)["energy"].tolist()
    ({'steps': 10}, [2.5])
    """
    path = Path(path)
    document = _document(config)
    _check_free(path, overwrite)
    surroundings = _dump(environment(config))  # takes a while, so before anything is written
    with write_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    lock = _acquire(path)
    try:
        _check_free(path, overwrite)  # again, now that no other process can write
        run = RunDirectory(path, lock)
        with write_errors(path):
            clear(path)
        atomic_write(run.file(CONFIG), document)  # replaces the earlier run's in one step
        atomic_write(run.file("environment.json"), surroundings)
        run.file("checkpoints/")
    except BaseException:
        lock.close()
        raise
    return run


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
    file = path / CONFIG
    with read_errors(path):
        if not os.path.isdir(path):
            raise UserError(f"{path} is not a directory; give the directory of a run")
        names = os.listdir(path)
    if CONFIG not in names:
        raise UserError(f"{path} holds no run (it has no {CONFIG}); give the directory of a run")
    with read_errors(file):
        text = file.read_text(encoding="utf-8-sig")
    try:
        return tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise UserError(f"{file} is not valid TOML: {one_line(error)}; correct the line") from error


def write_config(run: RunDirectory, config: Mapping[str, Any]) -> None:
    """Replace ``config.toml``, for a run that is continued with other settings (more steps,
    say).
    """
    atomic_write(run.file(CONFIG), _document(config))


def renew_environment(run: RunDirectory, config: Mapping[str, Any], step: int) -> None:
    """Describe the machine of a continued run in ``environment.json``.

    What the file said before moves to its list ``earlier``, when it differs.

    Args:
        run: the run, held.
        config: its settings.
        step: where it goes on, ``resumed_from_step`` in the file.
    """
    path = run.file("environment.json")
    fresh = environment(config) | {"resumed_from_step": step}
    try:
        before = dict(json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError, RecursionError):
        before = {}  # it only informs: a damaged one is replaced
    earlier = before.pop("earlier", [])
    changed = {k: v for k, v in before.items() if fresh.get(k) != v and k != "resumed_from_step"}
    fresh["earlier"] = [*earlier, before] if changed else earlier
    atomic_write(path, _dump({name: value for name, value in fresh.items() if value != []}))


def _document(config: Mapping[str, Any]) -> bytes:
    text = tomli_w.dumps(_plain(config, "config"))
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        line = text[: error.start].rpartition("\n")[2]
        raise UserError(
            f"setting {line.partition(' ')[0]}: is no UTF-8 text, so {CONFIG} cannot hold it"
        ) from None


def _plain(value: Any, name: str) -> Any:
    if value is None:
        raise TypeError(f"{name} is None, which TOML cannot hold")
    if isinstance(value, Mapping):
        return {
            str(key): _plain(item, f"{name}.{key}")
            for key, item in value.items()
            if item is not None
        }
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{index}]") for index, item in enumerate(value)]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"{name} is of type {type(value).__name__}, which TOML cannot hold")


def _dump(content: Mapping[str, Any]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _check_free(path: Path, overwrite: bool) -> None:
    if not os.path.lexists(path):
        return
    if not path.is_dir():
        raise UserError(f"{path} is not a directory; choose another place with --out")
    with read_errors(path):
        content = set(os.listdir(path))
        begun = is_own(path)
        holds_run = CONFIG in content and (begun or is_first_version(path))
    others = {name for name in content if not (begun and is_rest(name, CONFIG))} - {OWN}
    if not others and (begun or not content or is_bare(path)):
        return
    if not holds_run:
        raise UserError(
            f"{path} is not empty and holds no run, so nothing there is touched; "
            "choose another place with --out"
        )
    if not overwrite:
        raise UserError(
            f"{path} already holds a run; continue it with --resume, or choose another place with "
            "--out"
        )


def _acquire(path: Path) -> io.FileIO:
    """Lock the directory. The kernel lets go when the process ends, however it ends; the file
    itself stays.
    """
    file = path / OWN / "lock"
    with write_errors(file):
        file.parent.mkdir(exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
    lock = io.FileIO(descriptor, "r+")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = lock.read(20).decode(errors="replace").strip()
        lock.close()
        if isinstance(error, BlockingIOError):
            raise UserError(
                f"{path} is in use by another process (pid {holder or 'unknown'}); wait for it or "
                "choose another --out"
            ) from error
        raise UserError(
            f"cannot lock {file}: {one_line(error)}; choose a place on another file system with "
            "--out"
        ) from error
    with contextlib.suppress(OSError):  # the number only helps the reader of the message above
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n".encode())
    return lock

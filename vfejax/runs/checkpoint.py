"""Checkpoints of a run: orbax writes the arrays, a checked record beside them says what they are.

``checkpoints/00000200/`` holds ``state/`` (orbax) and ``record.json``: the step, the caller's meta,
name, type and shape of every leaf, size and CRC-32 of every file. A checkpoint gets its name when
it is complete, by one rename, so a kill at any moment leaves the earlier ones and, at worst, an
unnamed rest that is never read. Orbax itself notices a missing file but not a flipped bit: the
record notices both, before orbax is asked.

Of several processes each writes and reads its own part of the arrays, all in the same directory,
and the first one does all else. All of them must call :func:`save` and :func:`restore`.
"""

import json
import operator
import os
import re
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from vfejax.data.files import read_errors, write_errors
from vfejax.errors import UserError
from vfejax.runs import processes
from vfejax.runs.checkpoint_arrays import ask_for_space, read_state, write_state
from vfejax.runs.checkpoint_record import (
    Damaged,
    Misfit,
    Narrow,
    check_fit,
    describe,
    read_record,
    write_record,
)
from vfejax.types import PyTree

__all__ = [
    "clear",
    "discard_after",
    "keep_only",
    "latest_step",
    "restore",
    "save",
    "steps",
    "sweep",
]

_NAME = re.compile(r"(\d{8,})(\.replaced)?")
_ATTEMPTS = 100  # at reading what another process replaces meanwhile
_REST = re.compile(r"\d{8,}(\.new|\.replaced\.removed|\.removed)(\.orbax-checkpoint-tmp.*)?")


def steps(run: str | os.PathLike) -> list[int]:
    """Steps with a complete checkpoint, in increasing order; empty when there is none. ``run`` is
    the directory of the run.
    """
    return sorted(_listing(run))


def latest_step(run: str | os.PathLike) -> int | None:
    """The newest step with a complete checkpoint, None when there is none."""
    return max(_listing(run), default=None)


def save(
    run: str | os.PathLike,
    step: int,
    state: PyTree,
    meta: Mapping[str, Any],
    *,
    keep: int = 3,
    protect: Collection[int] = (),
) -> None:
    """Write a checkpoint; it is complete when this returns, and earlier ones stay usable until
    then.

    Args:
        run: directory of the run.
        step: its number, at least 0. An earlier checkpoint of the same step is replaced.
        state: pytree of JAX and NumPy arrays, typed random keys among them, restored bit for bit.
            (Weak types become strong.) Across processes the JAX arrays are on devices of all of
            them, and NumPy arrays the same in each.
        meta: what JSON can hold: strings, numbers (floats exactly), booleans, None, lists, dicts
            with string keys.
        keep: how many of the newest checkpoints stay.
        protect: steps whose checkpoints stay besides.

    Raises:
        UserError: when it cannot be written; what was there before is still there.
        TypeError: for a leaf that is no array, a step that is no whole number, or a meta that JSON
            cannot hold.
        ValueError: for a negative step or ``keep < 1``.

    >>> import tempfile
    >>> import numpy as np
    >>> run = tempfile.mkdtemp()
    >>> save(run, 20, {"x": np.arange(3.0)}, {"loss": 0.5})
    >>> state, meta = restore(run, {"x": np.empty(3)})
    >>> state["x"].tolist(), meta, steps(run)
    ([0.0, 1.0, 2.0], {'loss': 0.5}, [20])
    """
    step = operator.index(step)  # that of an array, too
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1, got {step} and {keep}")
    content = {"step": step, "meta": dict(meta), "leaves": describe(state)}
    json.dumps(content)  # a meta that JSON cannot hold is refused before anything is written
    folder = _folder(run)
    final = folder / f"{step:08d}"
    fresh = folder / f"{step:08d}.new"
    leads = processes.leads()
    with write_errors(final):
        try:
            if leads:
                folder.mkdir(parents=True, exist_ok=True)
                _sweep(folder)
                fresh.mkdir()
                ask_for_space(fresh, state)
            processes.barrier()
            write_state(fresh / "state", state)
            if leads:
                write_record(fresh, content)
                _give_name(fresh, final)
        except BaseException:
            if leads:
                shutil.rmtree(fresh, ignore_errors=True)
            raise
        if leads:
            for old in steps(run)[:-keep]:
                if old not in protect:
                    _remove(_listing(run)[old])
    processes.barrier()


def restore(
    run: str | os.PathLike, template: PyTree, step: int | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """Read a checkpoint. The run may be going: one that is replaced meanwhile is read again.

    Args:
        run: directory of the run.
        template: pytree with the structure, shapes and dtypes that were saved; arrays or
            ShapeDtypeStruct. NumPy leaves come back as NumPy arrays, the others as JAX
            arrays with the template's sharding; if it has none, where JAX puts fresh arrays (across
            processes on the first device of this one).
        step: which; the newest by default.

    Returns:
        The state, bit for bit as it was saved, and the meta.

    Raises:
        UserError: when there is none, when it is damaged, when it does not fit the template, and
            when it has 64 bits while JAX is not in 64-bit mode. The message names the directory,
            and the older step that is left.
    """
    for attempt in range(_ATTEMPTS):
        path = _find(run, step)
        before = _identity(path)
        try:
            content = read_record(path)
            check_fit(content, template)
            return read_state(path / "state", template), content["meta"]
        except Damaged as reason:
            gone = _identity(path) != before or (step is None and _find(run, None) != path)
            if gone and attempt + 1 < _ATTEMPTS:
                continue
            remedy = _remedy(_listing(run), path, template, reason)
            raise UserError(f"cannot use checkpoint {path}: {reason}; {remedy}") from reason
    raise AssertionError("the loop above returns or raises")


def discard_after(run: str | os.PathLike, step: int) -> None:
    """Remove the checkpoints of later steps, when a run goes on from an earlier one; ``step = -1``
    removes all. The first process does.
    """
    if not processes.leads():
        return
    for later, path in _listing(run).items():
        if later > step:
            with write_errors(path):
                _remove(path)


def keep_only(run: str | os.PathLike, step: int) -> None:
    """Remove the checkpoints of all other steps. The first process does."""
    if not processes.leads():
        return
    for other, path in _listing(run).items():
        if other != step:
            with write_errors(path):
                _remove(path)


def sweep(run: str | os.PathLike) -> None:
    """Remove what killed processes left behind; complete checkpoints stay. The first process
    does.
    """
    folder = _folder(run)
    if processes.leads() and folder.is_dir():
        with write_errors(folder):
            _sweep(folder)


def clear(folder: str | os.PathLike) -> None:
    """Remove every checkpoint, and what killed ones left, from the folder ``checkpoints`` of a run;
    other files in it stay.
    """
    folder = Path(folder)
    if folder.is_symlink() or not folder.is_dir():
        return
    with write_errors(folder):
        for name in os.listdir(folder):
            path = folder / name
            ours = _NAME.fullmatch(name) or _REST.fullmatch(name)
            if ours and path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)


def _folder(run: str | os.PathLike) -> Path:
    return Path(os.path.abspath(run)) / "checkpoints"


def _listing(run: str | os.PathLike) -> dict[int, Path]:
    """Directory of every complete checkpoint. One that was being replaced counts until its
    successor has the name.
    """
    folder = _folder(run)
    if not folder.is_dir():
        return {}
    with read_errors(folder):
        names = sorted(os.listdir(folder), reverse=True)  # the plain name comes last, and wins
    matches = [match for match in map(_NAME.fullmatch, names) if match]
    return {int(match[1]): folder / match[0] for match in matches}


def _give_name(fresh: Path, final: Path) -> None:
    replaced = final.with_name(f"{final.name}.replaced")
    if final.exists():
        final.rename(replaced)
    fresh.rename(final)
    shutil.rmtree(replaced, ignore_errors=True)


def _remove(path: Path) -> None:
    """Take the name away first, so that a kill in the middle leaves no half checkpoint with a
    name.
    """
    nameless = path.with_name(f"{path.name}.removed")
    shutil.rmtree(nameless, ignore_errors=True)
    path.rename(nameless)
    shutil.rmtree(nameless)


def _sweep(folder: Path) -> None:
    """Remove what killed processes left behind."""
    names = {path.name for path in folder.iterdir()}
    for name in names:
        superseded = name.endswith(".replaced") and name.removesuffix(".replaced") in names
        if superseded or _REST.fullmatch(name):
            shutil.rmtree(folder / name, ignore_errors=True)


def _find(run: str | os.PathLike, step: int | None) -> Path:
    """Directory of a checkpoint, the newest for None; UserError when there is none."""
    listing = _listing(run)
    if not listing:
        raise UserError(f"{os.fspath(run)} has no checkpoint; give the directory of a run that has")
    step = max(listing) if step is None else step
    if step not in listing:
        having = ", ".join(map(str, sorted(listing)))
        raise UserError(f"{os.fspath(run)} has no checkpoint of step {step}; it has steps {having}")
    return listing[step]


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a directory from another of the same name; None when it has gone."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns


def _remedy(listing: Mapping[int, Path], path: Path, template: PyTree, reason: Damaged) -> str:
    if isinstance(reason, Narrow):
        return (
            "allow it before the first computation with jax.config.update('jax_enable_x64', True), "
            "or set JAX_ENABLE_X64=1"
        )
    match = _NAME.fullmatch(path.name)
    step = int(match[1]) if match else -1
    for older in sorted(filter(lambda other: other < step, listing), reverse=True):
        try:
            check_fit(read_record(listing[older]), template)
        except Damaged:
            continue
        newer = sorted(str(listing[other]) for other in listing if older < other)
        return f"delete {' and '.join(newer)} to resume from step {older}"
    if isinstance(reason, Misfit):  # nothing is lost
        return "put back those that it was saved with"
    return "no older one can be used, so begin a new run with another --out"

"""Checkpoints of a run: orbax writes the arrays, a checked record beside them says what they are.

``checkpoints/00000200/`` holds ``state/`` (orbax) and ``record.json``: the step, the caller's meta,
name, type and shape of every leaf, size and CRC-32 of every file. A checkpoint gets its name when
it is complete, by one rename, so a kill at any moment leaves the earlier ones and, at worst, an
unnamed rest that is never read. Orbax itself notices a missing file but not a flipped bit: the
record notices both, before orbax is asked. For runs of one process.
"""

import contextlib
import errno
import json
import logging
import os
import re
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vfejax.data.files import atomic_write, one_line, read_errors, write_errors
from vfejax.errors import UserError
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
_OVERHEAD = 1 << 16  # bytes of a checkpoint besides its arrays, roughly
# Bytes asked for at once: enough to meet a quota or a limit, little enough to be instant.
_PROBE = 1 << 26


_REST = re.compile(r"\d{8,}(\.new|\.replaced\.removed|\.removed)(\.orbax-checkpoint-tmp.*)?")


class _Damaged(Exception):
    """A checkpoint that cannot be used, and why."""


class _Misfit(_Damaged):
    """A sound checkpoint of something else."""


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
            (Weak types become strong.)
        meta: what JSON can hold: strings, numbers (floats exactly), booleans, None, lists, dicts
            with string keys.
        keep: how many of the newest checkpoints stay.
        protect: steps whose checkpoints stay besides.

    Raises:
        UserError: when it cannot be written; what was there before is still there.
        TypeError: for a leaf that is no array, or a meta that JSON cannot hold.
        ValueError: for a negative step or ``keep < 1``.

    >>> import tempfile
    >>> run = tempfile.mkdtemp()
    >>> save(run, 20, {"x": np.arange(3.0)}, {"loss": 0.5})
    >>> state, meta = restore(run, {"x": np.empty(3)})
    >>> state["x"].tolist(), meta, steps(run)
    ([0.0, 1.0, 2.0], {'loss': 0.5}, [20])
    """
    if step < 0 or keep < 1:
        raise ValueError(f"step must be at least 0 and keep at least 1, got {step} and {keep}")
    content = {"step": step, "meta": dict(meta), "leaves": _describe(state)}
    json.dumps(content)  # a meta that JSON cannot hold is refused before anything is written
    folder = _folder(run)
    final = folder / f"{step:08d}"
    fresh = folder / f"{step:08d}.new"
    with write_errors(final):
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder)
        try:
            fresh.mkdir()
            _write_state(fresh / "state", state)
            _write_record(fresh, content)
            _give_name(fresh, final)
        except BaseException:
            shutil.rmtree(fresh, ignore_errors=True)
            raise
        for old in steps(run)[:-keep]:
            if old not in protect:
                _remove(_listing(run)[old])


def restore(
    run: str | os.PathLike, template: PyTree, step: int | None = None
) -> tuple[PyTree, dict[str, Any]]:
    """Read a checkpoint. The run may be going: one that is replaced meanwhile is read again.

    Args:
        run: directory of the run.
        template: pytree with the structure, shapes and dtypes that were saved; arrays or
            ShapeDtypeStruct. NumPy leaves come back as NumPy arrays, the others as JAX
            arrays with the template's sharding (the first device, if it has none).
        step: which; the newest by default.

    Returns:
        The state, bit for bit as it was saved, and the meta.

    Raises:
        UserError: when there is none, when it is damaged, or when it does not fit the template. The
            message names the directory, and the older step that is left.
    """
    for attempt in range(_ATTEMPTS):
        path = _find(run, step)
        before = _identity(path)
        try:
            content = _read_record(path)
            _check_fit(content, template)
            return _read_state(path / "state", template), content["meta"]
        except _Damaged as reason:
            gone = _identity(path) != before or (step is None and _find(run, None) != path)
            if gone and attempt + 1 < _ATTEMPTS:
                continue
            remedy = _remedy(_listing(run), path, template, reason)
            raise UserError(f"cannot use checkpoint {path}: {reason}; {remedy}") from reason
    raise AssertionError("the loop above returns or raises")


def discard_after(run: str | os.PathLike, step: int) -> None:
    """Remove the checkpoints of later steps, when a run goes on from an earlier one; ``step = -1``
    removes all.
    """
    for later, path in _listing(run).items():
        if later > step:
            with write_errors(path):
                _remove(path)


def keep_only(run: str | os.PathLike, step: int) -> None:
    """Remove the checkpoints of all other steps."""
    for other, path in _listing(run).items():
        if other != step:
            with write_errors(path):
                _remove(path)


def sweep(run: str | os.PathLike) -> None:
    """Remove what killed processes left behind; complete checkpoints stay."""
    folder = _folder(run)
    if folder.is_dir():
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


def _named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path) or "state", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _describe(tree: PyTree) -> list[list[Any]]:
    """Name, dtype and shape of every leaf."""
    found = []
    for name, leaf in _named_leaves(tree):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"state{name} must be an array, got {type(leaf).__name__}")
        found.append([name, str(leaf.dtype), list(leaf.shape)])
    return found


def _stored(tree: PyTree) -> dict[str, Any]:
    """What orbax is given: leaves by number, keys as their words, without the empty arrays, which
    it cannot hold.
    """
    leaves = enumerate(jax.tree.leaves(tree))
    stored = {
        f"{i:06d}": jax.random.key_data(leaf) if _is_key(leaf) else leaf
        for i, leaf in leaves
        if np.prod(leaf.shape)
    }
    return {
        name: np.asarray(leaf) if isinstance(leaf, np.generic) else leaf
        for name, leaf in stored.items()
    }


def _write_state(path: Path, state: PyTree) -> None:
    stored = _stored(state)
    _ask_for_space(path.parent, sum(leaf.nbytes for leaf in stored.values()) + _OVERHEAD)
    if not stored:
        return
    with _orbax() as ocp:
        try:
            with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                checkpointer.save(path, args=ocp.args.StandardSave(stored))
        except Exception as error:
            code = re.search(r"os_error_code='(\d+)'", str(error))
            raise OSError(
                *((int(code[1]), os.strerror(int(code[1]))) if code else (one_line(error),))
            ) from error


def _ask_for_space(folder: Path, size: int) -> None:
    """Raise OSError when ``size`` bytes do not fit. Orbax writes from many threads, and when a disk
    is full each complains by itself.
    """
    if shutil.disk_usage(folder).free < size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if not hasattr(os, "posix_fallocate"):
        return
    probe = folder / "probe"
    with open(probe, "wb") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, min(size, _PROBE))
        except OSError as error:
            if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    probe.unlink()


@contextlib.contextmanager
def _orbax() -> Iterator[Any]:
    """Orbax, imported on first use (it takes a second), with its log silent meanwhile: errors reach
    us as exceptions.
    """
    import orbax.checkpoint as ocp

    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield ocp
    finally:
        logger.setLevel(level)


def _checksums(path: Path) -> dict[str, list[int]]:
    """Size and CRC-32 of every file below ``path`` but the record."""
    files = sorted(
        file for file in path.rglob("*") if file.is_file() and file != path / "record.json"
    )
    return {file.relative_to(path).as_posix(): [file.stat().st_size, _crc(file)] for file in files}


def _crc(path: Path) -> int:
    value = 0
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            value = zlib.crc32(block, value)
    return value


def _encode(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()


def _write_record(path: Path, content: dict[str, Any]) -> None:
    content = {**content, "files": _checksums(path)}
    document = {"crc32": zlib.crc32(_encode(content)), "content": content}
    atomic_write(path / "record.json", json.dumps(document, indent=1) + "\n")


def _read_record(path: Path) -> dict[str, Any]:
    """The record, when it and every file it lists are sound; raises _Damaged."""
    try:
        document = json.loads((path / "record.json").read_bytes())
        content = document["content"]
        sound = document["crc32"] == zlib.crc32(_encode(content))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise _Damaged(f"record.json cannot be read ({one_line(error)})") from error
    if not sound:
        raise _Damaged("record.json was changed after it was written")
    try:
        found = _checksums(path)
    except OSError as error:
        raise _Damaged(one_line(error)) from error
    for name, (size, crc) in content["files"].items():
        if name not in found:
            raise _Damaged(f"file {name} is missing")
        if found[name] != [size, crc]:
            raise _Damaged(f"file {name} is damaged ({found[name][0]} bytes, written with {size})")
    return content


def _check_fit(content: Mapping[str, Any], template: PyTree) -> None:
    saved = {name: (dtype, tuple(shape)) for name, dtype, shape in content["leaves"]}
    wanted = {name: (dtype, tuple(shape)) for name, dtype, shape in _describe(template)}
    for name in (*wanted, *saved):
        if saved.get(name) != wanted.get(name):
            raise _Misfit(
                f"it does not fit this run (state{name} is {_type(saved.get(name))}, not "
                f"{_type(wanted.get(name))}), so config.toml, vocabulary.json "
                "or vfejax changed since it was saved"
            )


def _type(description: tuple[str, tuple[int, ...]] | None) -> str:
    return (
        "absent"
        if description is None
        else f"{description[0]}[{','.join(map(str, description[1]))}]"
    )


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


def _remedy(listing: Mapping[int, Path], path: Path, template: PyTree, reason: _Damaged) -> str:
    match = _NAME.fullmatch(path.name)
    step = int(match[1]) if match else -1
    for older in sorted(filter(lambda other: other < step, listing), reverse=True):
        try:
            _check_fit(_read_record(listing[older]), template)
        except _Damaged:
            continue
        newer = sorted(str(listing[other]) for other in listing if older < other)
        return f"delete {' and '.join(newer)} to resume from step {older}"
    if isinstance(reason, _Misfit):  # nothing is lost
        return "put back those that it was saved with"
    return "no older one can be used, so begin a new run with another --out"


def _read_state(path: Path, template: PyTree) -> PyTree:
    leaves, treedef = jax.tree.flatten(template)
    targets = {f"{i:06d}": _target(leaf) for i, leaf in enumerate(leaves) if np.prod(leaf.shape)}
    read = {}
    if targets:
        with _orbax() as ocp:
            try:
                with ocp.Checkpointer(ocp.StandardCheckpointHandler()) as checkpointer:
                    read = checkpointer.restore(path, args=ocp.args.StandardRestore(targets))
            except Exception as error:
                raise _Damaged(f"orbax cannot read it ({one_line(error)})") from error
    restored = [_leaf(leaf, read.get(f"{i:06d}")) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(treedef, restored)


def _target(leaf: Any) -> Any:
    """What orbax should make of a stored leaf."""
    if isinstance(leaf, (np.ndarray, np.generic)):
        return np.empty(leaf.shape, leaf.dtype)
    if _is_key(leaf):
        leaf = (
            jax.eval_shape(jax.random.key_data, leaf)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else jax.random.key_data(leaf)
        )
    sharding = getattr(leaf, "sharding", None) or jax.sharding.SingleDeviceSharding(
        jax.devices()[0]
    )
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _leaf(template: Any, read: Any) -> Any:
    if isinstance(template, (np.ndarray, np.generic)):
        return np.empty(template.shape, template.dtype) if read is None else read
    if read is None:
        return jax.numpy.empty(template.shape, template.dtype)
    return jax.random.wrap_key_data(read, impl=_key_impl(template)) if _is_key(template) else read


def _key_impl(key: Any) -> Any:
    """How the bits of a key, which may be abstract, are used."""
    found = []
    jax.eval_shape(lambda k: found.append(jax.random.key_impl(k)), key)
    return found[0]

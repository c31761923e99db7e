"""The record of a checkpoint: what it holds, and whether it is sound and fits.

``record.json`` lists the step, the caller's meta, name, type and shape of every leaf, size and
CRC-32 of every file. It is read before orbax is asked, which notices a missing file but not a
flipped bit.
"""

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.data.files import atomic_write, one_line
from vfejax.types import PyTree

__all__ = ["Damaged", "Misfit", "Narrow", "check_fit", "describe", "read_record", "write_record"]


class Damaged(Exception):
    """A checkpoint that cannot be used, and why."""


class Misfit(Damaged):
    """A sound checkpoint of something else."""


class Narrow(Misfit):
    """A checkpoint of 64 bits, and JAX would round it to 32."""


_WIDE = ("float64", "int64", "uint64", "complex128")


def _named_leaves(tree: PyTree) -> list[tuple[str, Any]]:
    return [
        (jax.tree_util.keystr(path) or "state", leaf)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def describe(tree: PyTree) -> list[list[Any]]:
    """Name, dtype and shape of every leaf."""
    found = []
    for name, leaf in _named_leaves(tree):
        if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
            raise TypeError(f"state{name} must be an array, got {type(leaf).__name__}")
        found.append([name, str(leaf.dtype), list(leaf.shape)])
    return found


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


def write_record(path: Path, content: dict[str, Any]) -> None:
    """Write the record of the checkpoint at ``path``, whose other files are complete."""
    content = {**content, "files": _checksums(path)}
    document = {"crc32": zlib.crc32(_encode(content)), "content": content}
    atomic_write(path / "record.json", json.dumps(document, indent=1) + "\n")


def read_record(path: Path) -> dict[str, Any]:
    """The record, when it and every file it lists are sound; raises Damaged."""
    try:
        document = json.loads((path / "record.json").read_bytes())
        content = document["content"]
        sound = document["crc32"] == zlib.crc32(_encode(content))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise Damaged(f"record.json cannot be read ({one_line(error)})") from error
    if not sound:
        raise Damaged("record.json was changed after it was written")
    try:
        found = _checksums(path)
    except OSError as error:
        raise Damaged(one_line(error)) from error
    for name, (size, crc) in content["files"].items():
        if name not in found:
            raise Damaged(f"file {name} is missing")
        if found[name] != [size, crc]:
            raise Damaged(f"file {name} is damaged ({found[name][0]} bytes, written with {size})")
    return content


def check_fit(content: Mapping[str, Any], template: PyTree) -> None:
    """Raise Misfit unless a record is of leaves like those of the template, which JAX can hold."""
    saved = {name: (dtype, tuple(shape)) for name, dtype, shape in content["leaves"]}
    if jnp.result_type(float) != jnp.float64:
        for name, leaf in _named_leaves(template):
            of_numpy = isinstance(leaf, (np.ndarray, np.generic))
            if not of_numpy and name in saved and saved[name][0] in _WIDE:
                raise Narrow(f"state{name} is {_type(saved[name])}, and JAX is not in 64-bit mode")
    wanted = {name: (dtype, tuple(shape)) for name, dtype, shape in describe(template)}
    for name in (*wanted, *saved):
        if saved.get(name) != wanted.get(name):
            raise Misfit(
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

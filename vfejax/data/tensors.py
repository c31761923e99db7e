"""Named arrays on disk: safetensors files, one or several with an index.

The library ``safetensors`` checks the header and the length of a file before any array is read.
"""

import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 (NumPy has bfloat16 once this is imported)
import numpy as np
import safetensors
from safetensors.numpy import save

from vfejax.data.files import atomic_file, one_line, read_errors
from vfejax.errors import UserError

__all__ = [
    "as_bytes",
    "checkpoint_files",
    "read_file",
    "read_json",
    "read_tensors",
    "write_tensors",
]

_FILE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_MOST_NAMED = 8  # tensors in a message


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        UserError: naming the file, when it is missing or holds no JSON object.
    """
    with read_errors(path):
        text = Path(path).read_text(encoding="utf-8")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{os.fspath(path)} is no JSON: {one_line(error)}; check that it is the right file"
        ) from error
    if not isinstance(content, dict):
        raise UserError(f"{os.fspath(path)} holds no JSON object; check that it is the right file")
    return content


def read_tensors(directory: str | os.PathLike) -> dict[str, np.ndarray]:
    """The arrays of a checkpoint by name: those of ``model.safetensors``, or of the files that
    ``model.safetensors.index.json`` names.

    Args:
        directory: where the files are.

    Returns:
        The arrays in the precision of the file: bfloat16 stays bfloat16.

    Raises:
        UserError: naming the file, when one is missing, damaged or incomplete.

    >>> import tempfile
    >>> place = tempfile.mkdtemp()
    >>> write_tensors(Path(place) / "model.safetensors", {"weight": np.arange(3.0)})
    >>> read_tensors(place)
    {'weight': array([0., 1., 2.])}
    """
    directory = Path(directory)
    single, index = directory / _FILE, directory / _INDEX
    if os.path.exists(single):  # not Path.exists, which raises where a folder may not be searched
        return _entries(single)
    if not os.path.exists(index):
        with read_errors(directory):
            os.listdir(directory)
        raise UserError(f"{directory} has no {_FILE} and no {_INDEX}; give a directory that has")
    return _sharded(index)


def read_file(path: str | os.PathLike) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """The strings in the header of one safetensors file, and its arrays by name.

    Raises:
        UserError: naming the file, when it is missing, damaged or incomplete.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "weights.safetensors"
    >>> write_tensors(file, {"weight": np.arange(3.0)}, {"made by": "hand"})
    >>> read_file(file)
    ({'made by': 'hand'}, {'weight': array([0., 1., 2.])})
    """
    with _opened(Path(path)) as opened:
        return opened.metadata() or {}, dict(_arrays(opened, Path(path)))


def checkpoint_files(directory: str | os.PathLike) -> list[str]:
    """Names of the files of a checkpoint in a directory, its ``config.json`` among them.

    Raises:
        UserError: as :func:`read_tensors`, as far as names can tell.
    """
    directory = Path(directory)
    index = directory / _INDEX
    if os.path.exists(directory / _FILE) or not os.path.exists(index):
        return ["config.json", _FILE]
    return ["config.json", _INDEX, *sorted(set(_places(index).values()))]


def _sharded(index: Path) -> dict[str, np.ndarray]:
    """The arrays that an index names, each from the file it says."""
    places = _places(index)
    found: dict[str, np.ndarray] = {}
    for file in sorted(set(places.values())):
        held = _entries(index.with_name(file))
        lost = sorted(name for name, place in places.items() if place == file and name not in held)
        if lost:
            more = f" and {len(lost) - _MOST_NAMED} more" if len(lost) > _MOST_NAMED else ""
            raise UserError(
                f"{index} names {', '.join(lost[:_MOST_NAMED])}{more}, which {file} does not hold; "
                "put the original files back"
            )
        # A copy in another file than the index says does not count.
        found |= {name: array for name, array in held.items() if places.get(name, file) == file}
    return found


def _places(index: Path) -> dict[str, str]:
    """The file of every tensor, by name, as an index says."""
    places = read_json(index).get("weight_map")
    plain = isinstance(places, dict) and all(
        isinstance(name, str) and name == os.path.basename(name) and name not in ("", ".", "..")
        for name in places.values()
    )
    if not isinstance(places, dict) or not plain:
        raise UserError(
            f"{index}: 'weight_map' must say for every tensor which file beside it holds it; put "
            "the original file back"
        )
    return places


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """One file, its header read and checked."""
    with read_errors(path):
        if not stat.S_ISREG(path.stat().st_mode):  # a pipe would be waited for
            raise UserError(f"{path} is no regular file; give a safetensors file")
        try:
            with safetensors.safe_open(path, framework="np") as opened:
                yield opened
        except safetensors.SafetensorError as error:
            raise UserError(
                f"{path} is damaged, incomplete or no safetensors file ({one_line(error)}); "
                "fetch it again"
            ) from error


def _arrays(opened: Any, path: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Names and arrays of an open file."""
    for name in opened.keys():  # noqa: SIM118 (not a dict)
        yield name, _array(opened, name, path)


def _entries(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one file by name."""
    return read_file(path)[1]


def _array(opened: Any, name: str, path: Path) -> np.ndarray:
    try:
        return opened.get_tensor(name)
    except (KeyError, AttributeError, TypeError) as error:  # as versions of the library say it
        raise UserError(
            f"{path} holds {name} in a type of numbers that NumPy does not have "
            f"({one_line(error)}); convert the checkpoint to float32 or bfloat16"
        ) from error


def write_tensors(
    path: str | os.PathLike,
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
) -> None:
    """Write arrays as one safetensors file, which appears complete or not at all.

    Args:
        path: the file; one that exists is replaced.
        tensors: NumPy arrays by name.
        metadata: strings for the header of the file.

    Raises:
        UserError: when it cannot be written.
    """
    content = as_bytes(tensors, metadata)
    with atomic_file(path) as file:
        file.write(content)


def as_bytes(tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None) -> bytes:
    """What :func:`write_tensors` writes.

    >>> len(as_bytes({"weight": np.zeros(8, np.float32)}))
    104
    """
    plain = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
    return save(plain, None if metadata is None else dict(metadata))

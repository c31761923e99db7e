"""What a run was computed from: a checksum of every input file, kept in ``inputs.json``."""

import hashlib
import json
import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from vfejax.data import corpus
from vfejax.data.files import atomic_write, read_errors
from vfejax.errors import UserError
from vfejax.runs import artefact
from vfejax.runs.directory import RunDirectory
from vfejax.runs.written_files import is_written

__all__ = [
    "Content",
    "Files",
    "Inputs",
    "check",
    "check_kept",
    "check_readable",
    "help_topics",
    "is_recorded",
    "record",
    "recorded",
    "summaries",
]

_FILE = "inputs.json"


class Content(NamedTuple):
    """An input that is no file: what to call it, and its text."""

    name: str
    text: str


class Files(NamedTuple):
    """An input that is these files of a directory."""

    directory: Path
    names: tuple[str, ...]


Input: TypeAlias = str | os.PathLike | Content | Files
Inputs: TypeAlias = Mapping[str, Input | None]


def record(run: RunDirectory, inputs: Inputs) -> None:
    """Write ``inputs.json``: option, absolute path, size and SHA-256 of every input.

    Args:
        run: the run, held.
        inputs: by option (``"text"``, ``"observation-matrix"``; one in capitals, ``"FILE"``, is
            given without its name), a file, a directory of files, some :class:`Files`, or a
            :class:`Content`; None for an option that was not given.

    Raises:
        UserError: naming option and file, when one cannot be read.
    """
    found = {option: _describe(option, value) for option, value in _given(inputs).items()}
    atomic_write(run.file(_FILE), json.dumps(found, indent=2) + "\n")


def summaries(inputs: Inputs) -> dict[str, str]:
    """Size and checksum of every input by its flag, which tell one from another in few words.

    Args:
        inputs: as in :func:`record`.

    Raises:
        UserError: naming option and file, when one cannot be read.

    >>> summaries({"text": Content("a word", "spin")})
    {'--text': '4 bytes, SHA-256 a5a2729ffa0e'}
    """
    found = {}
    for option, value in _given(inputs).items():
        files = _describe(option, value)["files"]
        size = sum(content["size"] for content in files.values())
        if "" in files:  # a single file
            digest = files[""]["sha256"]
        else:
            digest = hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest()
        found[_flag(option)] = f"{size} bytes, SHA-256 {digest[:12]}"
    return found


def check(run: str | os.PathLike, inputs: Inputs) -> None:
    """Compare the inputs with what the run was computed from. A run without a record passes.

    Args:
        run: the run, its directory, or the file of a compressed model.
        inputs: as in :func:`record`. Files may have moved, as long as their content is the same.

    Raises:
        UserError: naming option and file, when one has changed or is missing.
    """
    known = recorded(run)
    if known is None:
        return
    place = os.fspath(run)
    for option, value in _given(inputs).items():
        before = known.get(option)
        if before is None:
            raise UserError(
                f"{_flag(option)}: the run in {place} was made without it; leave it out"
            )
        now = _describe(option, value)
        if now["files"].keys() != before["files"].keys():
            names = ", ".join(sorted(now["files"].keys() ^ before["files"].keys()))
            raise UserError(
                f"{_flag(option)} {now['path']}: other files than the run in {place} was made from "
                f"({names}); give those with {_flag(option)}, or make a new run"
            )
        for name, content in now["files"].items():
            if content != before["files"][name]:
                what = now["path"] if len(now["files"]) == 1 else str(Path(now["path"]) / name)
                raise UserError(
                    f"{_flag(option)} {what}: changed since the run in {place} was made from it "
                    f"({before['files'][name]['size']} bytes then, {content['size']} now); "
                    f"give the original with {_flag(option)}, or make a new run"
                )


def is_recorded(run: str | os.PathLike) -> bool:
    """Whether the run knows the content of its inputs (runs of the first version do not)."""
    return (Path(run) / _FILE).is_file()


def check_readable(inputs: Inputs) -> None:
    """Refuse what cannot be read twice, or at all, before anything is read.

    Raises:
        UserError: for a pipe or a device, and for a path that is missing, naming the option.
    """
    for option, value in _given(inputs).items():
        if isinstance(value, Content):
            continue
        path = value.directory if isinstance(value, Files) else Path(value)
        with read_errors(f"{_flag(option)} {path}:"):
            mode = path.stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            raise UserError(
                f"{_flag(option)} {path}: is no regular file, so it cannot be read again later; "
                "write its content to a file first"
            )


def check_kept(out: str | os.PathLike, inputs: Inputs) -> None:
    """Refuse to replace a run that wrote one of the inputs of the new one, before it is removed.

    Args:
        out: directory of the run that would be replaced.
        inputs: as in :func:`record`.

    Raises:
        UserError: naming option and file.
    """
    for option, value in _given(inputs).items():
        if isinstance(value, Content):
            continue
        if isinstance(value, Files):
            files = [value.directory / name for name in value.names]
        else:
            files = [Path(value)]
        for file in files:
            if is_written(Path(out), file):
                raise UserError(
                    f"{_flag(option)} {file}: is a file of the run in {out}, which --overwrite "
                    "removes; copy it to another place first, or choose another --out"
                )


def help_topics() -> Content:
    """The help topics that ship with Python, the default text, as an input.

    Raises:
        UserError: when this Python comes without them.
    """
    return Content("help topics of Python", corpus.help_topics())


def _flag(option: str) -> str:
    """An option as it is given on the command line; a name in capitals stands without dashes."""
    return option if option.isupper() else f"--{option}"


def _given(inputs: Inputs) -> dict[str, Input]:
    return {option: value for option, value in inputs.items() if value is not None}


def _describe(option: str, value: Input) -> dict[str, Any]:
    """Path, and size and SHA-256 by file name."""
    if isinstance(value, Content):
        data = value.text.encode()
        entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return {"path": value.name, "files": {"": entry}}
    check_readable({option: value})
    path = Path(os.path.abspath(value.directory if isinstance(value, Files) else value))
    if isinstance(value, Files):
        files = {}
        for name in value.names:
            with read_errors(f"{_flag(option)} {path / name}:"):
                files[name] = _digest(path / name)
        return {"path": str(path), "files": files}
    with read_errors(f"{_flag(option)} {path}:"):
        if path.is_dir():
            names = sorted(name for name in os.listdir(path) if _is_part(path / name))
            files = {name: _digest(path / name) for name in names}
        else:
            files = {"": _digest(path)}
    return {"path": str(path), "files": files}


def _is_part(path: Path) -> bool:
    """Whether a file of a text directory belongs to a split, as its name says."""
    words = re.search(r"(?<![a-z])(train|val|test)", path.name.lower())
    return words is not None and not path.name.startswith(".") and path.is_file()


def _digest(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return {"size": file.tell(), "sha256": digest}


def recorded(run: str | os.PathLike) -> dict[str, Any] | None:
    """What a run, or the run that a compressed model came from, was computed from, as
    ``inputs.json`` has it; None when it did not note that.
    """
    if artefact.is_artefact(run):
        place, remedy = os.fspath(run), "compress again"
        found = artefact.read(run)[0].inputs
        if found is None:
            return None
    else:
        place, remedy = os.path.join(run, _FILE), "delete it to go on without the check"
        if not os.path.exists(place):
            return None
        with read_errors(place):
            content = Path(place).read_bytes()
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
    if not _is_record(found):
        raise UserError(
            f"{place} is damaged, so it cannot be told whether the data are those of the run; "
            f"{remedy}"
        )
    return found


def _is_record(found: Any) -> bool:
    """Whether this is what :func:`record` writes."""
    try:
        for entry in found.values():
            for file in entry["files"].values():
                file["size"], file["sha256"]
    except (KeyError, TypeError, AttributeError):
        return False
    return True

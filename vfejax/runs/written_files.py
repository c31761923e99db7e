"""The files that a run wrote: the list that it keeps of them, and their removal.

The folder ``.vfejax`` of a run holds the list. A name is noted before its file is written, so that
``--overwrite`` removes these files and nothing else.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vfejax.data.files import atomic_write
from vfejax.runs import checkpoint

__all__ = [
    "CONFIG",
    "OWN",
    "clear",
    "is_bare",
    "is_first_version",
    "is_own",
    "is_rest",
    "is_written",
    "note",
]

OWN = ".vfejax"  # folder of the lock and of the list of written files
CONFIG = "config.toml"
# The list of written files did not exist in the first version; this is what its runs held. Frozen.
_FIRST_VERSION = (
    *("metrics.csv", "checkpoints/", "best/checkpoints/", "vocabulary.json", "report.html"),
    *("summary.json", "initial.npz", "final.npz", "environment.json", "lock"),
    *("figures/errors.png", "figures/convergence_landmark.png", "figures/convergence_rotation.png"),
    *("figures/rotation_errors.png", "figures/energy.png", "figures/energy_drift.png"),
    *("figures/beliefs.png", "figures/frames.png", "figures/attention_start.png"),
    *("figures/attention_end.png", "figures/fields.png", "figures/supports.png"),
    *("figures/loss.png", "figures/diagnostics.png"),
)


def is_own(path: Path) -> bool:
    """Whether the folder ``.vfejax`` says that a run was made or begun here."""
    own = path / OWN
    return own.is_dir() and not own.is_symlink() and (own / "lock").is_file()


def is_first_version(path: Path) -> bool:
    """Whether a run of the first version is here: its lock holds nothing but a process number."""
    lock = path / "lock"
    if lock.is_symlink() or not lock.is_file():
        return False
    with open(lock, "rb") as file:
        return re.fullmatch(rb"(\d+\n)?", file.read(32)) is not None


def is_bare(path: Path) -> bool:
    """Whether a kill came before the lock was made: the folder ``.vfejax`` is there, empty."""
    own = path / OWN
    return own.is_dir() and not own.is_symlink() and not os.listdir(own)


def _written(path: Path) -> list[str]:
    """Names that the run noted before it wrote them; of the first version, all it could write."""
    try:
        lines = (path / OWN / "files").read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return list(_FIRST_VERSION) if is_first_version(path) else []
    except UnicodeDecodeError:
        return []
    # A name is only followed inside the directory, whatever the list says.
    return [line for line in lines if line and not Path(line).is_absolute() and ".." not in line]


def is_written(path: Path, file: Path) -> bool:
    """Whether the run at ``path`` wrote this file, so that ``--overwrite`` would remove it."""
    try:
        inside = file.resolve().relative_to(path.resolve())
    except ValueError:
        return False
    names = _written(path)
    folders = {str(parent) + "/" for parent in inside.parents}
    return str(inside) in names or not folders.isdisjoint(names)


def note(path: Path, names: Sequence[str]) -> None:
    """Add names to the list of written files, on the disk before the files are."""
    listing = path / OWN / "files"
    known = set(_written(path))
    fresh = [name for name in names if name not in known]
    if fresh:
        content = "".join(f"{name}\n" for name in [*_written(path), *fresh])
        listing.parent.mkdir(exist_ok=True)
        atomic_write(listing, content)


def clear(path: Path) -> None:
    """Remove what the earlier run wrote. Its configuration stays until the new one replaces it, so
    that a directory half cleared is still known as a run.
    """
    names = [name for name in _written(path) if name != CONFIG]
    folders = set()
    for name in names:
        entry = path / name
        if name.endswith("/"):
            checkpoint.clear(entry)
        elif entry.is_symlink() or not entry.is_dir():
            entry.unlink(missing_ok=True)
        folders |= {path / parent for parent in Path(name).parents if parent != Path()}
        folders |= {entry} if name.endswith("/") else set()
    for name in (CONFIG, *names):
        _remove_rests(path / name)
    for folder in sorted(folders, key=lambda folder: -len(folder.parts)):
        if folder.is_dir() and not folder.is_symlink() and not os.listdir(folder):
            folder.rmdir()
    (path / OWN).mkdir(exist_ok=True)
    atomic_write(path / OWN / "files", f"{CONFIG}\n")


def is_rest(name: str, of: str) -> bool:
    """Whether ``name`` is what a kill left of the atomic write of the file ``of``."""
    return re.fullmatch(rf"\.{re.escape(of)}\.\d+\.tmp", name) is not None


def _remove_rests(file: Path) -> None:
    if file.parent.is_dir():
        for name in os.listdir(file.parent):
            if is_rest(name, file.name):
                (file.parent / name).unlink(missing_ok=True)

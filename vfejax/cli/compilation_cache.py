"""Compiled programs that later commands reuse.

Compilation is most of the time of a short run. JAX can keep what it compiled in a folder; a command
points it at one of the user's, unless the user chose another folder (``JAX_COMPILATION_CACHE_DIR``)
or none (``JAX_ENABLE_COMPILATION_CACHE=false``).
"""

import contextlib
import functools
import hashlib
import os
import platform
import stat
import warnings
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import jax

__all__ = ["keep_programs", "programs_folder", "sweep"]

_MOST_BYTES = 512 * 2**20
_QUIET_SINCE = (0, 10, 2)  # jaxlib; earlier ones fill the terminal when they load a program


def keep_programs() -> None:
    """Compile nothing that an earlier command compiled on this machine.

    Where no folder can be used, or one fails later, everything is compiled again, without a word;
    so it is by jaxlib before 0.10.2.
    """
    chosen, enabled = "jax_compilation_cache_dir", "jax_enable_compilation_cache"
    if getattr(jax.config, chosen) or not getattr(jax.config, enabled):
        return
    if tuple(int(part) for part in version("jaxlib").split(".")[:3]) < _QUIET_SINCE:
        return
    folder = programs_folder(os.environ)
    if folder is None or not _prepare(folder):
        return
    sweep(folder, _MOST_BYTES)
    # Dozens of programs that take less than a second each are what a short run waits for.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update(chosen, str(folder))
    warnings.filterwarnings("ignore", "Error (reading|writing) persistent compilation cache")


def programs_folder(environment: Mapping[str, str]) -> Path | None:
    """Where programs are kept: in ``$XDG_CACHE_HOME``, ``~/.cache`` by default, one folder for each
    kind of processor; None when there is no home.

    >>> programs_folder({"XDG_CACHE_HOME": "/caches"}).parts[1:4]
    ('caches', 'vfejax', 'programs')
    """
    try:
        given = Path(environment.get("XDG_CACHE_HOME", ""))
        caches = given if given.is_absolute() else Path.home() / ".cache"
    except RuntimeError:
        return None
    return caches / "vfejax" / "programs" / _processor()


@functools.cache
def _processor() -> str:
    """A name for processors with the same instructions: a home can be shared by several, and a
    program of one would stop another.
    """
    features = platform.machine()
    with contextlib.suppress(OSError), open("/proc/cpuinfo") as file:
        features += next((line for line in file if line.lower().startswith(("flags", "feat"))), "")
    return f"{platform.machine()}-{hashlib.sha256(features.encode()).hexdigest()[:12]}"


def _prepare(folder: Path) -> bool:
    """Make the folder, and say whether it is the user's own and closed to strangers: who can write
    there can run code as the user.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return False
    own = not hasattr(os, "getuid") or (
        found.st_uid == os.getuid() and not found.st_mode & stat.S_IWOTH
    )
    return own and os.access(folder, os.R_OK | os.W_OK | os.X_OK)


def sweep(folder: Path, most_bytes: int) -> None:
    """Remove the oldest files of a folder that holds more than ``most_bytes``, until half of that
    is left, and empty ones, which a full disk left and JAX would not write again. Another command
    may do the same.
    """
    files = []
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if entry.is_file(follow_symlinks=False):
                    found = entry.stat(follow_symlinks=False)
                    files.append((found.st_mtime, found.st_size, entry.path))
    held = sum(size for _, size, _ in files)
    left = held if held <= most_bytes else most_bytes // 2
    for _, size, path in sorted(files):
        if size and held <= left:
            continue
        with contextlib.suppress(OSError):
            os.unlink(path)
        held -= size

"""What a compiled program depends on besides its function and its arguments: the files of this
package, versions of the others and times of their files, the version of Python, the settings of
JAX, what the environment tells libraries and XLA, and the processors.
"""

import functools
import hashlib
import importlib.util
import os
import platform
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import jax

from vfejax.cli import BEGAN, jax_cache
from vfejax.cli.function_digest import PACKAGES, Nameless

__all__ = ["check_unchanged", "settings", "surroundings"]

_READ = (
    *("JAX_", "XLA_", "TF_", "PJRT_", "NPROC", "OMP_", "ONEDNN_", "DNNL_", "CUDA_", "NVIDIA_"),
    *("CUDNN_", "CUBLAS", "FLAX_", "NPY_", "OPENBLAS_", "MKL_"),
)
"""How variables of the environment begin that the packages, or libraries of theirs, read."""
_FOUNDATIONS = ("ml_dtypes", "opt_einsum", "scipy", "chex")  # of the packages, by version alone
_CODE = (".py", ".so", ".pyd")
_PACKAGE = Path(__file__).parents[1]


def settings() -> list[str]:
    """What JAX and XLA are told to do."""
    values = {**jax.config.values, jax_cache.NAME: None}  # the folder itself, or put aside
    told = [f"{name}={value}" for name, value in sorted(values.items())]
    told += [f"{x}={os.environ[x]}" for x in sorted(os.environ) if x.startswith(_READ)]
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # a file that holds them
        told.append(Path(flags).read_text())
    return told


@functools.cache
def surroundings() -> tuple[str, ...]:
    """What the program is made of besides its function.

    Raises:
        Nameless: when a package changed since this process began.
    """
    device = jax.devices()[0]
    place = (device.platform, device.device_kind, device.client.platform_version)
    versions = [f"{name} {version(name)}" for name in (*PACKAGES, *_FOUNDATIONS)]
    files = map(_times, PACKAGES[1:])
    python = (platform.python_version(), str(sys.flags.optimize))
    return (_sources(), *python, *_processors(), *place, *versions, *files)


def check_unchanged() -> None:
    """Make sure that this process has loaded the package as it is.

    Raises:
        Nameless: when a file changed since the process began.
    """
    for _ in _files(_PACKAGE):
        pass


def _processors() -> tuple[str, ...]:
    """How many there are, and how many this process may use."""
    allowed = getattr(os, "sched_getaffinity", lambda _: ())(0)
    return str(os.cpu_count()), str(len(allowed))


@functools.cache
def _sources() -> str:
    """Digest of every file of this package."""
    whole = hashlib.sha256()
    for path, _ in _files(_PACKAGE):
        whole.update(f"{os.path.relpath(path, _PACKAGE)}\0".encode())
        whole.update(hashlib.sha256(Path(path).read_bytes()).digest())
    return whole.hexdigest()


def _times(package: str) -> str:
    """Digest of where a package is, and of size and time of its files: who works on it changes them
    under the same version.
    """
    whole = hashlib.sha256()
    spec = importlib.util.find_spec(package)  # it may be needed by other commands alone
    if spec is None or spec.origin is None:
        raise Nameless(f"{package} is not a package of files")
    for path, found in _files(Path(spec.origin).parent):
        whole.update(f"{path}\0{found.st_size} {found.st_mtime_ns}\0".encode())
    return whole.hexdigest()


def _files(package: Path) -> Iterator[tuple[str, os.stat_result]]:
    """The code of a package.

    Raises:
        Nameless: when a file changed since this process began.
    """
    for folder, folders, names in os.walk(package):
        folders[:] = sorted({*folders} - {"tests", "__pycache__"})
        for name in sorted(names):
            if not name.endswith(_CODE):
                continue
            path = os.path.join(folder, name)
            found = os.stat(path)
            # What is installed bears the time of its making; file systems have coarse clocks.
            if max(found.st_mtime, found.st_ctime) > BEGAN - 2.0:
                raise Nameless(f"{path} may have changed since it was loaded")
            yield path, found

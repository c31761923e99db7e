"""Executables that one command leaves to the next, found without tracing.

JAX finds a program that it has compiled before by the program itself, which must be traced and
lowered first: most of the time of a further short run. Here a program is found by what it is made
of, all that can change it: the function's code and what it has closed over
(:mod:`vfejax.cli.identity`), the shapes, types and places of its arguments, every file of this
package, versions of the others and times of their files, the version of Python, the settings of
JAX, what the environment tells libraries and XLA, and the processor (whose folder it is). A
function that cannot be described in full is compiled as ever, and so is a program that calls
functions outside XLA, all on several devices and on accelerators, and all when a file is newer than
this process, which may have loaded an older one.
"""

import contextlib
import functools
import hashlib
import importlib.util
import os
import pickle
import platform
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from vfejax.cli import BEGAN, jax_cache
from vfejax.cli.identity import PACKAGES, Nameless, digest, signature
from vfejax.cli.programs import programs_folder
from vfejax.data.files import atomic_write

__all__ = ["begin", "jit", "shapes"]

_SUFFIX = ".kept"
_READ = (
    *("JAX_", "XLA_", "TF_", "PJRT_", "NPROC", "OMP_", "ONEDNN_", "DNNL_", "CUDA_", "NVIDIA_"),
    *("CUDNN_", "CUBLAS", "FLAX_", "NPY_", "OPENBLAS_", "MKL_"),
)
"""How variables of the environment begin that the packages, or libraries of theirs, read."""
_FOUNDATIONS = ("ml_dtypes", "opt_einsum", "scipy", "chex")  # of the packages, by version alone
_CODE = (".py", ".so", ".pyd")
_PACKAGE = Path(__file__).parents[1]
_BEGUN: dict[Path, "Future[Callable[..., Any]]"] = {}
"""Programs that threads of this process make, by where they will be kept."""


def jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """As ``jax.jit``, for functions of positional arguments, and settings of JAX that stay.

    Args:
        function: what is compiled.
        options: of ``jax.jit``; at most one argument is static, and is given by its number.

    >>> import jax.numpy as jnp
    >>> jit(jnp.cumsum)(jnp.arange(4)).tolist()
    [0, 1, 3, 6]
    """
    return _Kept(function, options)


def shapes(function: Callable[..., Any], *arguments: Any) -> Any:
    """As ``jax.eval_shape``, kept too.

    >>> import jax.numpy as jnp
    >>> shapes(jnp.cumsum, jnp.arange(4)).shape
    (4,)
    """
    folder, traced = _folder(), function
    if isinstance(function, _Kept):  # what is traced now need not be when it is compiled
        traced, function = function._compiled, function._function
    path = None if folder is None else _path(folder, "shapes", function, {}, arguments)
    if path is None:
        return jax.eval_shape(traced, *arguments)
    found = _read(path)
    if found is None:
        found = jax.eval_shape(traced, *arguments)
        _write(path, lambda: found)
    return found


def begin(function: Callable[..., Any], *arguments: Any) -> bool:
    """Compile a function in a thread. Who calls it before that is done, or another of the same
    code, waits for the executable. Nothing is done where it would not be kept, or is already.

    Args:
        function: as :func:`jit` made it.
        arguments: what it will be called with, or their shapes.

    Returns:
        Whether a thread compiles it now.

    >>> import jax.numpy as jnp
    >>> doubled = jit(lambda x: 2 * x)
    >>> begun = begin(doubled, jax.ShapeDtypeStruct((), jnp.float32))
    >>> float(doubled(jnp.float32(3)))
    6.0
    """
    folder = _folder()
    if folder is None or not isinstance(function, _Kept):
        return False
    name, varying = function.split(arguments)
    path = _path(folder, name, function._function, function._options, varying)
    if path is None or path in _BEGUN or path.exists():
        return False
    found = _BEGUN[path] = Future()

    def make() -> None:
        try:
            found.set_result(function.made(path, arguments))
        except BaseException as error:  # told to who waits
            found.set_exception(error)

    # No daemon: a process that ends while XLA compiles can crash.
    threading.Thread(target=make).start()
    return True


class _Kept:
    """A function whose executables are kept, one for each signature of its arguments."""

    def __init__(self, function: Callable[..., Any], options: dict[str, Any]) -> None:
        self._function, self._options = function, options
        self._compiled = jax.jit(function, **options)
        self._programs: dict[Any, Callable[..., Any]] = {}
        self.lower = self._compiled.lower

    def __call__(self, *arguments: Any) -> Any:
        folder = _folder()
        name, varying = self.split(arguments)
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(varying))
        if folder is None or traced:
            return self._compiled(*arguments)
        key = (name, signature(varying))
        if key not in self._programs:
            path = _path(folder, name, self._function, self._options, varying)
            self._programs[key] = self._program(path, arguments, varying)
        return self._programs[key](*varying)

    def split(self, arguments: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """The static argument, None if there is none, and the others."""
        static = self._options.get("static_argnums")
        varying = tuple(x for i, x in enumerate(arguments) if i != static)
        return None if static is None else arguments[static], varying

    def _program(
        self, path: Path | None, arguments: tuple[Any, ...], varying: tuple[Any, ...]
    ) -> Callable[..., Any]:
        """The executable that a thread makes; or read it, or compile and write it."""
        begun = None if path is None else _BEGUN.pop(path, None)
        if begun is not None:
            with contextlib.suppress(Exception):  # which is met again below
                return begun.result()
        found = None if path is None else _read(path)
        if found is not None:
            with contextlib.suppress(Exception):  # of a kind that JAX can write and cannot read
                executable, results = found
                tree = jax.tree.structure((varying, {}))  # may hold functions, which no file can
                return serialize_executable.deserialize_and_load(executable, tree, results)
        return self.made(path, arguments)

    def made(self, path: Path | None, arguments: tuple[Any, ...]) -> Callable[..., Any]:
        """Compile, and write what can be kept."""
        lowered = self._compiled.lower(*arguments)
        if path is None or _calls_out(lowered):
            return lowered.compile()
        with jax_cache.aside():
            program = lowered.compile()
        _write(path, lambda: serialize_executable.serialize(program)[::2])  # not their tree
        return program


def _calls_out(lowered: jax.stages.Lowered) -> bool:
    """Whether a program calls functions outside XLA, such as LAPACK's or Python's. JAX looks them
    up when it lowers the call: an executable that was read would jump to none, and end the process.
    """
    return "custom_call" in lowered.as_text()


def _folder() -> Path | None:
    """Where executables are kept; None when no folder is, or there is more than one device, or one
    that is no CPU: of others it was never seen that what is read runs.
    """
    enabled = jax.config.jax_enable_compilation_cache  # type: ignore[attr-defined]
    own = programs_folder(os.environ)
    if not enabled or own is None or jax_cache.folder() != str(own):
        return None
    one = jax.process_count() == 1 and jax.device_count() == 1
    return own if one and jax.default_backend() == "cpu" else None


def _path(
    folder: Path, name: Any, function: Callable, options: dict[str, Any], arguments: Any
) -> Path | None:
    """Where the executable is, or would be; None when it cannot be told from another."""
    with contextlib.suppress(Exception):  # Nameless above all; and no description ends a command
        treedef, leaves = signature(arguments)
        words = (name, treedef, list(map(str, leaves)))
        found = digest(function, options, words, _surroundings(), _settings())
        return folder / f"{found}{_SUFFIX}"
    return None


def _settings() -> list[str]:
    """What JAX and XLA are told to do."""
    values = {**jax.config.values, jax_cache.NAME: None}  # the folder itself, or put aside
    told = [f"{name}={value}" for name, value in sorted(values.items())]
    told += [f"{x}={os.environ[x]}" for x in sorted(os.environ) if x.startswith(_READ)]
    flags = os.environ.get("XLA_FLAGS", "").strip()
    if flags and not flags.startswith("-"):  # a file that holds them
        told.append(Path(flags).read_text())
    return told


@functools.cache
def _surroundings() -> tuple[str, ...]:
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


def _checksum(path: Path, body: bytes) -> bytes:
    """Of content and name: under another's name it is no less damaged."""
    return hashlib.sha256(path.name.encode() + body).digest()


def _read(path: Path) -> Any:
    """What was kept; None when there is nothing, or what is there is damaged."""
    with contextlib.suppress(Exception):
        content = path.read_bytes()
        check, body = content[:32], content[32:]
        if _checksum(path, body) == check:
            found = pickle.loads(body)
            os.utime(path)  # the oldest ones go first
            return found
    return None


def _write(path: Path, make: Callable[[], Any]) -> None:
    """Keep what ``make`` gives, whole or not at all, also where something damaged is."""
    with contextlib.suppress(Exception):
        list(_files(_PACKAGE))  # a file may have changed, and been loaded, since the path was found
        body = pickle.dumps(make())
        atomic_write(path, _checksum(path, body) + body)

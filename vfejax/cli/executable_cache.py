"""Cached executables that later commands find without tracing.

JAX finds a program that it has compiled before by the program itself, which must be traced and
lowered first: most of the time of a further short run. Here a program is found by all that can
change it:

- the function's code and what it has closed over (:mod:`vfejax.cli.function_digest`), and the
  shapes, types and places of its arguments;
- every file of this package, the versions of others and the times of their files, and the version
  of Python;
- the settings of JAX, what the environment tells libraries and XLA, and the processor (whose folder
  it is).

JAX compiles as ever where a function cannot be described in full, where a program calls functions
outside XLA, and on several devices or an accelerator. So it does when a file is newer than this
process, which may have loaded an older one.
"""

import contextlib
import hashlib
import os
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.experimental import serialize_executable

from vfejax.cli import jax_cache
from vfejax.cli.cache_key import check_unchanged, settings, surroundings
from vfejax.cli.compilation_cache import programs_folder
from vfejax.cli.function_digest import digest, signature
from vfejax.data.files import atomic_write

__all__ = ["begin", "jit", "shapes"]

_SUFFIX, _SHAPES = ".kept", ".shapes"  # of executables; of what they return


class _Begun(NamedTuple):
    """What a thread makes: shapes of results when it has lowered the function, and in the end the
    executable.
    """

    shapes: "Future[Any]"
    program: "Future[Callable[..., Any]]"


_BEGUN: dict[Path, _Begun] = {}
"""Programs that threads of this process make or made, by where they will be kept. They stay: what
is told before it is written would else be made again.
"""


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
    """As ``jax.eval_shape``, kept too. What :func:`jit` made is traced once for its shapes and its
    executable where a thread has begun that.

    >>> import jax.numpy as jnp
    >>> shapes(jnp.cumsum, jnp.arange(4)).shape
    (4,)
    """
    folder = _folder()
    if isinstance(function, _Kept):
        path = None if folder is None else function.path(folder, arguments)
        found = path and path.with_suffix(_SHAPES)
        return _remembered(found, lambda: function.shapes(path, arguments))
    path = None if folder is None else _path(folder, "shapes", function, {}, arguments)
    return _remembered(path, lambda: jax.eval_shape(function, *arguments))


def _remembered(path: Path | None, make: Callable[[], Any]) -> Any:
    """What was kept, or else what ``make`` gives, which is kept."""
    found = None if path is None else _read(path)
    if found is None:
        found = make()
        if path is not None:
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
    path = function.path(folder, arguments)
    if path is None or path in _BEGUN or path.exists():
        return False
    begun = _BEGUN[path] = _Begun(Future(), Future())

    def make() -> None:
        try:
            function.made(path, arguments, begun.shapes.set_result, begun.program.set_result)
        except BaseException as error:  # told to who waits
            for waited in begun:
                if not waited.done():
                    waited.set_exception(error)

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
            path = self.path(folder, arguments)
            self._programs[key] = self._program(path, arguments, varying)
        return self._programs[key](*varying)

    def path(self, folder: Path, arguments: tuple[Any, ...]) -> Path | None:
        """Where the executable for these arguments is, or would be."""
        name, varying = self.split(arguments)
        return _path(folder, name, self._function, self._options, varying)

    def split(self, arguments: tuple[Any, ...]) -> tuple[Any, tuple[Any, ...]]:
        """The static argument, None if there is none, and the others."""
        static = self._options.get("static_argnums")
        varying = tuple(x for i, x in enumerate(arguments) if i != static)
        return None if static is None else arguments[static], varying

    def _program(
        self, path: Path | None, arguments: tuple[Any, ...], varying: tuple[Any, ...]
    ) -> Callable[..., Any]:
        """The executable that a thread makes; or read it, or compile and write it."""
        begun = None if path is None else _BEGUN.get(path)
        if begun is not None:
            with contextlib.suppress(Exception):  # which is met again below
                return begun.program.result()
        found = None if path is None else _read(path)
        if found is not None:
            with contextlib.suppress(Exception):  # of a kind that JAX can write and cannot read
                executable, results = found
                tree = jax.tree.structure((varying, {}))  # may hold functions, which no file can
                return serialize_executable.deserialize_and_load(executable, tree, results)
        return self.made(path, arguments)

    def made(
        self,
        path: Path | None,
        arguments: tuple[Any, ...],
        tell_shapes: Callable[[Any], None] = lambda shapes: None,
        tell_program: Callable[[Any], None] = lambda program: None,
    ) -> Callable[..., Any]:
        """Compile, and write what can be kept.

        Args:
            path: where to write; None for nowhere.
            arguments: of the function, or their shapes.
            tell_shapes: is given the shapes of the results before the function is compiled.
            tell_program: is given the executable before it is written, which takes 0.1 s.
        """
        lowered = self._compiled.lower(*arguments)
        tell_shapes(_bare(lowered.out_info))
        place = None if path is None or _calls_out(lowered) else path
        with contextlib.nullcontext() if place is None else jax_cache.aside():
            program = lowered.compile()
        tell_program(program)
        if place is not None:
            _write(place, lambda: serialize_executable.serialize(program)[::2])  # not their tree
        return program

    def shapes(self, path: Path | None, arguments: tuple[Any, ...]) -> Any:
        """Shapes of the results, from the thread that makes the executable where there is one."""
        begun = None if path is None else _BEGUN.get(path)
        if begun is not None:
            with contextlib.suppress(Exception):  # which is met again below
                return begun.shapes.result()
        return _bare(jax.eval_shape(self._compiled, *arguments))


def _bare(results: Any) -> Any:
    """Shapes and types alone, of what may know of devices too."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), results)


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
        found = digest(function, options, words, surroundings(), settings())
        return folder / f"{found}{_SUFFIX}"
    return None


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
        check_unchanged()  # a file may have been loaded anew since the path was found
        body = pickle.dumps(make())
        atomic_write(path, _checksum(path, body) + body)

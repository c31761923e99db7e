"""A digest of what a function computes: its code, and all values that it closes over.

Two functions with one digest compute the same: whatever is met is written down in full (the bytes
of arrays too), and what has no such description makes the whole nameless. Of what a module holds
the name alone is written, so a digest means something only together with the versions of the
packages in ``PACKAGES``.
"""

import functools
import hashlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

__all__ = ["PACKAGES", "Nameless", "digest", "signature"]

PACKAGES = ("vfejax", "jax", "jaxlib", "flax", "optax", "numpy")
"""Packages whose modules may be referred to by name; those of Python itself besides."""

_KNOWN = {*PACKAGES, *sys.stdlib_module_names}
_PLAIN = {"vfejax", "flax", "optax", "typing", "abc", "collections.abc"}  # of Python code alone
_MOST_BYTES = 64 * 2**20  # of arrays; reading more takes as long as tracing


class Nameless(Exception):
    """Something has no complete description."""


def digest(*values: Any) -> str:
    """Hexadecimal digest of functions, of arrays, of settings, and of containers of them.

    Args:
        values: what is described.

    Raises:
        Nameless: where a value, or something that it refers to, has no complete description: an
            object of an unknown kind, code of a package that is not in ``PACKAGES``, large arrays.

    >>> def scaled(factor):
    ...     return functools.partial(np.multiply, factor)
    >>> digest(scaled(2.0)) == digest(scaled(2.0)), digest(scaled(2.0)) == digest(scaled(3.0))
    (True, False)
    """
    writer = _Writer()
    for value in values:
        writer.write(value)
    return writer.hash.hexdigest()


def signature(arguments: Any) -> tuple[Any, ...]:
    """What decides which program the arguments of a compiled function need: their tree, and shape,
    type and place of every leaf.

    >>> signature(np.zeros(2)) == signature(np.ones(2)), signature(1.0) == signature(np.ones(2))
    (True, False)
    """
    leaves, treedef = jax.tree.flatten(arguments)
    return treedef, tuple(map(_kind, leaves))


def _kind(leaf: Any) -> tuple[Any, ...]:
    if not hasattr(leaf, "dtype"):
        return (type(leaf),)
    # Shapes that name a place stand for arrays that are there.
    sharding = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
    return leaf.shape, leaf.dtype, getattr(leaf, "weak_type", False), sharding


class _Writer:
    """Writes values into a hash, each so that its end is known; what was met before is a number."""

    def __init__(self) -> None:
        self.hash = hashlib.sha256()
        self._met: dict[int, int] = {}
        self._held: list[Any] = []  # an id stays the same object's
        self._bytes = 0

    def write(self, value: Any) -> None:
        """Write one value and all that it refers to."""
        if type(value) in _LITERALS:
            return self._put(type(value).__name__, value)
        if id(value) in self._met:
            return self._put("met", self._met[id(value)])
        self._met[id(value)] = len(self._met)
        self._held.append(value)
        if _is_named(value):
            return self._put("named", value.__module__, value.__qualname__)
        if type(value) in _EXACT:
            return _EXACT[type(value)](self, value)
        for kind, method in _DERIVED.items():
            if isinstance(value, kind):
                return method(self, value)
        if type(value) is object or not all(map(_is_plain, type(value).__mro__)):
            raise Nameless(f"an object of {type(value).__qualname__} has no description")
        return self._parts("object", type(value), object.__getstate__(value))

    def _put(self, *words: Any) -> None:
        self.hash.update(repr(words).encode(errors="surrogatepass"))

    def _parts(self, kind: str, *parts: Any) -> None:
        self._put(kind, len(parts))
        for part in parts:
            self.write(part)

    def _number(self, value: float | complex) -> None:
        self._put(type(value).__name__, np.asarray(value).tobytes())  # a NaN has a sign

    def _sequence(self, value: tuple | list) -> None:
        self._parts("sequence", type(value), getattr(value, "__dict__", None), *value)

    def _mapping(self, value: Mapping) -> None:
        self._parts("mapping", type(value), *value.keys(), *value.values())

    def _set(self, value: frozenset | set) -> None:
        self._put("set", type(value).__name__, *sorted(map(digest, value)))

    def _array(self, value: Any) -> None:
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key):
            return self._parts("key", str(value.dtype), jax.random.key_data(value))
        self._bytes += value.nbytes
        if value.dtype.hasobject or self._bytes > _MOST_BYTES:
            raise Nameless(f"an array of {value.nbytes} bytes")
        owner = "jax" if isinstance(value, jax.Array) else type(value).__name__
        self._put("array", owner, *map(str, _kind(value)), np.asarray(value).tobytes())

    def _function(self, value: types.FunctionType) -> None:
        module = value.__globals__.get("__name__", "")  # its own one may be of what it wraps
        found = sys.modules.get(module) if _is_known(module) else None
        if found is None or vars(found) is not value.__globals__:
            raise Nameless(f"{value.__qualname__} is of {module}")
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        told = (value.__defaults__, value.__kwdefaults__, value.__dict__)
        self._parts("function", module, value.__code__, *told, *cells)

    def _code(self, value: types.CodeType) -> None:
        names = (value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars)
        counts = (value.co_flags, value.co_argcount, value.co_posonlyargcount)
        whole = (value.co_code, value.co_exceptiontable, value.co_consts, value.co_kwonlyargcount)
        self._parts("code", value.co_qualname, *whole, *counts, *names)

    def _partial(self, value: functools.partial) -> None:
        self._parts("partial", value.func, value.args, value.keywords, value.__dict__)

    def _method(self, value: types.MethodType) -> None:
        self._parts("method", value.__func__, value.__self__)

    def _module(self, value: types.ModuleType) -> None:
        if not _is_known(value.__name__):
            raise Nameless(f"module {value.__name__}")
        self._put("module", value.__name__)

    def _mesh(self, value: jax.sharding.Mesh) -> None:
        shape = tuple(value.shape.items())
        places = [str(device) for device in value.devices.flat]
        self._parts("mesh", shape, places, *map(str, value.axis_types))

    def _sharding(self, value: jax.sharding.NamedSharding) -> None:
        self._parts("sharding", value.mesh, str(value.spec), value.memory_kind)

    def _tree(self, value: jax.tree_util.PyTreeDef) -> None:
        node = value.node_data()  # None for a leaf
        self._parts("tree", *(() if node is None else (node, *value.children())))

    def _words(self, value: Any) -> None:
        self._put("words", type(value).__name__, str(value))


_LITERALS = {type(None), bool, int, str, bytes}
_EXACT: dict[type, Callable[[_Writer, Any], None]] = {
    float: _Writer._number,
    complex: _Writer._number,
    list: _Writer._sequence,
    dict: _Writer._mapping,
    types.MappingProxyType: _Writer._mapping,
    set: _Writer._set,
    frozenset: _Writer._set,
    np.ndarray: _Writer._array,
    types.FunctionType: _Writer._function,
    types.CodeType: _Writer._code,
    functools.partial: _Writer._partial,
    types.MethodType: _Writer._method,
    types.EllipsisType: _Writer._words,
}
"""How values of a class are written; those of a class derived from it may hold more."""

_DERIVED: dict[type, Callable[[_Writer, Any], None]] = {
    tuple: _Writer._sequence,
    np.generic: _Writer._array,
    jax.Array: _Writer._array,
    np.dtype: _Writer._words,
    types.ModuleType: _Writer._module,
    jax.sharding.Mesh: _Writer._mesh,
    jax.sharding.NamedSharding: _Writer._sharding,
    jax.tree_util.PyTreeDef: _Writer._tree,
}
"""How values of a class, or of one derived from it, are written."""


def _is_known(module: str | None) -> bool:
    return (module or "").partition(".")[0] in _KNOWN


def _is_plain(kind: type) -> bool:
    """Whether what objects of a class hold is in their attributes: it is written in Python."""
    module = kind.__module__
    return kind is object or module in _PLAIN or module.partition(".")[0] in _PLAIN


def _is_named(value: Any) -> bool:
    """Whether a known module has this object under the name that it bears."""
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if not isinstance(module, str) or not isinstance(name, str) or not _is_known(module):
        return False
    found = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found is value or getattr(types, name, None) is value  # as types.NoneType, of builtins

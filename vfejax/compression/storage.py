"""Weights as a file keeps them: exact, rounded to float16, quantised, or sparse.

A leaf is encoded (:func:`encode`, pure), and what that gives is packed into a few plain arrays, its
*parts* (:func:`parts`, on the host). The way back, :func:`encoded` and :func:`decode`, gives what a
model reads after a file has been loaded: bit for bit what ``decode(encode(x))`` gives without one.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.compression.packing import pack, packed_length, unpack
from vfejax.compression.quantize import (
    Quantized,
    Scheme,
    dequantize,
    fake_quantize,
    quantize,
)
from vfejax.types import Array, PyTree

__all__ = [
    "VALUES",
    "Encoded",
    "Form",
    "as_stored",
    "decode",
    "encode",
    "encoded",
    "layout",
    "leaf_names",
    "num_bytes",
    "parts",
]

_LARGEST = float(jnp.finfo(jnp.float16).max)
VALUES = "values"
"""The part that weights without a scheme have."""


class Form(NamedTuple):
    """How a leaf is kept.

    Attributes:
        scheme: of its quantisation; None for weights that are not quantised.
        axis: along which weights share a scale.
        sparse: weights that are 0 are left out, and a bitmap says which.
        half: weights that are not quantised are rounded to float16, whose largest number stands
            for all beyond it.
    """

    scheme: Scheme | None = None
    axis: int = -2
    sparse: bool = False
    half: bool = False


class Encoded(NamedTuple):
    """A leaf on its way to a file.

    Attributes:
        values: its weights, rounded to float16 where the form says so, or its codes.
        kept: True where a weight of a sparse leaf is not 0; None for other leaves.
    """

    values: Array | Quantized
    kept: Array | None = None


_EXACT = Form()


def encode(x: Array, form: Form) -> Encoded:
    """A leaf as its form keeps it.

    >>> encode(jnp.asarray([0.0, 0.1]), Form(sparse=True, half=True)).values.dtype
    dtype('float16')
    """
    kept = x != 0 if form.sparse else None
    if form.scheme is not None:
        return Encoded(quantize(x, form.scheme, form.axis), kept)
    return Encoded(_half(x) if form.half else x, kept)


def _half(x: Array) -> Array:
    return jnp.clip(x, -_LARGEST, _LARGEST).astype(jnp.float16)


@jax.custom_jvp
def _fake_half(x: Array) -> Array:
    """What float16 leaves of the weights. Their slopes are not rounded: those of a mean over a
    batch are often below its least number.
    """
    return _half(x).astype(x.dtype)


@_fake_half.defjvp
def _fake_half_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (change,) = primals, tangents
    return _fake_half(x), jnp.where(jnp.abs(x) > _LARGEST, jnp.zeros((), change.dtype), change)


def decode(leaf: Encoded, form: Form, dtype: Any) -> Array:
    """The weights that a model reads.

    Args:
        leaf: of :func:`encode` or :func:`encoded`.
        form: its form.
        dtype: of the weights.

    >>> decode(encode(jnp.asarray([0.0, 0.1]), Form(half=True)), Form(half=True), jnp.float32)
    Array([0.        , 0.09997559], dtype=float32)
    """
    if isinstance(leaf.values, Quantized):
        assert form.scheme is not None  # for the type checker
        x = dequantize(leaf.values, form.scheme, form.axis, dtype)
    else:
        x = leaf.values.astype(dtype)
    return x if leaf.kept is None else jnp.where(leaf.kept, x, jnp.zeros((), dtype))


def as_stored(params: PyTree, forms: Mapping[str, Form]) -> PyTree:
    """The weights as they are after a file has been written and read, with straight-through
    gradients: for training.

    Weights of a sparse leaf that are 0 have no gradient, and stay 0. Those that are cut off, beyond
    a grid or the largest number of float16, have none either.

    Args:
        params: the weights.
        forms: by name of a leaf; a leaf without one is exact.

    Raises:
        ValueError: for the form of a leaf that is not there.

    >>> weights = {"kernel": jnp.asarray([[0.75], [-1.0], [0.3]]), "bias": jnp.asarray([0.3])}
    >>> read = as_stored(weights, {"kernel": Form(Scheme(bits=3))})
    >>> read["kernel"].ravel().tolist()
    [0.75, -1.0, 0.25]
    """

    def stored(path: Any, x: Array) -> Array:
        form = forms.get(_name(path), _EXACT)
        if form.scheme is not None:
            read = fake_quantize(x, form.scheme, form.axis)
        else:
            read = _fake_half(x) if form.half else x
        return jnp.where(x == 0, jnp.zeros((), x.dtype), read) if form.sparse else read

    _check_names(leaf_names(params), forms)
    return jax.tree_util.tree_map_with_path(stored, params)


def _check_names(leaves: Mapping[str, Any], forms: Mapping[str, Form]) -> None:
    if strange := sorted(forms.keys() - leaves.keys()):
        raise ValueError(
            f"forms must name leaves of params, such as {next(iter(leaves), '')!r}, got "
            f"{strange[0]!r}"
        )


def _name(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def leaf_names(params: PyTree) -> dict[str, Any]:
    """The leaves of a tree by name: keys joined by ``/``.

    >>> leaf_names({"a": {"b": 1, "c": 2}})
    {'a/b': 1, 'a/c': 2}
    """
    return {_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def parts(leaf: Encoded, form: Form) -> dict[str, np.ndarray]:
    """The arrays that a file keeps of a leaf. On the host: not to be traced.

    Args:
        leaf: of :func:`encode`.
        form: its form.

    Returns:
        ``values`` of weights that are not quantised; ``codes`` (packed bits), ``scale`` and, of an
        asymmetric scheme, ``zero`` of quantised ones. A sparse leaf keeps values or codes of the
        weights that are not 0, in their order, and has a ``bitmap``.

    >>> form = Form(sparse=True)
    >>> parts(encode(jnp.asarray([0.0, 2.0, 3.0]), form), form)["bitmap"].tolist()
    [6]
    """
    kept = None if leaf.kept is None else np.asarray(leaf.kept)
    found = {} if kept is None else {"bitmap": np.packbits(kept.ravel(), bitorder="little")}

    def chosen(x: Any) -> np.ndarray:
        return np.asarray(x) if kept is None else np.asarray(x)[kept]

    if not isinstance(leaf.values, Quantized):
        return found | {VALUES: chosen(leaf.values)}
    assert form.scheme is not None  # for the type checker
    codes, scale, zero = leaf.values
    found |= {"codes": _packed(chosen(codes), form.scheme), "scale": np.asarray(scale)}
    return found if zero is None else found | {"zero": _packed(np.asarray(zero), form.scheme)}


def _packed(codes: np.ndarray, scheme: Scheme) -> np.ndarray:
    return np.asarray(pack(codes.ravel(), scheme.bits))


def encoded(
    kept: Mapping[str, np.ndarray], form: Form, shape: tuple[int, ...], dtype: Any
) -> Encoded:
    """The inverse of :func:`parts`, in NumPy arrays.

    Args:
        kept: the parts of a leaf.
        form: its form.
        shape: of the leaf.
        dtype: of the leaf.

    Raises:
        ValueError: for parts that are not those of such a leaf.

    >>> half = Form(half=True)
    >>> leaf = encoded({"values": np.ones(2, np.float16)}, half, (2,), jnp.float32)
    >>> decode(leaf, half, jnp.float32).tolist()
    [1.0, 1.0]
    """
    chosen = _bitmap(kept, shape) if form.sparse else None
    count = math.prod(shape) if chosen is None else int(np.count_nonzero(chosen))
    wanted = layout(shape, dtype, form, count)
    _check(kept, wanted)

    def spread(x: np.ndarray) -> np.ndarray:
        if chosen is None:
            return x.reshape(shape)
        full = np.zeros(shape, x.dtype)
        full[chosen] = x
        return full

    if form.scheme is None:
        return Encoded(spread(kept[VALUES]), chosen)  # type: ignore[arg-type]
    bits, scale, zero = form.scheme.bits, kept["scale"], kept.get("zero")
    codes = spread(np.asarray(unpack(kept["codes"], bits, count)))
    if zero is not None:
        zero = np.asarray(unpack(zero, bits, scale.size)).reshape(scale.shape)
    return Encoded(Quantized(codes, scale, zero), chosen)  # type: ignore[arg-type]


def _bitmap(kept: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> np.ndarray:
    """The weights of a sparse leaf that are kept, booleans of its shape."""
    count, bitmap = math.prod(shape), kept.get("bitmap")
    if bitmap is None or bitmap.dtype != np.uint8 or bitmap.shape != (packed_length(count, 1),):
        raise ValueError(f"bitmap must be uint8 [{packed_length(count, 1)}], got {_said(bitmap)}")
    return np.unpackbits(bitmap, count=count, bitorder="little").reshape(shape).astype(bool)


def _said(array: np.ndarray | None) -> str:
    return "nothing" if array is None else f"{array.dtype} {list(array.shape)}"


def _check(kept: Mapping[str, np.ndarray], wanted: Mapping[str, jax.ShapeDtypeStruct]) -> None:
    for name, want in wanted.items():
        array = kept.get(name)
        if array is None or (array.shape, array.dtype) != (want.shape, want.dtype):
            raise ValueError(f"{name} must be {want.dtype} {list(want.shape)}, got {_said(array)}")
    if strange := sorted(kept.keys() - wanted.keys()):
        raise ValueError(f"{strange[0]} does not belong to such a leaf")


def layout(
    shape: tuple[int, ...], dtype: Any, form: Form, count: int | None = None
) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and types of the parts of a leaf.

    Args:
        shape: of the leaf.
        dtype: of the leaf.
        form: how it is kept.
        count: number of weights that a sparse leaf keeps; all by default.

    >>> layout((8, 3), jnp.float32, Form(half=True))
    {'values': ShapeDtypeStruct(shape=(8, 3), dtype=float16)}
    """
    count = math.prod(shape) if count is None else count
    struct = jax.ShapeDtypeStruct
    found = {"bitmap": struct((packed_length(math.prod(shape), 1),), np.uint8)}
    found = found if form.sparse else {}
    values = jax.eval_shape(lambda x: encode(x, form), struct(shape, dtype)).values
    if form.scheme is None:
        return found | {VALUES: struct((count,) if form.sparse else shape, values.dtype)}
    bits, scale, zero = form.scheme.bits, values.scale, values.zero
    found["codes"] = struct((packed_length(count, bits),), np.uint8)
    found["scale"] = struct(scale.shape, scale.dtype)
    if zero is not None:
        found["zero"] = struct((packed_length(zero.size, bits),), np.uint8)
    return found


def num_bytes(params: PyTree, forms: Mapping[str, Form]) -> int:
    """Bytes of all parts of all leaves.

    Args:
        params: the weights; of leaves that are not sparse their shapes will do.
        forms: by name of a leaf; a leaf without one is exact.

    Raises:
        ValueError: for the form of a leaf that is not there.

    >>> num_bytes({"kernel": np.zeros((8, 4), np.float32)}, {"kernel": Form(half=True)})
    64
    """
    total, leaves = 0, leaf_names(params)
    _check_names(leaves, forms)
    for name, x in leaves.items():
        form = forms.get(name, _EXACT)
        count = int(np.count_nonzero(np.asarray(x))) if form.sparse else None
        found = layout(x.shape, x.dtype, form, count).values()
        total += sum(math.prod(part.shape) * part.dtype.itemsize for part in found)
    return total

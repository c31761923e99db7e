"""Group quantisation: weights as small integers, with a float16 scale for every group of them.

A group is a run of neighbours along the axis over which a product sums. Its grid has ``2^bits``
equidistant levels, of which one is zero. The scale is searched: among steps from one that reaches
the largest weight to one that reaches a third of it, that with the least squared error. Few bits
gain most, because there a rare large weight costs all others their resolution.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from vfejax.compression._scales import levels, nearest, search
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = [
    "Layout",
    "Quantized",
    "Scheme",
    "check_quantized",
    "check_scheme",
    "dequantize",
    "fake_quantize",
    "quantize",
]


class Scheme(NamedTuple):
    """How an array is quantised.

    Attributes:
        bits: of a code, 2 to 8.
        group: number of neighbours along the axis that share a scale; 0 for the whole axis.
        symmetric: whether the code of zero is the same in all groups, ``2^(bits - 1)``. If not,
            each group has its own, which suits groups whose numbers have one sign.
    """

    bits: int = 4
    group: int = 64
    symmetric: bool = True


class Quantized(NamedTuple):
    """An array as codes: ``x = scale * (code - zero)``, group by group.

    Attributes:
        codes: uint8 of the array's shape, 0 to ``2^bits - 1``.
        scale: float16 of the array's shape, with groups in place of their members along the axis.
            Those of a symmetric scheme have a sign. That of a group which holds a NaN or an
            infinity is NaN.
        zero: the code of zero, uint8 like ``scale``; None when the scheme is symmetric.
    """

    codes: Array
    scale: Array
    zero: Array | None = None


def check_scheme(scheme: Scheme) -> None:
    """Raise ValueError unless the numbers of a scheme are possible.

    >>> check_scheme(Scheme(bits=9))
    Traceback (most recent call last):
    ValueError: bits must be a whole number between 2 and 8, got 9
    """
    if not 2 <= scheme.bits <= 8 or scheme.bits != int(scheme.bits):
        raise ValueError(f"bits must be a whole number between 2 and 8, got {scheme.bits}")
    if scheme.group < 0:
        raise ValueError(
            f"group must be a number of weights, or 0 for the whole axis, got {scheme.group}"
        )


class Layout(NamedTuple):
    """Where groups lie: ``length`` numbers along ``axis`` in ``num_groups`` groups of ``size``, the
    last of which may be shorter.
    """

    axis: int
    length: int
    size: int
    num_groups: int


def _layout(shape: tuple[int, ...], scheme: Scheme, axis: int) -> Layout:
    check_scheme(scheme)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis must be one of an array of shape {shape}, got {axis}")
    length = shape[axis]
    size = max(1, min(scheme.group or length, length))
    return Layout(axis % len(shape), length, size, -(-length // size))


def _split(x: Array, layout: Layout) -> Array:
    """``[..., length, ...]`` to ``[..., count, size, ...]``, the last group filled up with
    zeros.
    """
    axis, missing = layout.axis, layout.num_groups * layout.size - layout.length
    if missing:
        x = jnp.pad(x, [(0, missing if at == axis else 0) for at in range(x.ndim)])
    return x.reshape(*x.shape[:axis], layout.num_groups, layout.size, *x.shape[axis + 1 :])


def _join(groups: Array, layout: Layout) -> Array:
    """The inverse of :func:`_split`."""
    axis, shape = layout.axis, groups.shape
    x = groups.reshape(*shape[:axis], layout.num_groups * layout.size, *shape[axis + 2 :])
    return jax.lax.slice_in_dim(x, 0, layout.length, axis=axis)


def _check_weights(x: Array) -> None:
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"x must be real and floating, got {x.dtype}")


def _quantize(x: Array, scheme: Scheme, axis: int) -> tuple[Array, Array, Array, Layout]:
    """Codes of an endless grid ``[..., count, size, ...]``, scale and zero
    ``[..., count, 1, ...]``, in the precision of the search.
    """
    _check_weights(x)
    layout = _layout(x.shape, scheme, axis)
    groups = _split(x.astype(at_least_float32(x.dtype)), layout)
    scale, zero = search(groups, layout.axis + 1, scheme.bits, scheme.symmetric)
    return nearest(groups, scale, zero), scale, zero, layout


def quantize(x: Array, scheme: Scheme, axis: int = -2) -> Quantized:
    """``x ~ scale * (code - zero)``: the nearest of ``2^bits`` levels, group by group.

    A group of zeros has scale 0 and returns as it is, and so do numbers of a grid that reach an
    end of it (both ends, without symmetry). Others are off by at most half a step, and by more
    where the search found that cutting off the largest weights leaves less squared error. Scales
    are those of float16: the least step is ``2^-24``, and no level lies beyond
    ``65504 * 2^(bits - 1)``. A group that holds a NaN or an infinity becomes NaN.

    A symmetric grid of integers has one level more on one side of zero than on the other. The sign
    of its scale turns that side to where the largest weight is, so that no code is wasted.

    Args:
        x: real floating ``[..., n, ...]``.
        scheme: bits, group and symmetry.
        axis: that along which neighbours share a scale. The last group may be shorter.

    Returns:
        Codes of the shape of ``x``, scales and zeros ``[..., ceil(n / group), ...]``.

    Raises:
        ValueError: for an array of another dtype, an axis that it does not have, and a scheme that
            is not possible.

    >>> weights = jnp.asarray([[0.75], [-1.0], [0.0], [0.3]])
    >>> found = quantize(weights, Scheme(bits=3))
    >>> found.codes[:, 0].tolist(), found.scale.tolist()
    ([7, 0, 4, 5], [[0.25]])

    Source: the grid whose sign follows the largest weight is that of llama.cpp's Q4_0 format; the
    search for the scale is ours.
    """
    x = jnp.asarray(x)
    endless, scale, zero, layout = _quantize(x, scheme, axis)
    # NaN is no code: the scale says it.
    codes = jnp.where(jnp.isnan(endless), 0, jnp.clip(endless, 0, 2**scheme.bits - 1))
    scale, zero = (jnp.squeeze(a, layout.axis + 1) for a in (scale, zero))
    return Quantized(
        _join(codes.astype(jnp.uint8), layout),
        scale,
        None if scheme.symmetric else jnp.where(jnp.isnan(zero), 0, zero).astype(jnp.uint8),
    )


def dequantize(
    quantized: Quantized, scheme: Scheme, axis: int = -2, dtype: DTypeLike = jnp.float32
) -> Array:
    """``scale * (code - zero)``: the numbers that codes stand for.

    The product is exact in float32.

    Args:
        quantized: from :func:`quantize`.
        scheme: that of the codes.
        axis: that of the groups.
        dtype: of the result, real and floating.

    Returns:
        Numbers of the shape of the codes.

    Raises:
        ValueError: when scale or zero do not fit the codes and the scheme.

    >>> scheme = Scheme(bits=3)
    >>> weights = jnp.asarray([[0.75], [-1.0], [0.0], [0.3]])
    >>> dequantize(quantize(weights, scheme), scheme)[:, 0].tolist()
    [0.75, -1.0, 0.0, 0.25]
    """
    codes, scale, zero = quantized
    layout = check_quantized(quantized, scheme, axis)
    wide = at_least_float32(dtype)
    members = layout.axis + 1
    if zero is None:
        offset = jnp.asarray(2 ** (scheme.bits - 1), wide)
    else:
        offset = jnp.expand_dims(zero, members).astype(wide)
    groups = levels(_split(codes, layout).astype(wide), jnp.expand_dims(scale, members), offset)
    return _join(groups, layout).astype(dtype)


def check_quantized(quantized: Quantized, scheme: Scheme, axis: int) -> Layout:
    """Where the groups of a quantised array lie.

    Args:
        quantized: from :func:`quantize`.
        scheme: that of the codes.
        axis: that of the groups.

    Raises:
        ValueError: when scale or zero do not fit the codes and the scheme.

    >>> layout = check_quantized(quantize(jnp.ones((9, 2)), Scheme(group=4)), Scheme(group=4), -2)
    >>> layout.num_groups
    3
    """
    codes, scale, zero = quantized
    layout = _layout(codes.shape, scheme, axis)
    if (zero is None) != scheme.symmetric:
        needed = "None in a symmetric scheme" if scheme.symmetric else "given without symmetry"
        raise ValueError(f"zero must be {needed}")
    shape = (*codes.shape[: layout.axis], layout.num_groups, *codes.shape[layout.axis + 1 :])
    _check_array("codes", codes, jnp.uint8, codes.shape)
    _check_array("scale", scale, jnp.float16, shape)
    if zero is not None:
        _check_array("zero", zero, jnp.uint8, shape)
    return layout


def _check_array(name: str, x: Array, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
    if x.dtype != dtype or x.shape != shape:
        raise ValueError(
            f"{name} must be {jnp.dtype(dtype).name} of shape {shape}, got {x.dtype} of shape "
            f"{x.shape}"
        )


@partial(jax.custom_jvp, nondiff_argnums=(1, 2))
def fake_quantize(x: Array, scheme: Scheme, axis: int = -2) -> Array:
    """``dequantize(quantize(x))`` with a gradient: what a model reads while it is trained to be
    quantised.

    The derivative is that of the identity where a number has a level within half a step, and 0
    where it was cut off: a weight beyond its grid would otherwise go on without feeling it.

    Args:
        x: real floating ``[..., n, ...]``.
        scheme: bits, group and symmetry.
        axis: that along which neighbours share a scale.

    Returns:
        The rounded numbers, of the shape and dtype of ``x``.

    Raises:
        ValueError: as :func:`quantize`.

    >>> weights = jnp.asarray([0.75, -1.0, 0.0, 0.3])
    >>> rounded, slope = jax.vjp(lambda x: fake_quantize(x, Scheme(bits=3), -1), weights)
    >>> rounded.tolist(), slope(jnp.ones(4))[0].tolist()
    ([0.75, -1.0, 0.0, 0.25], [1.0, 1.0, 1.0, 1.0])

    Source: Bengio, Leonard, Courville (2013), straight-through estimator; its cut as in Hubara et
    al., Binarized neural networks (2016).
    """
    endless, scale, zero, layout = _quantize(x, scheme, axis)
    return _rounded(endless, scale, zero, layout, scheme, x.dtype)


def _rounded(
    endless: Array, scale: Array, zero: Array, layout: Layout, scheme: Scheme, dtype: DTypeLike
) -> Array:
    codes = jnp.clip(endless, 0, 2**scheme.bits - 1)
    return _join(levels(codes, scale, zero), layout).astype(dtype)


@fake_quantize.defjvp
def _fake_quantize_jvp(
    scheme: Scheme, axis: int, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (x,), (change,) = primals, tangents
    endless, scale, zero, layout = _quantize(x, scheme, axis)
    outside = _join((endless < 0) | (endless > 2**scheme.bits - 1), layout)
    rounded = _rounded(endless, scale, zero, layout, scheme, x.dtype)
    return rounded, jnp.where(outside, jnp.zeros((), change.dtype), change)

"""The grid of a group of numbers: its levels ``scale * (code - zero)``, and the search for the
scale whose levels are nearest.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.types import Array

__all__ = ["levels", "nearest", "search"]

_LARGEST = float(np.finfo(np.float16).max)
_SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_SHARES = np.geomspace(1.0, 0.35, 9)  # of the largest weight that the grids of a search reach


def search(groups: Array, axis: int, bits: int, symmetric: bool) -> tuple[Array, Array]:
    """Scale (float16) and code of zero of each group: those with the least squared error.

    Args:
        groups: numbers, in at least float32.
        axis: that of the members of a group; it stays, with length 1.
        bits: of a code.
        symmetric: whether the code of zero is ``2^(bits - 1)`` in every group.

    >>> scale, zero = search(jnp.array([0.75, -1.0, 0.0, 0.3]), 0, 3, True)
    >>> scale.tolist(), zero.tolist()
    ([0.25], [4.0])
    """
    top, dtype = 2**bits - 1, groups.dtype
    low = jnp.minimum(jnp.min(groups, axis, keepdims=True), 0)
    high = jnp.maximum(jnp.max(groups, axis, keepdims=True), 0)
    largest = jnp.maximum(high, -low)
    # With symmetry the larger end gets code 0, which is one step further from zero than the last.
    span = jnp.where(high > -low, -largest, largest) if symmetric else high - low
    span = jnp.where(largest <= _SMALLEST / 4, 0, jnp.where(largest < jnp.inf, span, jnp.nan))
    unit = jnp.where(largest == 0, 1, largest)

    def grid(reach: Array) -> tuple[Array, Array]:
        scale = _as_scale(span / reach)
        if symmetric:
            return scale, jnp.full_like(span, 2 ** (bits - 1))
        step = jnp.where(scale == 0, 1, scale.astype(dtype))
        return scale, jnp.clip(jnp.round(top / 2 - (low + high) / 2 / step), 0, top)

    def better(best: tuple[Array, Array, Array], reach: Array) -> tuple[Array, Array, Array]:
        scale, zero = grid(reach)
        codes = jnp.clip(nearest(groups, scale, zero), 0, top)
        off = (groups - levels(codes, scale, zero)) / unit
        error = jnp.sum(off * off, axis, keepdims=True)
        found = (error, scale, zero)
        return jax.tree.map(lambda new, old: jnp.where(error < best[0], new, old), found, best)

    reaches = jnp.asarray(_reaches(bits, symmetric), dtype)
    start = (jnp.full_like(span, jnp.inf), *grid(reaches[0]))
    best, _ = jax.lax.scan(lambda best, reach: (better(best, reach), None), start, reaches)
    return best[1], best[2]


def nearest(groups: Array, scale: Array, zero: Array) -> Array:
    """Codes of the nearest levels of an endless grid.

    Args:
        groups: numbers, real and floating.
        scale: float16, of shapes that broadcast with them; where it is 0, so is every level.
        zero: the code of zero, likewise.

    >>> nearest(jnp.array([0.3, -1.0]), jnp.float16(0.25), jnp.float32(4)).tolist()
    [5.0, 0.0]
    """
    scale = scale.astype(groups.dtype)
    return jnp.round(groups / jnp.where(scale == 0, 1, scale)) + zero


def levels(codes: Array, scale: Array, zero: Array) -> Array:
    """``scale * (code - zero)``, exact in float32: a scale has 11 digits, a code at most 8.

    Args:
        codes: floating.
        scale: float16.
        zero: the code of zero.

    >>> levels(jnp.array([5.0, 0.0]), jnp.float16(0.25), jnp.float32(4)).tolist()
    [0.25, -1.0]
    """
    return scale.astype(codes.dtype) * (codes - zero)


def _reaches(bits: int, symmetric: bool) -> np.ndarray:
    """How many steps of a grid the largest weight may be from zero; without symmetry, from the
    other end of its group.

    The shorter side of a symmetric grid is among them, so that numbers of a grid return as they
    are.
    """
    if not symmetric:
        return (2**bits - 1) / _SHARES
    steps = 2 ** (bits - 1)
    return np.asarray([*steps / _SHARES, steps - 1])


def _as_scale(step: Array) -> Array:
    """Steps as float16, never infinite. Small ones, which lose digits there, are rounded up: then
    they still reach what they should, and none but 0 becomes 0. A quotient that its own rounding
    brought above a number of float16 is that number.
    """
    size = jnp.minimum(jnp.abs(step), _LARGEST)
    normal = float(np.finfo(np.float16).smallest_normal)
    up = jnp.ceil(size * ((1 - 2.0**-20) / _SMALLEST)) * _SMALLEST
    size = jnp.where(size <= normal, up, size)
    return (jnp.sign(step) * size).astype(jnp.float16)

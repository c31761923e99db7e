"""Long chains folded in their middle, and loops over the rows of folded chains.

Row r of a folded chain holds site r and its mirror image, site n - 1 - r, of all chains side by
side, ``[n / 2, 2 lanes]``. Chains are folded block by block, in memory that the blocks share and
that fits the cache: on a CPU a page of fresh memory costs more than the rows that would fill it.

XLA turns a loop whose iteration touches less than 1 KB into one kernel: that of eight chains in
single precision is one. So chains are taken eight at a time, and every sweep and every map over
rows is a loop of its own, with one output.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vfejax.spectral.scans import scaled
from vfejax.types import Array, PyTree

__all__ = [
    "blocks",
    "down",
    "each",
    "fold",
    "for_each_group",
    "grouped",
    "groups",
    "joined",
    "put",
    "row",
    "swap",
    "unfold",
    "unfold_middle",
    "up",
]

ROWS = 2**11
"""Rows of one block: of eight chains, a few arrays of them fit the second cache."""

LANES = 8
"""Chains that are swept together in single precision."""


def blocks(n: int) -> tuple[int, int]:
    """Number of blocks from an end of a chain to its middle, and rows of each.

    The last block reaches less than ``2 num`` sites beyond the middle, and has that many rows.

    >>> blocks(512), blocks(10_000)
    ((1, 256), (3, 1667))
    """
    num = max(1, min(-(-n // (2 * ROWS)), math.isqrt(n) // 2))
    return num, -(-n // (2 * num))


def groups(lanes: int, single: bool) -> int:
    """In how many groups chains are swept: one but in single precision, where few make a kernel.

    >>> groups(13, True), groups(13, False)
    (2, 1)
    """
    return max(1, -(-lanes // LANES)) if single else 1


def grouped(x: Array, num: int) -> Array:
    """``[lanes, ...]`` to ``[groups, lanes of one, ...]``; the last chain fills the last group.

    >>> print(grouped(jnp.arange(3), 2))
    [[0 1]
     [2 2]]
    """
    lanes = x.shape[0]
    width = -(-lanes // num)
    if num * width > lanes:
        x = jnp.concatenate([x, *[x[-1:]] * (num * width - lanes)])
    return jnp.reshape(x, (num, width, *x.shape[1:]))


def joined(x: Array, lanes: int) -> Array:
    """The inverse of :func:`grouped`.

    >>> print(joined(jnp.array([[0, 1], [2, 2]]), 3))
    [0 1 2]
    """
    return jnp.reshape(x, (x.shape[0] * x.shape[1], *x.shape[2:]))[:lanes]


def for_each_group(fn: Callable, *arrays: PyTree) -> PyTree:
    """``fn`` of one group after the other, ``[groups, ...]``; of one alone without a loop, which
    would copy what it keeps.

    >>> print(for_each_group(lambda x: 2 * x, jnp.array([[0, 1], [2, 2]])))
    [[0 2]
     [4 4]]
    """
    if jax.tree.leaves(arrays)[0].shape[0] > 1:
        return jax.lax.map(lambda xs: fn(*xs), arrays)
    return jax.tree.map(lambda x: x[None], fn(*jax.tree.map(lambda x: x[0], arrays)))


def swap(x: Array) -> Array:
    """The halves of the first axis exchanged.

    >>> print(swap(jnp.arange(4)))
    [2 3 0 1]
    """
    first, second = jnp.split(x, 2)
    return jnp.concatenate([second, first])


def fold(start: Array | int, rows: int, *factors: Array, scale: Array | None = None) -> Array:
    """Rows ``start .. start + rows - 1`` of the folded product of arrays ``[lanes, n, ...]``.

    Args:
        start: first row.
        rows: number of rows.
        *factors: ``[lanes, n, ...]``.
        scale: multiplies each factor first, real, ``[lanes]`` beside ``[lanes, n]``.

    Returns:
        ``[rows, 2 lanes, ...]``.

    >>> print(fold(0, 2, jnp.arange(4).reshape(1, 4)))
    [[0 3]
     [1 2]]
    """
    lanes, n = factors[0].shape[:2]

    def sites(first: Array | int) -> Array:
        parts = [jax.lax.dynamic_slice_in_dim(x, first, rows, 1) for x in factors]
        if scale is not None:
            parts = [scaled(scale[:, None], x) for x in parts]
        return math.prod(parts[1:], start=parts[0])

    first, mirrored = sites(start), sites(n - start - rows)
    if lanes > LANES:  # Many long strides meet in the same lines of the cache.
        return jnp.swapaxes(jnp.concatenate([first, mirrored[:, ::-1]]), 0, 1)
    first, mirrored = (jnp.swapaxes(x, 0, 1) for x in (first, mirrored[:, ::-1]))
    return jnp.concatenate([first, mirrored], axis=1)


def unfold(rows: Array, start: Array, x: Array) -> Array:
    """``x [lanes, n]`` with rows of its folded form written into it.

    Args:
        rows: ``[rows, 2 lanes]``.
        start: the row of the folded form that is the first of these.
        x: ``[lanes, n]``.

    >>> print(unfold(jnp.ones((1, 2)), 0, jnp.zeros((1, 3))))
    [[1. 0. 1.]]
    """
    first, mirrored = jnp.split(rows.T, 2)
    x = jax.lax.dynamic_update_slice_in_dim(x, first, start, 1)
    last = x.shape[1] - start - rows.shape[0]
    return jax.lax.dynamic_update_slice_in_dim(x, mirrored[:, ::-1], last, 1)


def unfold_middle(rows: Array, start: int, x: Array) -> Array:
    """:func:`unfold` of the last block, whose two halves meet or overlap.

    Args:
        rows: ``[rows, 2 lanes, ...]``.
        start: its first row.
        x: ``[lanes, n, ...]``.

    >>> print(unfold_middle(jnp.array([[1, 3], [2, 2]]), 0, jnp.zeros((1, 3), int)))
    [[1 2 3]]
    """
    first, mirrored = jnp.split(jnp.swapaxes(rows, 0, 1), 2)
    rest = x.shape[1] - 2 * start - rows.shape[0]
    middle = jnp.concatenate([first[:, : x.shape[1]], mirrored[:, :rest][:, ::-1]], axis=1)
    return jax.lax.dynamic_update_slice_in_dim(x, middle, start, 1)


def row(x: Array, r: Array | int) -> Array:
    """``x[r]`` without a check.

    >>> print(row(jnp.arange(4), 2))
    2
    """
    return jax.lax.dynamic_index_in_dim(x, r, keepdims=False, allow_negative_indices=False)


def put(x: Array, y: Array, r: Array | int) -> Array:
    """``x`` with y in the place of row r.

    Args:
        x: ``[rows, ...]``.
        y: ``[...]``.
        r: the row.

    >>> print(put(jnp.zeros(3), jnp.asarray(1.0), 1))
    [0. 1. 0.]
    """
    return jax.lax.dynamic_update_index_in_dim(x, y, r, 0, allow_negative_indices=False)


def up(step_fn: Callable, first: Array, into: Array) -> Array:
    """``y_0 = first, y_{r+1} = step(r, y_r)`` in the place of ``into``.

    Args:
        step_fn: ``step(r, y)``.
        first: y_0.
        into: as many rows as are wanted; what they hold is lost.

    >>> print(up(lambda r, y: y + r, jnp.asarray(1), jnp.zeros(4, int)))
    [1 1 2 4]
    """

    def step(r: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        y = step_fn(r, carry[0])
        return y, put(carry[1], y, r + 1)

    return jax.lax.fori_loop(0, into.shape[0] - 1, step, (first, put(into, first, 0)))[1]


def down(step_fn: Callable, last: Array, into: Array) -> tuple[Array, Array]:
    """``y_m = last, y_r = step(r, y_{r+1})``: the first one, and all, in the place of ``into``.

    Args:
        step_fn: ``step(r, y)``.
        last: y_m.
        into: m + 1 rows; what they hold is lost.

    >>> print(down(lambda r, y: y + r, jnp.asarray(1), jnp.zeros(4, int))[1])
    [4 4 3 1]
    """
    num = into.shape[0] - 1

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        r = num - 1 - i
        y = step_fn(r, carry[0])
        return y, put(carry[1], y, r)

    return jax.lax.fori_loop(0, num, step, (last, put(into, last, num)))


def each(row_fn: Callable, into: Array) -> Array:
    """``row_fn(r, into[r])`` for every row, in its place.

    >>> print(each(lambda r, x: x * r, jnp.ones(3, int)))
    [0 1 2]
    """
    return jax.lax.fori_loop(0, into.shape[0], lambda r, x: put(x, row_fn(r, row(x, r)), r), into)

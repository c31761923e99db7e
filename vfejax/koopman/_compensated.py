"""Reflections and substitution in two floats, for maps that are right to every digit of float32.

Plain XLA without LAPACK, with first derivatives in both modes.
"""

import jax
import jax.numpy as jnp

from vfejax.koopman import _linear_algebra
from vfejax.koopman import _two_floats as two
from vfejax.koopman._two_floats import TwoFloats
from vfejax.types import Array

__all__ = ["absorb", "solve"]

CHUNK = 128  # a power of two: rows that are reflected at a time and stay in the cache


def _column(rows: TwoFloats, j: Array) -> TwoFloats:
    j = jnp.minimum(j, rows.high.shape[1] - 1)
    return TwoFloats(*(jax.lax.dynamic_slice_in_dim(a, j, 1, 1) for a in rows))


def _reflect(root: TwoFloats, rows: TwoFloats) -> TwoFloats:
    """``[root; rows]`` reduced column by column."""
    columns = jnp.arange(root.high.shape[1])
    # Less than the rounding of a column whose largest entry is about 1, and no divisor overflows.
    negligible = jnp.finfo(jnp.float32).tiny / jnp.finfo(jnp.float32).eps
    zero, one = two.widen(jnp.float32(0.0)), two.widen(jnp.float32(1.0))

    def step(
        carry: tuple[TwoFloats, TwoFloats], at: tuple[Array, TwoFloats]
    ) -> tuple[tuple[TwoFloats, TwoFloats], TwoFloats]:
        (rows, normal), (j, row) = carry, at
        products = two.total(two.multiply(normal, rows))
        pivot, square = two.item(row, j), two.item(products, j)
        nothing = square.high <= negligible
        length = two.square_root(two.add(two.multiply(pivot, pivot), square))
        length = two.where(nothing, one, length)
        first = two.add(pivot, length)
        change = two.divide(two.add(products, two.multiply(first, row)), length)
        change = two.where(nothing | (columns < j), zero, change)
        row = two.where(nothing, row, two.subtract(change, row))
        gain = TwoFloats(*(a[None, :] for a in two.divide(change, first)))
        rows = two.subtract(rows, two.multiply(normal, gain))
        # Carried, because XLA would read it anew for every number where it is used: five times
        # the time.
        return (rows, _column(rows, j + 1)), row

    return jax.lax.scan(step, (rows, _column(rows, columns[0])), (columns, root))[1]


@jax.custom_jvp
def absorb(root: TwoFloats, rows: TwoFloats) -> TwoFloats:
    """Upper triangular R' with ``R'^T R' = R^T R + rows^T rows`` and a diagonal >= 0.

    Args:
        root: R ``[n, n]``, upper triangular with a diagonal >= 0, n >= 1.
        rows: ``[k, n]``, for any k >= 0.

    >>> absorb(two.widen(jnp.array([[3.0]])), two.widen(jnp.array([[4.0]]))).high.tolist()
    [[5.0]]
    """
    num, size = rows.high.shape
    if num == 0:
        return root
    unit = _linear_algebra.column_units(root.high, rows.high)
    # Under ``shard_map`` what a loop begins with must vary over devices as what it ends with does.
    zero = 0.0 * (root.high[0, 0] + jnp.sum(rows.high[:, 0]))
    root, rows = jax.tree.map(lambda a: a / unit + zero, (root, rows))
    length = min(CHUNK, 1 << (num - 1).bit_length())
    more = -num % length
    chunks = jax.tree.map(lambda a: jnp.pad(a, ((0, more), (0, 0))).reshape(-1, length, size), rows)
    root, _ = jax.lax.scan(lambda root, chunk: (_reflect(root, chunk), None), root, chunks)
    return TwoFloats(unit * root.high, unit * root.low)


@absorb.defjvp
def _absorb_jvp(
    primals: tuple[TwoFloats, TwoFloats], tangents: tuple[TwoFloats, TwoFloats]
) -> tuple[TwoFloats, TwoFloats]:
    root = absorb(*primals)
    (before, rows), (d_before, d_rows) = primals, tangents
    tangent = _linear_algebra.absorb_tangent(
        root.high, (before.high, rows.high), (d_before.high, d_rows.high)
    )
    return root, two.widen(tangent)


@jax.custom_jvp
def solve(root: TwoFloats, right: TwoFloats) -> Array:
    """``R^-1 right`` for upper triangular ``root [n, n]`` and ``right [n, l]``, by substitution.

    >>> root, right = jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([[4.0], [2.0]])
    >>> solve(two.widen(root), two.widen(right)).tolist()
    [[1.0], [2.0]]
    """

    def step(right: TwoFloats, at: tuple[Array, TwoFloats]) -> tuple[TwoFloats, Array]:
        j, column = at
        row = two.divide(two.item(right, j), two.item(column, j))
        column = TwoFloats(*(a[:, None] for a in column))
        product = two.multiply(column, TwoFloats(*(a[None, :] for a in row)))
        return two.subtract(right, product), row.high

    columns = TwoFloats(root.high.T, root.low.T)
    return jax.lax.scan(step, right, (jnp.arange(len(root.high)), columns), reverse=True)[1]


@solve.defjvp
def _solve_jvp(
    primals: tuple[TwoFloats, TwoFloats], tangents: tuple[TwoFloats, TwoFloats]
) -> tuple[Array, Array]:
    (root, _), (d_root, d_right) = primals, tangents
    solved = solve(*primals)
    return solved, _linear_algebra.solve_tangent(root.high, solved, d_root.high, d_right.high)

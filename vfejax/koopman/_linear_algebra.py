"""Triangular factors without batched LAPACK: what the statistics and the operators are made of.

``absorb`` calls no LAPACK. The others do, and work off a stack under ``vmap`` one matrix after the
other, for the reason that :mod:`vfejax.numerics` gives. ``absorb`` and ``solve`` have first
derivatives in both modes.
"""

import jax
import jax.numpy as jnp
from jax.custom_batching import sequential_vmap
from jax.scipy.linalg import solve_triangular

from vfejax.numerics import matmul, matmul_tn, matvec, transpose
from vfejax.types import Array

__all__ = [
    "absorb",
    "absorb_tangent",
    "column_units",
    "divide",
    "solve",
    "solve_tangent",
    "svd",
]

PANEL = 8  # columns between two products of matrices; wider panels lose accuracy, not time


def _reflect(root: Array, rows: Array) -> tuple[Array, Array, Array, Array]:
    """Reduce ``[root; rows]`` column by column; also D, V and T of the reflections ``I - [D; V] T
    [D; V]^T``, where D is diagonal. A row of the root that a reflection turns round is negative.
    """
    columns = jnp.arange(root.shape[1])
    # Less than the rounding of a column whose largest entry is about 1, and no divisor overflows.
    negligible = jnp.finfo(root.dtype).tiny / jnp.finfo(root.dtype).eps

    def step(j: Array, carry: tuple[Array, ...]) -> tuple[Array, ...]:
        root, rows, joint, leading = carry
        normal = jax.lax.dynamic_index_in_dim(rows, j, 1, keepdims=False)
        row = jax.lax.dynamic_index_in_dim(root, j, 0, keepdims=False)
        products = jnp.matmul(normal, rows, precision="highest")
        square = jax.lax.dynamic_index_in_dim(products, j, 0, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(row, j, 0, keepdims=False)
        nothing = square <= negligible
        length = jnp.where(nothing, 1.0, jnp.sqrt(pivot**2 + square))
        first = pivot + length
        scale = jnp.where(nothing, 0.0, 1.0 / (length * first))
        change = jnp.where(columns > j, products + first * row, 0.0)
        turned = jnp.where(columns == j, -length, row - change / length)
        row = jnp.where(nothing | (columns < j), row, turned)
        earlier = matvec(joint, jnp.where(columns < j, products, 0.0))
        column = jnp.where(columns == j, scale, -scale * earlier)
        # A column that is done keeps its normal.
        return (
            jax.lax.dynamic_update_index_in_dim(root, row, j, 0),
            rows - jnp.outer(normal, scale * change),
            jax.lax.dynamic_update_index_in_dim(joint, column, j, 1),
            jax.lax.dynamic_update_index_in_dim(leading, first, j, 0),
        )

    first = (root, rows, 0.0 * root, 0.0 * root[0])
    return jax.lax.fori_loop(0, root.shape[1], step, first)


def _reduce(root: Array, rows: Array, width: int) -> tuple[Array, Array]:
    """``[root; rows]`` with ``root [r, n]``, reduced in its first r columns, in panels of a width
    that divides r.
    """
    columns = jnp.arange(root.shape[1])[None, :]

    def panel(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        root, rows = carry
        start = i * width
        block = jax.lax.dynamic_slice_in_dim(root, start, width, 0)
        before = jax.lax.dynamic_slice_in_dim(block, start, width, 1)
        after, normals, joint, leading = _reflect(
            before, jax.lax.dynamic_slice_in_dim(rows, start, width, 1)
        )
        change = matmul_tn(joint, leading[:, None] * block + matmul_tn(normals, rows))
        change = jnp.where(columns >= start + width, change, 0.0)
        block = block - leading[:, None] * change
        block = jax.lax.dynamic_update_slice_in_dim(block, after, start, 1)
        block = jnp.where(jnp.diagonal(after)[:, None] < 0, -block, block)
        root = jax.lax.dynamic_update_slice_in_dim(root, block, start, 0)
        return root, rows - matmul(normals, change)

    return jax.lax.fori_loop(0, root.shape[0] // width, panel, (root, rows))


def _absorb(root: Array, rows: Array) -> Array:
    size, width = root.shape[0], min(PANEL, root.shape[0])
    more = -size % width
    root, rows = jnp.pad(root, (0, more)), jnp.pad(rows, ((0, 0), (0, more)))
    # Under ``shard_map`` what a loop begins with must vary over devices as what it ends with does.
    zero = 0.0 * (root[0, 0] + jnp.sum(rows[:, 0]))
    root, rows = root + zero, rows + zero
    # In four parts, so that later ones leave columns alone that are done.
    part = width * -(-(size + more) // (4 * width)) if size > 16 * width else size + more
    reduced = []
    for start in range(0, size + more, part):
        done, rows = _reduce(root[start : start + part, start:], rows, width)
        reduced.append(jnp.pad(done, ((0, 0), (start, 0))))
        rows = rows[:, part:]
    return jnp.concatenate(reduced)[:size, :size]


def column_units(*matrices: Array) -> Array:
    """``[1, n]``: of the largest entry of each column the power of two, by which one multiplies and
    divides exactly. Squares of what is left neither overflow nor vanish.

    >>> column_units(jnp.array([[3.0, 0.0]]), jnp.array([[-5.0, 0.3]])).tolist()
    [[4.0, 0.25]]
    """
    largest = jnp.max(jnp.stack([jnp.max(jnp.abs(x), 0, initial=0.0) for x in matrices]), axis=0)
    # Not ``jnp.ldexp``, which takes as long as the reflections.
    unit = largest / (2.0 * jnp.frexp(largest)[0])
    return jnp.where(largest < jnp.finfo(largest.dtype).tiny, 1.0, unit)[None, :]


@sequential_vmap
def _solve(root: Array, right: Array) -> Array:
    return solve_triangular(root, right)


def _inverse(root: Array) -> Array:
    return _solve(root, jnp.eye(root.shape[-1], dtype=root.dtype))


@jax.custom_jvp
def absorb(root: Array, rows: Array) -> Array:
    """Upper triangular R' with ``R'^T R' = R^T R + rows^T rows`` and a diagonal >= 0.

    Householder reflections that leave the zeros of R alone, ``2 k n^2`` operations for k rows. Each
    turns a row of R round, which is turned back. Reflections that keep its sign would cancel in the
    rows instead of in R, and lose all digits of a map from samples that come one by one.

    Args:
        root: R ``[n, n]``, upper triangular with a diagonal >= 0, n >= 1.
        rows: ``[k, n]``, for any k >= 0.

    Returns:
        ``[n, n]``. NaN where a row is; the derivative is not finite where R' is singular.

    >>> absorb(jnp.array([[3.0]]), jnp.array([[4.0]])).round(4).tolist()
    [[5.0]]
    """
    unit = column_units(root, rows)
    return unit * _absorb(root / unit, rows / unit)


def absorb_tangent(
    root: Array, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> Array:
    """The tangent of what :func:`absorb` returns.

    Args:
        root: R', what it returns.
        primals: R and the rows.
        tangents: theirs.

    >>> one, none = jnp.ones((1, 1)), jnp.zeros((1, 1))
    >>> absorb_tangent(2.0 * one, (none, 2.0 * one), (none, one)).tolist()
    [[1.0]]
    """
    (before, rows), (d_before, d_rows) = primals, tangents
    inverse = _inverse(root)
    change = matmul_tn(before, jnp.triu(d_before)) + matmul_tn(rows, d_rows)
    change = matmul_tn(inverse, matmul(change, inverse))
    upper = jnp.triu(change + transpose(change))
    return matmul(upper - 0.5 * jnp.diag(jnp.diagonal(upper)), root)


@absorb.defjvp
def _absorb_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    root = absorb(*primals)
    return root, absorb_tangent(root, primals, tangents)


@jax.custom_jvp
def solve(root: Array, right: Array) -> Array:
    """``R^-1 right`` for upper triangular ``root [n, n]`` and ``right [n, l]``, by substitution.

    >>> solve(jnp.array([[2.0, 1.0], [0.0, 1.0]]), jnp.array([[4.0], [2.0]])).tolist()
    [[1.0], [2.0]]
    """
    return _solve(root, right)


def solve_tangent(root: Array, solved: Array, d_root: Array, d_right: Array) -> Array:
    """The tangent of what :func:`solve` returns.

    Args:
        root: R.
        solved: what it returns.
        d_root: tangent of R.
        d_right: tangent of the right side.

    >>> one = jnp.array([[1.0]])
    >>> solve_tangent(2.0 * one, 3.0 * one, 0.0 * one, one).tolist()
    [[0.5]]
    """
    return matmul(_inverse(root), d_right - matmul(jnp.triu(d_root), solved))


@solve.defjvp
def _solve_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    solved = solve(*primals)
    return solved, solve_tangent(primals[0], solved, *tangents)


@sequential_vmap
def svd(matrix: Array) -> tuple[Array, Array, Array]:
    """``U [m, r], S [r], V^T [r, n]`` of ``matrix [m, n]``, r = min(m, n), largest values first.

    It has no derivative in reverse mode.

    >>> svd(jnp.array([[0.0, 2.0], [1.0, 0.0]]))[1].tolist()
    [2.0, 1.0]
    """
    left, values, right = jnp.linalg.svd(matrix, full_matrices=False)
    return left, values, right


@sequential_vmap
def divide(left: Array, right: Array) -> Array:
    """``left^+ right`` for ``left [r, n]`` of full rank with r <= n, and ``right [r, l]``: of all
    solutions of ``left x = right`` the shortest.

    >>> divide(jnp.array([[1.0, 1.0]]), jnp.array([[2.0]])).round(4).tolist()
    [[1.0], [1.0]]
    """
    basis, root = jnp.linalg.qr(transpose(left))
    return matmul(basis, solve_triangular(root, right, trans="T"))

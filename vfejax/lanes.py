"""Linear algebra of small matrices whose stack lies behind them: ``[..., k, l, n]``, not ``[..., n,
k, l]``.

XLA compiles an elementwise operation into loops whose innermost one runs over the last axis, and
only that one is vectorised. Over the columns of small matrices it is short: the sum of two arrays
``[4096, 9, 9]`` takes 0.5 ms where the sum of two ``[64, 9, 9, 64]`` takes 0.05 ms. So a function
that works on many small matrices brings their stack behind them once (:func:`stack_last`), and
stays there.

The functions have the same names as those of :mod:`vfejax.numerics`, and the same results.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.stack_product import batched_product, fits, stack_product
from vfejax.types import Array

__all__ = [
    "cholesky",
    "diagonal",
    "matmul",
    "matmul_nt",
    "matmul_tn",
    "stack_last",
    "triangular_inverse",
    "triangular_solve",
    "tril",
]


def stack_last(x: Array, core: int) -> Array:
    """``x`` with the last axis of its stack behind the axes of one item; an axis of length 1 where
    there is no stack.

    Args:
        x: ``[*stack, *item]``.
        core: number of axes of one item: 1 for vectors, 2 for matrices.

    Returns:
        ``[*stack[:-1], *item, stack[-1]]``.

    >>> stack_last(jnp.ones((5, 3, 2)), core=2).shape, stack_last(jnp.ones(3), core=1).shape
    ((3, 2, 5), (3, 1))
    """
    return x[..., None] if x.ndim == core else jnp.moveaxis(x, -1 - core, -1)


def _product(left: Array, right: Array, left_axis: int, right_axis: int) -> Array:
    product = stack_product if fits(left, right, lanes=1) else batched_product
    return product(left, right, left_axis, right_axis, lanes=1)


def matmul(left: Array, right: Array) -> Array:
    """``left [..., m, k, n]`` times ``right [..., k, l, n]``, at full precision on every device.

    >>> matmul(jnp.ones((2, 3, 50)), jnp.ones((3, 1, 50)))[:, 0, 0].tolist()
    [3.0, 3.0]
    """
    return _product(left, right, -1, -2)


def matmul_tn(left: Array, right: Array) -> Array:
    """``left^T right`` for matrices ``[..., k, m, n]`` and ``[..., k, l, n]``.

    >>> matmul_tn(jnp.ones((3, 2, 50)), jnp.ones((3, 1, 50))).shape
    (2, 1, 50)
    """
    return _product(left, right, -2, -2)


def matmul_nt(left: Array, right: Array) -> Array:
    """``left right^T`` for matrices ``[..., m, k, n]`` and ``[..., l, k, n]``.

    >>> matmul_nt(jnp.ones((2, 3, 50)), jnp.ones((1, 3, 50))).shape
    (2, 1, 50)
    """
    return _product(left, right, -1, -1)


def tril(x: Array) -> Array:
    """Lower triangles of ``x [..., k, k, n]``.

    >>> tril(jnp.ones((2, 2, 1)))[..., 0].tolist()
    [[1.0, 0.0], [1.0, 1.0]]
    """
    lower = np.tri(x.shape[-2], dtype=bool)[:, :, None]
    return jnp.where(jnp.broadcast_to(lower, x.shape), x, jnp.zeros((), x.dtype))


def diagonal(x: Array) -> Array:
    """Diagonals ``[..., k, n]`` of ``x [..., k, k, n]``, as
    :func:`vfejax.numerics.products.diagonal` takes them.

    >>> diagonal(jnp.arange(4.0).reshape(2, 2, 1))[:, 0].tolist()
    [0.0, 3.0]
    """
    k = x.shape[-2]
    flat = jnp.reshape(x, (*x.shape[:-3], k * k, x.shape[-1]))
    return jax.lax.slice_in_dim(flat, 0, k * k, k + 1, axis=-2)


@jax.custom_jvp
def cholesky(matrix: Array) -> Array:
    """Lower factors of symmetric positive definite ``matrix [..., k, k, n]``; NaN where one is not.

    Only the lower triangles are read. The derivative is that of
    :func:`vfejax.numerics.triangular.cholesky`.

    >>> cholesky(jnp.array([[4.0, 2.0], [2.0, 2.0]])[..., None])[..., 0].tolist()
    [[2.0, 0.0], [1.0, 1.0]]
    """
    k, axis = matrix.shape[-2], matrix.ndim - 2
    rows = jnp.arange(k)[:, None]

    def eliminate(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, chol = carry
        column = jax.lax.dynamic_index_in_dim(rest, j, axis, keepdims=False)
        pivot = jnp.sqrt(jax.lax.dynamic_index_in_dim(column, j, axis - 1))
        below = jnp.broadcast_to(rows >= j, column.shape)
        column = jnp.where(below, column / pivot, 0.0)
        rest = rest - column[..., :, None, :] * column[..., None, :, :]
        return rest, jax.lax.dynamic_update_index_in_dim(chol, column, j, axis)

    lower = tril(matrix)
    return jax.lax.fori_loop(0, k, eliminate, (lower, jnp.zeros_like(lower)))[1]


@cholesky.defjvp
def _cholesky_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    chol = cholesky(primals[0])
    inverse = triangular_inverse(chol)
    lower = tril(tangents[0])
    strict = np.tri(chol.shape[-2], k=-1, dtype=chol.dtype)[:, :, None]
    change = lower + jnp.swapaxes(lower * jnp.broadcast_to(strict, lower.shape), -3, -2)
    inner = tril(matmul_nt(matmul(inverse, change), inverse))
    halves = np.tri(chol.shape[-2]) - 0.5 * np.eye(chol.shape[-2])
    half = jnp.asarray(halves, chol.dtype)[:, :, None]
    return chol, matmul(chol, inner * jnp.broadcast_to(half, inner.shape))


@jax.custom_batching.custom_vmap
def _forward_substitution(chol: Array) -> Array:
    """Inverses, one row at a time over the whole stack."""
    axis = chol.ndim - 3
    unit = jnp.broadcast_to(jnp.eye(chol.shape[-2], dtype=chol.dtype)[:, :, None], chol.shape)

    def substitute(i: Array, inverse: Array) -> Array:
        row, rest = (jax.lax.dynamic_slice_in_dim(x, i, 1, axis) for x in (chol, unit))
        pivot = jax.lax.dynamic_slice_in_dim(row, i, 1, axis + 1)
        solved = (rest - matmul(row, inverse)) / pivot
        return jax.lax.dynamic_update_slice_in_dim(inverse, solved, i, axis)

    return jax.lax.fori_loop(0, chol.shape[-2], substitute, jnp.zeros_like(chol))


@_forward_substitution.def_vmap
def _larger_stack(axis_size: int, batched: list[bool], chol: Array) -> tuple[Array, bool]:
    # vmap makes a scatter of the update of a row, which writes the whole array.
    return _forward_substitution(chol), True


@jax.custom_jvp
def triangular_inverse(chol: Array) -> Array:
    """Inverses of lower triangular ``chol [..., k, k, n]``; entries above the diagonal are ignored.

    >>> triangular_inverse(jnp.array([[2.0, 0.0], [1.0, 1.0]])[..., None])[..., 0].tolist()
    [[0.5, 0.0], [-0.5, 1.0]]
    """
    return _forward_substitution(tril(chol)) if chol.size else chol


@triangular_inverse.defjvp
def _triangular_inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = triangular_inverse(primals[0])
    return inverse, -matmul(inverse, matmul(tril(tangents[0]), inverse))


@jax.custom_jvp
def triangular_solve(chol: Array, right: Array) -> Array:
    """``L^{-1} right`` for lower triangular ``chol [..., k, k, n]`` and ``right [..., k, l, n]``.

    >>> chol = jnp.array([[2.0, 0.0], [1.0, 1.0]])
    >>> triangular_solve(chol[..., None], jnp.array([[2.0], [1.0]])[..., None])[..., 0].tolist()
    [[1.0], [0.0]]
    """
    return matmul(triangular_inverse(chol), right)


@triangular_solve.defjvp
def _triangular_solve_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    inverse = triangular_inverse(primals[0])
    solved = matmul(inverse, primals[1])
    return solved, matmul(inverse, tangents[1] - matmul(tril(tangents[0]), solved))

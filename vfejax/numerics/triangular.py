"""Triangular factors of stacks of small matrices, without LAPACK.

Why not LAPACK. jaxlib 0.10.0 to 0.11.0 split a *batched* LAPACK call over XLA's CPU thread pool and
block a pool thread until the parts are done. Two such calls in flight on a machine with two cores
then wait for each other for ever: two independent ``jax.scipy.linalg.expm`` of 512 matrices of size
9 in one program hung jaxlib 0.10.2 in four of four processes, and the same happened with
``solve_triangular``. Open-source builds from jaxlib 0.11.1 on do not have that path: four times
3000 calls ran on 0.12.0 without a hang. So ``expm`` can be handed to
:func:`vfejax.geometry.groups.general`, but it is not the default on a CPU; besides, Taylor's series
compiles two to three times faster and is ten times more accurate in float32.

What it costs. The loops below are plain XLA. For [512, 9, 9] in float32 on two cores the Cholesky
factor takes 0.64 ms where LAPACK takes 0.13 (with its gradient 1.3 against 0.6) and compiles in
0.12 s against 0.05; the triangular inverse is 1.8 times slower. Both are a small part of a step.
"""

import jax
import jax.numpy as jnp

from vfejax.numerics.norms import safe_norm
from vfejax.numerics.precision import as_floating
from vfejax.numerics.products import (
    diagonal,
    identity_like,
    matmul,
    matmul_nt,
    matmul_tn,
    transpose,
)
from vfejax.types import Array

__all__ = [
    "cholesky",
    "log_det_cholesky",
    "triangular_inverse",
    "triangular_solve",
    "triangularize",
]


def log_det_cholesky(chol: Array) -> Array:
    """``log det(L L^T) = 2 sum_i log L_ii`` for ``chol [..., k, k]``; NaN where a diagonal entry is
    negative.

    >>> float(log_det_cholesky(jnp.eye(3)))
    0.0
    """
    return 2.0 * jnp.sum(jnp.log(diagonal(chol)), axis=-1)


def triangular_inverse(chol: Array) -> Array:
    """Inverse of lower triangular ``chol [..., k, k]``; entries above the diagonal are ignored.

    Forward substitution, one row at a time over the whole batch; the derivative is ``-X tril(dL)
    X``. O(k^3) each.

    Raises:
        ValueError: when ``chol`` is complex or not square.

    >>> triangular_inverse(jnp.array([[2.0, 0.0], [1.0, 1.0]])).tolist()
    [[0.5, 0.0], [-0.5, 1.0]]
    """
    chol = _check_square(chol, "chol")
    return _triangular_inverse(chol) if chol.size else chol


@jax.custom_jvp
def _triangular_inverse(chol: Array) -> Array:
    chol = jnp.tril(chol)
    identity = identity_like(chol)

    def substitute(i: Array, inverse: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(chol, i, -2, keepdims=False)
        pivot = jax.lax.dynamic_index_in_dim(row, i, -1)
        unit = jax.lax.dynamic_index_in_dim(identity, i, -2, keepdims=False)
        solved = (unit - matmul(row[..., None, :], inverse)[..., 0, :]) / pivot
        return jax.lax.dynamic_update_index_in_dim(inverse, solved, i, inverse.ndim - 2)

    return jax.lax.fori_loop(0, chol.shape[-1], substitute, jnp.zeros_like(chol))


@_triangular_inverse.defjvp
def _triangular_inverse_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    inverse = _triangular_inverse(primals[0])
    return inverse, -matmul(inverse, matmul(jnp.tril(tangents[0]), inverse))


def triangular_solve(chol: Array, right: Array) -> Array:
    """``L^{-1} right`` for lower triangular ``chol [..., k, k]`` and ``right [..., k, l]``.

    It is the product with :func:`triangular_inverse`. With ``Y = L^{-1} right`` the derivative is
    ``L^{-1} (d right - tril(dL) Y)``: two products, where that of the inverse and of the product
    would be four.

    Raises:
        ValueError: when ``chol`` is complex or not square.

    >>> triangular_solve(jnp.array([[2.0, 0.0], [1.0, 1.0]]), jnp.array([[2.0], [1.0]])).tolist()
    [[1.0], [0.0]]
    """
    chol = _check_square(chol, "chol")
    return _triangular_solve(chol, right) if chol.size else right


@jax.custom_jvp
def _triangular_solve(chol: Array, right: Array) -> Array:
    return matmul(_triangular_inverse(chol), right)


@_triangular_solve.defjvp
def _triangular_solve_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    inverse = _triangular_inverse(primals[0])
    solved = matmul(inverse, primals[1])
    return solved, matmul(inverse, tangents[1] - matmul(jnp.tril(tangents[0]), solved))


def cholesky(matrix: Array) -> Array:
    """Lower factor L of symmetric positive definite ``matrix [..., k, k] = L L^T``; NaN where it is
    not positive definite.

    Column by column over the whole batch; only the lower triangle is read. The derivative is ``L
    Phi(L^{-1} dA L^{-T})`` with Phi the lower triangle with halved diagonal. Where rows with
    ``matrix = rows^T rows`` are at hand, :func:`triangularize` keeps twice the digits.

    Raises:
        ValueError: when ``matrix`` is complex or not square.

    >>> cholesky(jnp.array([[4, 2], [2, 2]])).tolist()
    [[2.0, 0.0], [1.0, 1.0]]
    """
    matrix = _check_square(matrix, "matrix")
    return _cholesky(matrix) if matrix.size else matrix


@jax.custom_jvp
def _cholesky(matrix: Array) -> Array:
    rows = jnp.arange(matrix.shape[-1])

    def eliminate(j: Array, chol: Array) -> Array:
        row = jax.lax.dynamic_index_in_dim(chol, j, -2)
        column = jax.lax.dynamic_index_in_dim(matrix, j, -1, keepdims=False)
        column = column - jnp.sum(chol * row, axis=-1)
        pivot = jnp.sqrt(jax.lax.dynamic_index_in_dim(column, j, -1))
        below = jnp.broadcast_to(rows >= j, column.shape)
        return jax.lax.dynamic_update_index_in_dim(
            chol, jnp.where(below, column / pivot, 0.0), j, chol.ndim - 1
        )

    return jax.lax.fori_loop(0, matrix.shape[-1], eliminate, jnp.zeros_like(matrix))


@_cholesky.defjvp
def _cholesky_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    chol = _cholesky(primals[0])
    inverse = _triangular_inverse(chol)
    lower = jnp.tril(tangents[0])
    change = lower + transpose(jnp.tril(lower, -1))
    return chol, matmul(chol, _half_triangle(matmul_nt(matmul(inverse, change), inverse)))


def triangularize(rows: Array) -> Array:
    """Lower factor L with ``L L^T = rows^T rows`` and a diagonal >= 0, without forming the product.

    Householder reflections, one column at a time over the whole batch: the square-root form of a
    covariance or an information matrix. Its rounding error is relative to ``|rows|``, while
    ``cholesky(rows^T rows)`` loses half the digits of small directions. O(m k^2).

    The derivative is ``L Phi(C + C^T)`` with ``C = Q^T d(rows) L^{-T}``, for rows of full rank.

    Args:
        rows: ``[..., m, k]``, real, for any m >= 0. Where the rank is below k the factor is right
            and its derivative is not finite.

    Returns:
        ``[..., k, k]``, lower triangular.

    Raises:
        ValueError: when ``rows`` is complex or has fewer than two axes.

    Source: Golub and Van Loan, Matrix Computations (2013), section 5.2.

    >>> round(float(triangularize(jnp.array([[3.0], [4.0]]))[0, 0]), 4)
    5.0
    """
    rows = as_floating(rows, "rows")
    if rows.ndim < 2:
        raise ValueError(f"rows must be [..., m, k], got shape {rows.shape}")
    if rows.shape[-1] == 0:
        return jnp.zeros((*rows.shape[:-2], 0, 0), rows.dtype)
    short = rows.shape[-1] - rows.shape[-2]
    if short > 0:
        rows = jnp.concatenate(
            [rows, jnp.zeros((*rows.shape[:-2], short, rows.shape[-1]), rows.dtype)], axis=-2
        )
    return _orthogonalize(rows)[1]


@jax.custom_jvp
def _orthogonalize(rows: Array) -> tuple[Array, Array]:
    """``(Q [..., m, k], L [..., k, k])`` with ``rows = Q L^T``, ``Q^T Q = 1``, for m >= k."""
    num, k = rows.shape[-2:]
    # Loops run over the last axis: of long columns the one along them.
    turned, along, across = (transpose, -1, -2) if num > 8 * k else (lambda x: x, -2, -1)

    def reflect(rest: Array, j: Array) -> tuple[Array, Array]:
        column = jax.lax.dynamic_index_in_dim(rest, j, across, keepdims=False)
        below = jnp.broadcast_to(jnp.arange(num) >= j, column.shape)
        column = jnp.where(below, column, 0.0)
        pivot = jax.lax.dynamic_index_in_dim(column, j, -1)
        length = safe_norm(column, keepdims=True)
        here = jnp.broadcast_to(jnp.arange(num) == j, column.shape)
        normal = column + jnp.where(here, jnp.where(pivot < 0, -length, length), 0.0)
        size = safe_norm(normal, keepdims=True)
        normal = normal / jnp.where(size == 0, 1.0, size)
        return mirror(rest, normal), normal

    def mirror(x: Array, normal: Array) -> Array:
        """``(1 - 2 v v^T) x`` for unit vectors v."""
        normal = jnp.expand_dims(normal, across)
        return x - 2.0 * normal * jnp.sum(normal * x, axis=along, keepdims=True)

    rest, normals = jax.lax.scan(reflect, turned(rows), jnp.arange(k))
    eye = jnp.broadcast_to(turned(jnp.eye(num, k, dtype=bool)), rest.shape)
    # Under shard_map it varies as the rows do.
    eye = jnp.where(eye, jnp.ones_like(rest), jnp.zeros_like(rest))
    basis, _ = jax.lax.scan(lambda q, v: (mirror(q, v), None), eye, normals, reverse=True)
    rest, basis = turned(rest), turned(basis)
    factor = jnp.tril(transpose(rest[..., :k, :]))
    sign = jnp.where(diagonal(factor) < 0, -1.0, 1.0)[..., None, :]
    sign = sign.astype(rows.dtype)
    return basis * sign, factor * sign


@_orthogonalize.defjvp
def _orthogonalize_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple, tuple]:
    basis, factor = _orthogonalize(primals[0])
    change = matmul_nt(tangents[0], _triangular_inverse(factor))
    inner = matmul_tn(basis, change)
    body = _half_triangle(inner + transpose(inner))
    return (basis, factor), (change - matmul_nt(basis, body), matmul(factor, body))


def _half_triangle(x: Array) -> Array:
    """Lower triangle with halved diagonal: ``P`` with ``P + P^T = x`` for symmetric x."""
    return jnp.tril(x) * (1.0 - 0.5 * identity_like(x))


def _check_square(x: jax.typing.ArrayLike, name: str) -> Array:
    x = as_floating(x, name)
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"{name} must be square matrices [..., k, k], got shape {x.shape}")
    return x

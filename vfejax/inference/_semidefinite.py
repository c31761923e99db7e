"""Symmetric elimination of covariances that may be singular, with the batch axis last.

A state that is known exactly, or noise that enters only some directions, makes covariances
singular. A pivot that vanishes to rounding is left out. The result is that of a generalised
inverse, which every formula of Gaussian conditioning allows. A pivot that is negative beyond
rounding gives NaN.
"""

import jax
import jax.numpy as jnp

from vfejax import lanes
from vfejax.types import Array

__all__ = ["condition", "log_det_sum", "semidefinite", "solve"]


def semidefinite(cov: Array) -> Array:
    """``cov [n, n, s]`` as it is, and NaN where an eigenvalue is negative beyond rounding: the
    formulas would give numbers there, and wrong ones.

    >>> semidefinite(jnp.array([1.0, 0.0, -1.0])[None, None])[0, 0].tolist()
    [1.0, 0.0, nan]
    """
    scale = jnp.max(jnp.abs(cov), axis=(0, 1), initial=0.0)
    limit = 100.0 * cov.shape[0] * float(jnp.finfo(cov.dtype).eps) * scale
    limit = jnp.where(scale == 0.0, 1.0, limit)
    eye = jnp.eye(cov.shape[0], dtype=cov.dtype)[..., None]
    root = lanes.cholesky(jax.lax.stop_gradient(cov + eye * limit[None, None]))
    # 0, or NaN where there is no root.
    return cov + 0.0 * jnp.sum(jnp.diagonal(root, axis1=0, axis2=1), axis=-1)[None, None]


def _eliminate(matrix: Array, right: Array) -> Array:
    """``L^- right`` for ``matrix [k, k, s] = L L^T`` and ``right [k, l, s]``; the row of a
    vanishing pivot is 0.
    """
    k = matrix.shape[0]
    eps = 4.0 * k * float(jnp.finfo(matrix.dtype).eps)
    limits = jnp.diagonal(matrix, axis1=0, axis2=1).T * eps

    def step(j: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        rest, right = carry
        pivot_row, row = (jax.lax.dynamic_index_in_dim(x, j, 0) for x in carry)
        column = jax.lax.dynamic_index_in_dim(rest, j, 1)
        pivot = jax.lax.dynamic_index_in_dim(pivot_row, j, 1)
        vanishes = jnp.abs(pivot) <= jax.lax.dynamic_index_in_dim(limits, j, 0)[None]
        scale = jnp.where(vanishes, 0.0, 1.0 / jnp.sqrt(jnp.where(vanishes, 1.0, pivot)))
        below = jnp.broadcast_to((jnp.arange(k) > j)[:, None, None], column.shape)
        column, row = jnp.where(below, column * scale, 0.0), row * scale
        # Products of their own, so that what makes the factors is not computed once per entry.
        rest = rest - lanes.matmul_nt(column, column)
        right = right - lanes.matmul(column, row)
        return rest, jax.lax.dynamic_update_index_in_dim(right, row, j, 0)

    return jax.lax.fori_loop(0, k, step, (matrix, right))[1]


def _factor_inverse(matrix: Array) -> Array:
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return _eliminate(matrix, jnp.broadcast_to(eye[..., None], matrix.shape))


@jax.custom_jvp
def solve(matrix: Array, right: Array) -> Array:
    """``matrix^- right`` for positive semidefinite ``matrix [k, k, s]`` and ``right [k, l, s]``.

    >>> solve(jnp.array([[4.0, 0.0], [0.0, 0.0]])[..., None], jnp.ones((2, 1, 1)))[..., 0].tolist()
    [[0.25], [0.0]]
    """
    inverse = _factor_inverse(matrix)
    return lanes.matmul_tn(inverse, lanes.matmul(inverse, right))


@solve.defjvp
def _solve_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    solved = solve(*primals)
    return solved, solve(primals[0], tangents[1] - lanes.matmul(tangents[0], solved))


def _inner(cov: Array, precision: Array) -> tuple[Array, Array]:
    """``L^T`` and ``1 + L^T precision L``."""
    # L^T = L^- cov, for the generalised inverse too.
    rows = _eliminate(cov, cov)
    eye = jnp.broadcast_to(jnp.eye(cov.shape[0], dtype=cov.dtype)[..., None], cov.shape)
    return rows, eye + lanes.matmul(lanes.matmul(rows, precision), jnp.swapaxes(rows, 0, 1))


@jax.custom_jvp
def condition(cov: Array, precision: Array) -> Array:
    """``(cov^-1 + precision)^-1`` for positive semidefinite matrices ``[k, k, s]``, either of which
    may be singular.

    With ``cov = L L^T`` it is ``L (1 + L^T precision L)^-1 L^T``; nothing is subtracted.

    >>> condition(jnp.full((1, 1, 1), 4.0), jnp.full((1, 1, 1), 0.75))[0, 0].tolist()
    [1.0]
    """
    rows, inner = _inner(cov, precision)
    root = _eliminate(inner, rows)
    return lanes.matmul_tn(root, root)


@condition.defjvp
def _condition_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    after = condition(*primals)
    eye = jnp.broadcast_to(jnp.eye(after.shape[0], dtype=after.dtype)[..., None], after.shape)
    kept = eye - lanes.matmul(after, primals[1])
    narrowed = lanes.matmul(lanes.matmul(after, tangents[1]), after)
    return after, lanes.matmul_nt(lanes.matmul(kept, tangents[0]), kept) - narrowed


@jax.custom_jvp
def log_det_sum(cov: Array, precision: Array) -> Array:
    """``log |1 + cov precision|``, ``[s]``, of positive semidefinite matrices ``[k, k, s]``.

    >>> log_det_sum(jnp.full((1, 1, 1), 3.0), jnp.full((1, 1, 1), 0.0)).tolist()
    [0.0]
    """
    chol = lanes.cholesky(_inner(cov, precision)[1])
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(chol, axis1=0, axis2=1)), axis=-1)


@log_det_sum.defjvp
def _log_det_sum_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    cov, precision = primals
    slope = jnp.sum(condition(precision, cov) * tangents[0], axis=(0, 1))
    return log_det_sum(cov, precision), slope + jnp.sum(
        condition(cov, precision) * tangents[1], axis=(0, 1)
    )

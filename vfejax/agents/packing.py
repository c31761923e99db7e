"""Symmetric matrices as their lower triangles, row by row.

The transpose of taking entries is a scatter, which is slow on every device. So rows are packed by
products with constants, and the slope of a packed Gram matrix takes entries of its own.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from vfejax import lanes
from vfejax.numerics import matmul
from vfejax.types import Array

__all__ = ["pack", "packed_gram", "unpack"]


def _entries(k: int) -> tuple[np.ndarray, np.ndarray]:
    """Where each packed entry is in a matrix ``[k (k + 1) / 2]``, and where each entry of a matrix
    is in the packed form ``[k, k]``.
    """
    rows, columns = np.tril_indices(k)
    packed = np.zeros((k, k), int)
    packed[rows, columns] = packed[columns, rows] = np.arange(rows.size)
    return rows * k + columns, packed


def _weights(k: int, off_diagonal: float) -> np.ndarray:
    """1 for the packed entries on the diagonal, ``off_diagonal`` for the others."""
    rows, columns = np.tril_indices(k)
    return np.where(rows == columns, 1.0, off_diagonal)


def pack(matrix: Array) -> Array:
    """Lower triangle of a symmetric matrix, row by row: ``[..., k, k] -> [..., k (k + 1) / 2]``.

    By a constant 0-1 matrix: its transpose, which the gradient needs, is a product too, not a
    scatter.

    >>> pack(jnp.array([[1.0, 2.0], [2.0, 3.0]])).tolist()
    [1.0, 2.0, 3.0]
    """
    k = matrix.shape[-1]
    selection = np.eye(k * k)[:, _entries(k)[0]]
    flat = matrix.reshape(*matrix.shape[:-2], k * k)
    return matmul(flat, jnp.asarray(selection, matrix.dtype))


def unpack(packed: Array, k: int) -> Array:
    """Symmetric matrices ``[..., k, k]`` from their lower triangles, inverse of :func:`pack`.

    >>> unpack(jnp.array([1.0, 2.0, 3.0]), 2).tolist()
    [[1.0, 2.0], [2.0, 3.0]]
    """
    both = np.eye(packed.shape[-1])[:, _entries(k)[1].ravel()]
    return matmul(packed, jnp.asarray(both, packed.dtype)).reshape(*packed.shape[:-1], k, k)


def _take(x: Array, index: np.ndarray) -> Array:
    """The columns ``x [..., m, n]`` at constant places of m."""
    return jnp.take(x, index, axis=-2, mode="clip")


def _add_and_pack(matrix: Array) -> Array:
    """``x + x^T`` packed: ``[..., k, k, n] -> [..., k (k + 1) / 2, n]``."""
    k = matrix.shape[-2]
    both = matrix + jnp.swapaxes(matrix, -3, -2)
    return _take(both.reshape(*matrix.shape[:-3], k * k, matrix.shape[-1]), _entries(k)[0])


def _unpack_slope(slope: Array, matrix: ad.UndefinedPrimal) -> tuple[Array]:
    """Transpose of :func:`_add_and_pack`: an entry on the diagonal was counted twice."""
    shape = matrix.aval.shape
    entries = _take(slope, _entries(shape[-2])[1].ravel()).reshape(shape)
    twice = jnp.asarray(1 + np.eye(shape[-2])[:, :, None], slope.dtype)
    return (entries * jnp.broadcast_to(twice, shape),)


def _packed_shape(matrix: jax.core.ShapedArray) -> jax.core.ShapedArray:
    return jax.make_jaxpr(_add_and_pack)(matrix).out_avals[0]


def _larger_stack(args: tuple[Array], axes: tuple[int]) -> tuple[Array, int]:
    return _add_and_pack_p.bind(jnp.moveaxis(args[0], axes[0], 0)), 0


_add_and_pack_p = Primitive("add_and_pack")
_compiled = jax.jit(_add_and_pack_p.bind)


@_add_and_pack_p.def_impl
def _sum_of_values(matrix: Array) -> Array:
    with jax.disable_jit(False):  # else what is compiled would call this again
        return _compiled(matrix)


_add_and_pack_p.def_abstract_eval(_packed_shape)
ad.deflinear2(_add_and_pack_p, _unpack_slope)
batching.primitive_batchers[_add_and_pack_p] = _larger_stack
mlir.register_lowering(_add_and_pack_p, mlir.lower_fun(_add_and_pack, multiple_results=False))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def packed_gram(rows: Array, off_diagonal: float) -> Array:
    """Lower triangles of ``rows^T rows``, row by row, with the stack behind
    (:mod:`vfejax.lanes`).

    Its slope in ``rows`` is one product.

    Args:
        rows: ``[..., l, k, n]``.
        off_diagonal: what the entries off the diagonal are multiplied by.

    Returns:
        ``[..., k (k + 1) / 2, n]``.

    >>> packed_gram(jnp.array([[[1.0], [2.0]]]), 2.0)[:, 0].tolist()
    [1.0, 4.0, 4.0]
    """
    k = rows.shape[-2]
    gram = lanes.matmul_tn(rows, rows)
    flat = gram.reshape(*gram.shape[:-3], k * k, gram.shape[-1])
    return _weighted(_take(flat, _entries(k)[0]), k, off_diagonal)


def _weighted(packed: Array, k: int, off_diagonal: float) -> Array:
    weights = jnp.asarray(_weights(k, off_diagonal)[:, None], packed.dtype)
    return packed * jnp.broadcast_to(weights, packed.shape)


@packed_gram.defjvp
def _packed_gram_jvp(
    off_diagonal: float, primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    (rows,), (change,) = primals, tangents
    slope = _add_and_pack_p.bind(lanes.matmul_tn(rows, change))
    return packed_gram(rows, off_diagonal), _weighted(slope, rows.shape[-2], off_diagonal)

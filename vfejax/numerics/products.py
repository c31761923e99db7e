"""Products of stacks of matrices at full precision; transposes, identities, diagonals."""

import jax
import jax.numpy as jnp

from vfejax.stack_product import fits, stack_product
from vfejax.types import Array

__all__ = [
    "diagonal",
    "identity_like",
    "matmul",
    "matmul_nt",
    "matmul_tn",
    "matvec",
    "symmetrize",
    "transpose",
]


def transpose(x: Array) -> Array:
    """Matrix transpose of ``x [..., k, l]``.

    >>> transpose(jnp.ones((5, 2, 3))).shape
    (5, 3, 2)
    """
    return jnp.swapaxes(x, -1, -2)


def symmetrize(x: Array) -> Array:
    """Symmetric part ``(x + x^T) / 2`` of ``x [..., k, k]``.

    >>> symmetrize(jnp.array([[0.0, 2.0], [0.0, 0.0]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    return 0.5 * (x + transpose(x))


def identity_like(x: Array) -> Array:
    """Identity matrices with the shape and dtype of ``x [..., k, k]``.

    >>> identity_like(jnp.zeros((2, 2))).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)


def diagonal(x: Array) -> Array:
    """Diagonals ``[..., k]`` of ``x [..., k, k]``.

    A strided slice, whose gradient pads with zeros. ``jnp.diagonal`` gathers, and its gradient
    scatters, for which XLA on a CPU compiles loops.

    >>> diagonal(jnp.array([[1, 2], [3, 4]])).tolist()
    [1, 4]
    """
    k = x.shape[-1]
    flat = jnp.reshape(x, (*x.shape[:-2], k * k))
    return jax.lax.slice_in_dim(flat, 0, k * k, k + 1, axis=-1)


def matmul(left: Array, right: Array) -> Array:
    """Matrix product at full precision on every device.

    Stacks of small matrices are multiplied by :func:`vfejax.stack_product.stack_product`.

    >>> matmul(jnp.eye(2), jnp.ones((2, 1))).tolist()
    [[1.0], [1.0]]
    """
    if fits(left, right):
        return stack_product(left, right)
    return jnp.matmul(left, right, precision="highest")


def matmul_tn(left: Array, right: Array) -> Array:
    """``left^T right`` for matrices ``[..., k, m]`` and ``[..., k, n]``, as :func:`matmul`.

    >>> matmul_tn(jnp.array([[1.0, 2.0]]), jnp.array([[3.0]])).tolist()
    [[3.0], [6.0]]
    """
    if fits(left, right):
        return stack_product(left, right, left_axis=-2)
    return matmul(transpose(left), right)


def matmul_nt(left: Array, right: Array) -> Array:
    """``left right^T`` for matrices ``[..., m, k]`` and ``[..., n, k]``, as :func:`matmul`.

    >>> matmul_nt(jnp.array([[1.0, 2.0]]), jnp.array([[3.0, 4.0]])).tolist()
    [[11.0]]
    """
    if fits(left, right):
        return stack_product(left, right, right_axis=-1)
    return matmul(left, transpose(right))


def matvec(matrix: Array, vector: Array) -> Array:
    """``matrix [..., l, k]`` times ``vector [..., k]``, at full precision on every device.

    >>> matvec(jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.ones(2)).tolist()
    [3.0, 7.0]
    """
    return matmul(matrix, vector[..., None])[..., 0]

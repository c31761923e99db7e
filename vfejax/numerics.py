"""Small numerical pieces whose gradients stay finite where the textbook formula divides by zero."""

import jax
import jax.numpy as jnp

from vfejax.types import Array

__all__ = ["identity_like", "log_det_cholesky", "safe_norm", "sinc", "symmetrize", "triangular_inverse"]


def symmetrize(x: Array) -> Array:
    """Symmetric part ``(x + x^T) / 2`` of ``x [..., k, k]``."""
    return 0.5 * (x + jnp.swapaxes(x, -1, -2))


def identity_like(x: Array) -> Array:
    """Identity matrices with the shape and dtype of ``x [..., k, k]``."""
    return jnp.broadcast_to(jnp.eye(x.shape[-1], dtype=x.dtype), x.shape)


def triangular_inverse(chol: Array) -> Array:
    """Inverse of lower triangular ``chol [..., k, k]``; entries above the diagonal are ignored."""
    return jax.scipy.linalg.solve_triangular(chol, identity_like(chol), lower=True)


def log_det_cholesky(chol: Array) -> Array:
    """``log det(L L^T) = 2 sum_i log L_ii`` for ``chol [..., k, k]``; NaN where a diagonal entry is negative."""
    return 2.0 * jnp.sum(jnp.log(jnp.diagonal(chol, axis1=-2, axis2=-1)), axis=-1)


def safe_norm(x: Array, *, axis: int = -1, keepdims: bool = False) -> Array:
    """Euclidean norm whose gradient at ``x = 0`` is 0 instead of NaN."""
    square = jnp.sum(x * x, axis=axis, keepdims=keepdims)
    positive = square > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, square, 1.0)), 0.0)


def sinc(x: Array) -> Array:
    """``sin(x) / x``, 1 at 0, with exact derivatives everywhere (numpy's sinc carries a factor pi)."""
    return jnp.sinc(x / jnp.pi)

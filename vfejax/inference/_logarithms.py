"""Sums and products of numbers that are known by their logarithms, 0 among them."""

import jax
import jax.numpy as jnp

from vfejax.types import Array

__all__ = ["log_matvec", "log_sum", "safe_log"]


def safe_log(x: Array) -> Array:
    """``log x``, -inf with gradient 0 at 0.

    >>> float(safe_log(jnp.zeros(()))), float(jax.grad(safe_log)(0.0))
    (-inf, 0.0)
    """
    zero = x == 0
    return jnp.where(zero, -jnp.inf, jnp.log(jnp.where(zero, 1.0, x)))


def log_sum(x: Array, axis: int) -> Array:
    """``log sum exp x``; -inf with gradient 0 where all are -inf, NaN where one is.

    >>> float(log_sum(jnp.full(3, -jnp.inf), axis=0))
    -inf
    """
    highest = jax.lax.stop_gradient(jnp.max(x, axis=axis, keepdims=True))
    highest = jnp.where(highest == -jnp.inf, 0.0, highest)
    total = jnp.sum(jnp.exp(x - highest), axis=axis)
    return safe_log(total) + jnp.squeeze(highest, axis)


def log_matvec(table: Array, vector: Array) -> Array:
    """``log(exp(table) exp(vector))``, ``[k]``.

    >>> log_matvec(jnp.zeros((1, 1)), jnp.ones(1)).tolist()
    [1.0]
    """
    return log_sum(table + vector[None], axis=-1)

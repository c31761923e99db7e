"""Categorical beliefs: a probability for each of k states, their divergence and entropy.

Probabilities of 0 are allowed everywhere: ``0 log 0 = 0``, with finite gradients. What is negative
or NaN gives NaN.
"""

import jax.numpy as jnp
import numpy as np

from vfejax.numerics import as_floating
from vfejax.types import Array

__all__ = ["check_probabilities", "entropy", "kl_divergence", "safe_log", "xlogy"]


def safe_log(x: Array) -> Array:
    """``log max(x, tiny)``, with tiny the smallest normal number of the dtype; NaN below 0 and at
    NaN.

    The logarithm of an impossible state stays finite (-87.3 in float32, -708.4 in float64), so that
    differences and products of such logarithms are numbers. Its gradient at 0 is 0.

    >>> [round(float(y), 2) for y in safe_log(jnp.array([0.0, 1.0]))]
    [-87.34, 0.0]
    """
    x = as_floating(x, "x")
    tiny = jnp.finfo(x.dtype).tiny
    floored = (x >= 0) & (x < tiny)
    return jnp.where(floored, jnp.log(tiny).astype(x.dtype), jnp.log(jnp.where(floored, 1.0, x)))


def xlogy(x: Array, y: Array) -> Array:
    """``x log y``, which is 0 where ``x = 0``, with gradient 0 there; NaN where y is negative or
    NaN.

    Args:
        x: ``[...]``, weights.
        y: the shape of ``x``, at least 0.

    >>> xlogy(jnp.array([0.0, 2.0]), jnp.array([0.0, 1.0])).tolist()
    [0.0, 0.0]
    """
    zero = (x == 0) & (y >= 0)
    return jnp.where(zero, 0.0, x * jnp.log(jnp.where(zero, 1.0, y)))


def entropy(probabilities: Array) -> Array:
    """``-sum_k p_k log p_k`` of ``probabilities [..., k]``, in nats, ``[...]``.

    >>> round(float(entropy(jnp.array([0.5, 0.5, 0.0]))), 4)
    0.6931
    """
    probabilities = as_floating(probabilities, "probabilities")
    return -jnp.sum(xlogy(probabilities, probabilities), axis=-1)


def kl_divergence(q: Array, p: Array) -> Array:
    """``KL(q || p) = sum_k q_k log (q_k / p_k)``, in nats; infinite where q is positive and p is 0.

    Args:
        q: probabilities ``[..., k]``.
        p: probabilities of the same shape.

    Returns:
        ``[...]``.

    Raises:
        ValueError: when the shapes differ.

    >>> round(float(kl_divergence(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.5]))), 4)
    0.6931
    """
    q, p = as_floating(q, "q"), as_floating(p, "p")
    if q.shape != p.shape:
        raise ValueError(f"q and p must have the same shapes, got {q.shape} and {p.shape}")
    return jnp.sum(xlogy(q, q) - xlogy(q, p), axis=-1)


def check_probabilities(probabilities: Array, name: str, axis: int = -1) -> None:
    """Refuse concrete probabilities that are negative, not finite, or do not sum to 1.

    Args:
        probabilities: ``[...]``, concrete.
        name: what an error should call them.
        axis: the axis over which they sum to 1, up to the square root of the rounding error.

    Raises:
        ValueError: naming the first entry that is negative or not finite, or the first sum that is
            not 1.

    >>> check_probabilities(jnp.array([0.5, 0.5]), "initial")
    """
    values = np.asarray(probabilities, np.float64)
    wrong = ~(np.isfinite(values) & (values >= 0))
    if wrong.any():
        where = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"{name}{list(where)} must be a probability, got {values[where]}")
    sums = np.sum(values, axis=axis)
    off = np.abs(sums - 1) > np.sqrt(float(jnp.finfo(as_floating(probabilities, name).dtype).eps))
    if off.any():
        where = tuple(int(i) for i in np.argwhere(off)[0])
        raise ValueError(
            f"{name} must sum to 1 over axis {axis}, got {sums[where]} at {list(where)}"
        )

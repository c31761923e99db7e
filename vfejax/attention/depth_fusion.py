"""Depth fusion: mixing of the attention outputs of the platters of a torus.

The heads' output ``x [b, n, h, c]`` has d = h c channels. Platter k owns the k-th group of h/D
heads, so that a token's channels are D vectors ``p_k`` of d/D. A fusion maps them to as many.

``FUSIONS`` is the table of fusions that models and tests read. A new one is a :class:`Fusion` and
one line in the table.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.attention._arguments import check_heads
from vfejax.attention.softmax import softmax
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["FUSIONS", "Fusion", "attention", "low_rank", "low_rank_init", "mean", "none"]

Weights = tuple[Array, ...]


class Fusion(NamedTuple):
    """A fusion as two pure functions.

    Attributes:
        init: ``init(key, dim, rank, dtype) -> weights`` for d = dim channels; no weights for most.
        apply: ``apply(weights, x [b, n, h, c], depth) -> [b, n, h, c]``.
    """

    init: Callable[[Array, int, int, jax.typing.DTypeLike], Weights]
    apply: Callable[[Weights, Array, int], Array]


def _platters(x: Array, depth: int) -> Array:
    """The vectors of the platters, ``[b, n, D, d/D]``, in at least float32."""
    check_heads("x", x, depth)
    batch, length, num_heads, channels = x.shape
    shape = (batch, length, depth, num_heads // depth * channels)
    return jnp.reshape(x, shape).astype(at_least_float32(x.dtype))


def low_rank(x: Array, u: Array, v: Array) -> Array:
    """``x + U V^T x`` on the d channels of every token: the identity where U is 0.

    O(d r) for each token.

    Args:
        x: the heads' output, floating, ``[b, n, h, c]``.
        u: ``[d, r]`` with d = h c.
        v: ``[d, r]``.

    Returns:
        Shape and dtype of ``x``; sums are kept in at least float32.

    Raises:
        ValueError: for factors of another shape.

    >>> import jax.numpy as jnp
    >>> x, v = jnp.array([1.0, 2.0]).reshape(1, 1, 2, 1), jnp.ones((2, 1))
    >>> low_rank(x, jnp.zeros((2, 1)), v).ravel().tolist()
    [1.0, 2.0]
    >>> low_rank(x, jnp.ones((2, 1)), v).ravel().tolist()
    [4.0, 5.0]
    """
    check_heads("x", x, 1)
    real, dim = at_least_float32(x.dtype), x.shape[2] * x.shape[3]
    if u.ndim != 2 or u.shape != v.shape or u.shape[0] != dim:
        raise ValueError(f"u and v must both be [{dim}, r], got {u.shape} and {v.shape}")
    flat = jnp.reshape(x, (*x.shape[:2], dim)).astype(real)
    change = jnp.matmul(jnp.matmul(flat, v.astype(real)), u.astype(real).T)
    return jnp.reshape(flat + change, x.shape).astype(x.dtype)


def low_rank_init(
    key: Array, dim: int, rank: int, dtype: jax.typing.DTypeLike = jnp.float32
) -> Weights:
    """First factors ``(u, v)`` of :func:`low_rank`: U = 0, and V normal with variance 1/d.

    Args:
        key: random key.
        dim: d, channels of all heads.
        rank: r.
        dtype: of the factors.

    Returns:
        ``u [d, r]`` and ``v [d, r]``.

    >>> u, v = low_rank_init(jax.random.key(0), 6, 2)
    >>> u.shape, v.shape, bool(jnp.all(u == 0))
    ((6, 2), (6, 2), True)
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}")
    v = jax.random.normal(key, (dim, rank), dtype) / dim**0.5
    return jnp.zeros_like(v), v


def attention(x: Array, depth: int) -> Array:
    """Every platter reads the platters of its token: ``sum_l softmax_l(<p_k, p_l> / (d/D)^(1/2))
    p_l``.

    O(D d) for each token; no weights.

    Args:
        x: the heads' output, floating, ``[b, n, h, c]``.
        depth: D, number of platters; divides h.

    Returns:
        Shape and dtype of ``x``; sums are kept in at least float32.

    Raises:
        ValueError: for a depth that does not divide the heads, naming those that do.

    >>> import jax.numpy as jnp
    >>> attention(jnp.array([1.0, 1.0, 1.0, 1.0]).reshape(1, 1, 2, 2), 2).ravel().tolist()
    [1.0, 1.0, 1.0, 1.0]
    """
    platters = _platters(x, depth)
    logits = jnp.einsum("bnke,bnle->bnkl", platters, platters) / platters.shape[-1] ** 0.5
    read = jnp.einsum("bnkl,bnle->bnke", softmax(logits), platters)
    return jnp.reshape(read, x.shape).astype(x.dtype)


def mean(x: Array, depth: int) -> Array:
    """Every platter becomes the mean of the platters of its token.

    Args:
        x: the heads' output, floating, ``[b, n, h, c]``.
        depth: D, number of platters; divides h.

    Returns:
        Shape and dtype of ``x``; sums are kept in at least float32.

    Raises:
        ValueError: for a depth that does not divide the heads, naming those that do.

    >>> import jax.numpy as jnp
    >>> mean(jnp.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 1, 4, 1), 2).ravel().tolist()
    [2.0, 3.0, 2.0, 3.0]
    """
    platters = _platters(x, depth)
    same = jnp.broadcast_to(jnp.mean(platters, axis=2, keepdims=True), platters.shape)
    return jnp.reshape(same, x.shape).astype(x.dtype)


def none(x: Array) -> Array:
    """The platters as they are.

    >>> import jax.numpy as jnp
    >>> none(jnp.ones((1, 1, 2, 1))).shape
    (1, 1, 2, 1)
    """
    return x


def _no_weights(key: Array, dim: int, rank: int, dtype: jax.typing.DTypeLike) -> Weights:
    return ()


FUSIONS: dict[str, Fusion] = {
    "low-rank": Fusion(low_rank_init, lambda weights, x, depth: low_rank(x, *weights)),
    "attention": Fusion(_no_weights, lambda weights, x, depth: attention(x, depth)),
    "mean": Fusion(_no_weights, lambda weights, x, depth: mean(x, depth)),
    "none": Fusion(_no_weights, lambda weights, x, depth: none(x)),
}

"""Checks of the arguments of the attention functions, with errors that name the argument."""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["check_depth", "check_heads", "check_projections", "head_slopes"]


def check_depth(depth: int, num_heads: int) -> None:
    """Raise ValueError unless the platters share the heads evenly.

    >>> check_depth(4, 6)
    Traceback (most recent call last):
    ValueError: depth must divide the 6 heads (one of 1, 2, 3, 6), got 4
    """
    if depth < 1 or num_heads % depth:
        valid = ", ".join(str(k) for k in range(1, num_heads + 1) if num_heads % k == 0)
        raise ValueError(f"depth must divide the {num_heads} heads (one of {valid}), got {depth}")


def check_heads(name: str, x: Array, depth: int) -> None:
    """Raise ValueError unless ``x`` is floating ``[b, n, h, c]`` and ``depth`` divides h.

    Args:
        name: what an error calls the array.
        x: the array.
        depth: number of platters.

    >>> import jax.numpy as jnp
    >>> check_heads("value", jnp.ones((5, 2, 4)), 1)
    Traceback (most recent call last):
    ValueError: value must be floating [b, n, h, c], got float32 (5, 2, 4)
    """
    if x.ndim != 4 or not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name} must be floating [b, n, h, c], got {x.dtype} {x.shape}")
    check_depth(depth, x.shape[2])


def check_projections(query: Array, key: Array, value: Array, depth: int) -> None:
    """Raise ValueError unless query, key and value fit together and their heads can be dealt out.

    Args:
        query: should be floating ``[b, n, h, c]``.
        key: should be ``[b, n, h, c]``.
        value: should be ``[b, n, h, v]``.
        depth: number of platters.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((1, 2, 6, 4))
    >>> check_projections(x, x, x, 4)
    Traceback (most recent call last):
    ValueError: depth must divide the 6 heads (one of 1, 2, 3, 6), got 4
    """
    arrays = {"key": key, "value": value}
    check_heads("query", query, depth)
    for name, array in arrays.items():
        if array.ndim != 4 or array.shape[:3] != query.shape[:3]:
            raise ValueError(
                f"{name} must be [b, n, h, c], of the query's b, n and h, got {array.shape} beside "
                f"a query {query.shape}"
            )
        if array.dtype != query.dtype:
            raise ValueError(
                f"query, key and value must have one floating dtype, got a {name} of {array.dtype} "
                f"beside a query of {query.dtype}"
            )
    if key.shape != query.shape:
        raise ValueError(f"key must have the query's shape {query.shape}, got {key.shape}")


def head_slopes(slope: Array | float | None, query: Array, depth: int) -> Array | None:
    """One slope per head, in the dtype of the scores.

    Args:
        slope: a number, ``[h / depth]`` for the heads of a platter, or ``[h]``; None for no bias.
        query: ``[b, n, h, c]``.
        depth: number of platters.

    Returns:
        ``[h]``; None for no bias.

    Raises:
        ValueError: for slopes of another shape, or below 0 where their values are known.

    >>> import jax.numpy as jnp
    >>> head_slopes(jnp.array([1.0, 3.0]), jnp.ones((1, 2, 4, 4)), 2).tolist()
    [1.0, 3.0, 1.0, 3.0]
    """
    if slope is None:
        return None
    heads = query.shape[2]
    slopes = jnp.asarray(slope)
    if slopes.shape not in ((), (heads // depth,), (heads,)):
        raise ValueError(
            f"slope must be a number, [{heads // depth}] for the heads of a platter or [{heads}] "
            f"for all heads, got {slopes.shape}"
        )
    if not isinstance(slope, jax.core.Tracer) and np.any(np.asarray(slope) < 0):
        raise ValueError(f"slope must not be negative, got {np.min(np.asarray(slope))}")
    slopes = slopes.astype(at_least_float32(query.dtype))
    if slopes.shape == (heads // depth,):
        return jnp.tile(slopes, depth)
    return jnp.broadcast_to(slopes, (heads,))

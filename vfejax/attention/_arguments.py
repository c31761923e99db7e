"""What the attention functions demand of their arguments, with errors that name the argument."""

import jax.numpy as jnp

from vfejax.types import Array

__all__ = ["check_depth", "check_heads"]


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

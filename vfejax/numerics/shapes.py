"""Leading axes: broadcasting whose errors name the arguments, and its transpose."""

import jax.numpy as jnp

from vfejax.types import Array

__all__ = [
    "broadcast_named",
    "expand_leading",
    "sum_to",
]


def broadcast_named(**shapes: tuple[int, ...]) -> tuple[int, ...]:
    """Broadcast shape of named shapes.

    Args:
        **shapes: the shape of each argument, under the name an error should call it by.

    Returns:
        The common shape.

    Raises:
        ValueError: when they do not broadcast, listing names and shapes.

    >>> broadcast_named(rho=(3, 1), dt=(4,))
    (3, 4)
    """
    try:
        return jnp.broadcast_shapes(*shapes.values())
    except ValueError as error:
        listed = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        raise ValueError(f"leading axes must broadcast, got {listed}") from error


def expand_leading(x: Array, rank: int, core: int = 0) -> Array:
    """``x`` with axes of length 1 in front, so that ``rank`` axes precede its last ``core``.

    Args:
        x: an array with at most ``rank + core`` axes.
        rank: number of leading axes wanted.
        core: number of trailing axes that belong to one item.

    Returns:
        ``x`` with ``rank + core`` axes.

    >>> expand_leading(jnp.ones((5, 2, 2)), 3, core=2).shape
    (1, 1, 5, 2, 2)
    """
    return jnp.reshape(x, (1,) * (rank + core - x.ndim) + x.shape)


def sum_to(x: Array, shape: tuple[int, ...]) -> Array:
    """Sum of ``x`` to ``shape``: the transpose of broadcasting from ``shape`` to ``x.shape``.

    >>> sum_to(jnp.ones((4, 3, 2)), (1, 2)).tolist()
    [[12.0, 12.0]]
    """
    extra = x.ndim - len(shape)
    x = jnp.sum(x, axis=tuple(range(extra)))
    axes = tuple(i for i, want in enumerate(shape) if x.shape[i] != want)
    return jnp.sum(x, axis=axes, keepdims=True)

"""Distances on the torus of a sequence: a ring of tokens times a stack of platters.

A token stands at place i of a ring of N places and on platter k of a stack of D. Distances are in
turns of the ring and in shares of the stack, so they do not depend on the resolution of either.
"""

import jax.numpy as jnp

from vfejax.numerics import cast_like
from vfejax.types import Array

__all__ = [
    "circular_distance",
    "circular_hops",
    "diameter",
    "linear_distance",
    "platter_distance",
]


def _check_size(name: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{name} must be at least 1, got {size}")


def _share(steps: Array, size: int) -> Array:
    """``steps / size`` in the default precision, whatever the integers' width."""
    return jnp.asarray(steps, float) / size


def circular_hops(offset: Array, circumference: int) -> Array:
    """Steps between two places of a ring, the shorter way round: ``min(o mod N, -o mod N)``.

    Args:
        offset: difference of the places, integer, any shape.
        circumference: places of the ring, N.

    Returns:
        Integers in [0, N/2], shape and dtype of ``offset``.

    Raises:
        ValueError: for a ring without places.

    >>> circular_hops(jnp.array([0, 1, 7, -9]), 8).tolist()
    [0, 1, 1, 1]
    """
    _check_size("circumference", circumference)
    # Not by -offset: that of an unsigned number is off by the width of its type.
    size = cast_like(circumference, offset)
    ahead = jnp.mod(offset, size)
    return jnp.minimum(ahead, size - ahead)


def circular_distance(offset: Array, circumference: int) -> Array:
    """Distance around the ring in turns, ``min(o mod N, -o mod N) / N``: at most 1/2.

    A metric of the places modulo N, the same for every roll of the ring.

    Args:
        offset: difference of the places, integer, any shape.
        circumference: places of the ring, N.

    Returns:
        Floating, the shape of ``offset``.

    Raises:
        ValueError: for a ring without places.

    >>> circular_distance(jnp.array([0, 1, 4, 7, 9]), 8).tolist()
    [0.0, 0.125, 0.5, 0.125, 0.125]
    """
    return _share(circular_hops(offset, circumference), circumference)


def linear_distance(offset: Array, circumference: int) -> Array:
    """Age in turns, ``|o| / N``: no wrap, so that the oldest token of a text is the farthest.

    Args:
        offset: difference of the places, integer, any shape.
        circumference: places of the ring, N; here the unit of age.

    Returns:
        Floating, the shape of ``offset``.

    Raises:
        ValueError: for a ring without places.

    >>> linear_distance(jnp.array([0, 1, 4, 7]), 8).tolist()
    [0.0, 0.125, 0.5, 0.875]
    """
    _check_size("circumference", circumference)
    return _share(jnp.abs(offset), circumference)


def platter_distance(offset: Array, depth: int) -> Array:
    """Distance between two platters, ``|o| / D``; the stack does not close.

    Args:
        offset: difference of the platters, integer, any shape.
        depth: number of platters, D.

    Returns:
        Floating, the shape of ``offset``.

    Raises:
        ValueError: for a stack without platters.

    >>> platter_distance(jnp.array([0, 1, -3]), 4).tolist()
    [0.0, 0.25, 0.75]
    """
    _check_size("depth", depth)
    return _share(jnp.abs(offset), depth)


def diameter(circumference: int, depth: int) -> float:
    """The largest distance between two tokens, ``floor(N/2) / N + (D - 1) / D``.

    Args:
        circumference: places of the ring, N.
        depth: number of platters, D.

    Raises:
        ValueError: for a ring without places or a stack without platters.

    >>> diameter(8, 4)
    1.25
    """
    _check_size("circumference", circumference)
    _check_size("depth", depth)
    return circumference // 2 / circumference + (depth - 1) / depth

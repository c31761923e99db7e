"""Rotary positions: queries and keys are turned by angles that grow with their position, so that
their product depends on the distance alone.
"""

import jax.numpy as jnp

from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["rotary"]


def rotary(x: Array, positions: Array, *, base: float = 10_000.0) -> Array:
    """Turn the channels of every token by its position.

    Channel j of the first half and channel j of the second half are the two coordinates of a plane
    that turns by the angle ``position / base^(2 j / c)``:

        (x_j, x_{j + c/2}) -> (x_j cos - x_{j + c/2} sin, x_j sin + x_{j + c/2} cos).

    The product of a query at m with a key at n then depends on ``m - n`` alone.

    Args:
        x: queries or keys, floating, ``[..., n, heads, c]`` with c even.
        positions: position of every token, integer or floating, ``[..., n]``.
        base: slowest wavelength in tokens, divided by 2 pi.

    Returns:
        Shape and dtype of ``x``; norms are kept. Angles are taken in float32, or in float64 for x
        in float64.

    Raises:
        ValueError: for an odd number of channels, or positions of another shape.

    Source: Su et al., RoFormer: Enhanced transformer with rotary position embedding (2021), with
    the two halves of the channels as the coordinates, in place of neighbours.

    >>> import jax.numpy as jnp
    >>> x = jnp.ones((3, 1, 2))
    >>> turned = rotary(x, jnp.arange(3))
    >>> bool(jnp.all(turned[0] == x[0]))  # position 0 does not turn
    True
    >>> bool(jnp.allclose(turned[1, 0] @ turned[2, 0], turned[0, 0] @ turned[1, 0], atol=1e-6))
    True
    """
    channels = x.shape[-1] if x.ndim else 0
    if channels == 0 or channels % 2:
        raise ValueError(f"x must have an even number of channels, got {x.shape}")
    if x.ndim < 3 or positions.shape != x.shape[:-2]:
        raise ValueError(
            f"positions must be x {x.shape} without heads and channels, got {positions.shape}"
        )
    real = at_least_float32(x.dtype)
    rates = jnp.asarray(base, real) ** (-jnp.arange(0, channels, 2, dtype=real) / channels)
    angles = positions.astype(real)[..., None, None] * jnp.expand_dims(
        rates, tuple(range(positions.ndim + 1))
    )
    cosine, sine = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(real), 2, axis=-1)
    turned = [first * cosine - second * sine, first * sine + second * cosine]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)

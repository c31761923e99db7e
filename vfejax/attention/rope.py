"""Rotary positions: queries and keys are turned by angles that grow with their position, so that
their product depends on the distance alone.

On a torus a position is (i, k): token i of a ring, platter k. Pair m of the channels turns by the
angle ``omega_m i + phi_m k``, with rates ``omega`` per token and ``phi`` per platter: an
:class:`Encoding`. :mod:`vfejax.attention.encodings` makes them.
"""

from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.attention._arguments import check_heads
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["AnglesFn", "Encoding", "rotary", "rotate", "standard_angles", "turn"]


class AnglesFn(Protocol):
    """Angles of the pairs of channels at positions of a torus."""

    def __call__(
        self, positions: Array, platters: Array, dtype: jax.typing.DTypeLike | None = None, /
    ) -> Array:
        """Angles in radians.

        Args:
            positions: place on the ring, integers ``[..., n]`` of any size and sign.
            platters: platter of each head, integers ``[h]``.
            dtype: of the angles; the default float without one.

        Returns:
            ``[..., n, h, pairs]``.
        """
        ...


class Encoding(NamedTuple):
    """How far each pair of channels turns at every position of the torus.

    Attributes:
        angles: ``angles(positions [..., n], platters [h]) -> [..., n, h, pairs]``, pure; see
            :class:`AnglesFn`.
        sequence: rates ``omega [pairs]`` in radians per token.
        depth: rates ``phi [pairs]`` in radians per platter.
    """

    angles: AnglesFn
    sequence: np.ndarray
    depth: np.ndarray


def turn(x: Array, angles: Array) -> Array:
    """Turn every pair of channels by its angle.

    Channel j of the first half and channel j of the second half are the two coordinates of a plane:

        (x_j, x_{j + c/2}) -> (x_j cos - x_{j + c/2} sin, x_j sin + x_{j + c/2} cos).

    Args:
        x: floating, ``[..., c]`` with c even.
        angles: radians, ``[..., c/2]``, with as many axes as ``x``; axes of length 1 are repeated.

    Returns:
        Shape and dtype of ``x``; norms are kept. Half precision is turned in float32.

    Raises:
        ValueError: for an odd number of channels, or angles of a shape that does not fit.

    >>> import jax.numpy as jnp
    >>> turn(jnp.array([1.0, 0.0]), jnp.array([jnp.pi / 2])).round(6).tolist()
    [-0.0, 1.0]
    """
    channels = x.shape[-1] if x.ndim else 0
    if channels == 0 or channels % 2:
        raise ValueError(f"x must have an even number of channels, got {x.shape}")
    needed = (*x.shape[:-1], channels // 2)
    if angles.ndim != x.ndim or any(
        size not in (1, full) for size, full in zip(angles.shape, needed, strict=True)
    ):
        raise ValueError(f"angles must broadcast to {needed}, got {angles.shape}")
    real = at_least_float32(x.dtype)
    cosine, sine = jnp.cos(angles).astype(real), jnp.sin(angles).astype(real)
    first, second = jnp.split(x.astype(real), 2, axis=-1)
    turned = [first * cosine - second * sine, first * sine + second * cosine]
    return jnp.concatenate(turned, axis=-1).astype(x.dtype)


def rotate(x: Array, positions: Array, encoding: Encoding, depth: int = 1) -> Array:
    """Turn queries or keys by their place on the torus.

    Platter k owns the heads ``k h/D`` to ``(k + 1) h/D - 1``. The product of a query at (i, k) with
    a key at (j, l) then depends on ``i - j`` and ``k - l`` alone.

    Args:
        x: queries or keys, floating, ``[b, n, h, c]``.
        positions: place of every token on the ring, integers ``[n]`` or ``[b, n]``.
        encoding: one for c channels, such as
            :func:`vfejax.attention.encodings.geometric`.
        depth: D, number of platters; divides h.

    Returns:
        Shape and dtype of ``x``; norms are kept. Angles are taken in float32, or in float64 for x
        in float64.

    Raises:
        ValueError: for a depth that does not divide the heads, naming those that do, and for
            positions or an encoding of another shape.

    Source: Su et al., RoFormer: Enhanced transformer with rotary position embedding (2021), with
    the two halves of the channels as the coordinates, and one more axis.

    >>> import jax.numpy as jnp
    >>> from vfejax.attention.encodings import geometric
    >>> encoding = geometric(4, circumference=6)
    >>> x = jnp.arange(24.0).reshape(1, 6, 1, 4)
    >>> here = rotate(x, jnp.arange(6), encoding)
    >>> around = rotate(x, jnp.arange(6) + 6, encoding)  # once around the ring
    >>> bool(jnp.all(here == around))
    True
    """
    check_heads("x", x, depth)
    batch, length, num_heads, channels = x.shape
    if positions.shape not in ((length,), (batch, length)):
        raise ValueError(
            f"positions must be [{length}] or [{batch}, {length}], got {list(positions.shape)}"
        )
    if encoding.sequence.shape != (channels // 2,):
        raise ValueError(
            f"encoding must be for the {channels} channels of x, got one for "
            f"{2 * encoding.sequence.size}"
        )
    angles = encoding.angles(positions, jnp.arange(depth), at_least_float32(x.dtype))
    angles = jnp.expand_dims(angles, (0, -2) if positions.ndim == 1 else -2)
    grouped = jnp.reshape(x, (batch, length, depth, num_heads // depth, channels))
    return jnp.reshape(turn(grouped, angles), x.shape)


def standard_angles(
    positions: Array, channels: int, *, base: float = 10_000.0, dtype: jax.typing.DTypeLike
) -> Array:
    """Angles ``position / base^(2 j / c)`` of the usual rotary encoding.

    Args:
        positions: integer or floating, ``[...]``.
        channels: c, even.
        base: slowest wavelength in tokens, divided by 2 pi.
        dtype: of the angles.

    Returns:
        Radians, ``[..., c/2]``.

    >>> standard_angles(jnp.array([0, 50]), 4, dtype=jnp.float32).tolist()
    [[0.0, 0.0], [50.0, 0.5]]
    """
    real = jnp.dtype(dtype)
    rates = jnp.asarray(base, real) ** (-jnp.arange(0, channels, 2, dtype=real) / channels)
    return positions.astype(real)[..., None] * jnp.expand_dims(rates, tuple(range(positions.ndim)))


def rotary(x: Array, positions: Array, *, base: float = 10_000.0) -> Array:
    """Turn the channels of every token by its position: :func:`turn` by :func:`standard_angles`.

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
    if x.ndim < 3 or positions.shape != x.shape[:-2]:
        raise ValueError(
            f"positions must be x {x.shape} without heads and channels, got {positions.shape}"
        )
    angles = standard_angles(positions, x.shape[-1], base=base, dtype=at_least_float32(x.dtype))
    return turn(x, angles[..., None, :])

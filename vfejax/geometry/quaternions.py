"""Rotations of three dimensions as unit quaternions ``q = (w, x, y, z)``: the group law in four
numbers.

``q`` and ``-q`` are one rotation. With the angle ``theta`` and the axis ``n`` it is ``(cos(theta /
2), sin(theta / 2) n)``, so that the angle is read off an arctangent of two numbers that are never
small together. Nothing is lost near ``theta = pi``, where the trace of a matrix says little about
the angle, and the antisymmetric part nothing about the axis.
"""

import math

import jax.numpy as jnp

from vfejax.numerics import as_floating, diagonal, safe_norm, sinc_sqrt
from vfejax.types import Array

__all__ = ["from_matrix", "from_rotation_vector", "product", "to_rotation_vector"]

# Coefficients of arcsin(x) / x in x^2: enough for float64 below x^2 = 0.02.
_ARCSINE = [
    math.factorial(2 * n) / (4.0**n * math.factorial(n) ** 2 * (2 * n + 1)) for n in range(9)
]


def from_rotation_vector(phi: Array) -> Array:
    """Quaternion of the rotation by ``|phi|`` radians about ``phi``; all derivatives are right at
    0.

    Args:
        phi: rotation vectors ``[..., 3]`` in radians.

    Returns:
        ``[..., 4]``.

    >>> half = from_rotation_vector(jnp.array([0.0, 0.0, jnp.pi]))
    >>> bool(jnp.allclose(half, jnp.array([0.0, 0.0, 0.0, 1.0]), atol=1e-6))
    True
    """
    phi = as_floating(phi, "phi")
    square = jnp.sum(phi * phi, axis=-1, keepdims=True)
    vector = 0.5 * sinc_sqrt(square / 4) * phi
    # cos(theta / 2) = 1 - 2 sin^2(theta / 4), analytic in the square of the angle
    return jnp.concatenate([1.0 - square / 8 * sinc_sqrt(square / 16) ** 2, vector], axis=-1)


def to_rotation_vector(quaternion: Array) -> Array:
    """Rotation vector in the principal ball ``|phi| <= pi``, inverse of
    :func:`from_rotation_vector` there; all derivatives along the unit sphere are right at 0.

    Args:
        quaternion: ``[..., 4]`` of norm 1.

    Returns:
        ``[..., 3]`` in radians. At exactly ``pi`` it is one of two opposite vectors.

    >>> (to_rotation_vector(jnp.array([0.0, 1.0, 0.0, 0.0])) / jnp.pi).round(4).tolist()
    [1.0, 0.0, 0.0]
    """
    quaternion = as_floating(quaternion, "quaternion")
    real, vector = quaternion[..., :1], quaternion[..., 1:]
    flip = jnp.where(real < 0, -1.0, 1.0).astype(quaternion.dtype)
    real, vector = flip * real, flip * vector
    square = jnp.sum(vector * vector, axis=-1, keepdims=True)
    small = square < 0.02
    series = jnp.zeros_like(square)
    for coefficient in reversed(_ARCSINE):
        series = series * square + coefficient
    sine = jnp.sqrt(jnp.where(small, 1.0, square))
    return 2.0 * vector * jnp.where(small, series, jnp.arctan2(sine, real) / sine)


def product(left: Array, right: Array) -> Array:
    """Hamilton's product: the quaternion of ``R(left) R(right)``.

    >>> i, j = jnp.eye(4)[1], jnp.eye(4)[2]
    >>> product(i, j).tolist()  # k
    [0.0, 0.0, 0.0, 1.0]
    """
    a, u = left[..., :1], left[..., 1:]
    b, v = right[..., :1], right[..., 1:]
    real = a * b - jnp.sum(u * v, axis=-1, keepdims=True)
    return jnp.concatenate([real, a * v + b * u + jnp.cross(u, v)], axis=-1)


def from_matrix(rotation: Array) -> Array:
    """Quaternion of rotation matrices, to rounding at every angle.

    The symmetric matrix ``4 q q^T`` is linear in R. The row with the largest diagonal entry, which
    is at least 1, is divided by its norm.

    Args:
        rotation: ``[..., 3, 3]``.

    Returns:
        ``[..., 4]``, of either sign.

    Source: Shepperd, Journal of Guidance and Control 1 (1978) 223.

    >>> from_matrix(jnp.diag(jnp.array([-1.0, 1.0, -1.0]))).tolist()
    [0.0, 0.0, 1.0, 0.0]
    """
    r = as_floating(rotation, "rotation")
    if r.shape[-2:] != (3, 3):
        raise ValueError(f"rotation must have shape [..., 3, 3], got {r.shape}")
    x, y, z = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    turn = [r[..., 2, 1] - r[..., 1, 2], r[..., 0, 2] - r[..., 2, 0], r[..., 1, 0] - r[..., 0, 1]]
    xy, xz, yz = (r[..., i, j] + r[..., j, i] for i, j in ((0, 1), (0, 2), (1, 2)))
    rows = [
        [1 + x + y + z, *turn],
        [turn[0], 1 + x - y - z, xy, xz],
        [turn[1], xy, 1 - x + y - z, yz],
        [turn[2], xz, yz, 1 - x - y + z],
    ]
    outer = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    largest = jnp.argmax(diagonal(outer), axis=-1)
    row = jnp.take_along_axis(outer, largest[..., None, None], axis=-2)[..., 0, :]
    return row / safe_norm(row, keepdims=True)

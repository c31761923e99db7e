"""Averages over a rotation group in its invariant (Haar) measure: random samples, exact quadrature.

The average of a representation over the group is the orthogonal projector onto what no element of
the group changes, ``P = integral U dU``. Its trace counts the invariants. So an average over
gauges keeps exactly what does not depend on the gauge.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.geometry.groups import Generators
from vfejax.geometry.transport import frames
from vfejax.numerics import identity_like, matmul, safe_norm
from vfejax.types import Array, PyTree

__all__ = [
    "Quadrature",
    "average",
    "invariant_projector",
    "sample_so",
    "sample_so3",
    "so3_quadrature",
]


class Quadrature(NamedTuple):
    """Points of a group with weights that sum to 1: coordinates ``phi [m, a]`` and ``weights
    [m]``.
    """

    phi: Array | np.ndarray
    weights: Array | np.ndarray


def sample_so3(
    key: Array, shape: tuple[int, ...] = (), dtype: jax.typing.DTypeLike = float
) -> Array:
    """Uniform random rotations of space as rotation vectors, for every irrep of SO(3).

    A normal vector of four components, divided by its length, is a uniform unit quaternion.

    Args:
        key: a key of ``jax.random``.
        shape: shape of the draws.
        dtype: real floating dtype; the default float by default.

    Returns:
        Coordinates ``[*shape, 3]`` in radians, of length at most pi. Their angle theta has density
        ``(1 - cos theta) / pi``.

    Source: Shoemake, Uniform random rotations, Graphics Gems III (1992) 124.

    >>> from vfejax.geometry import irreps
    >>> phi = sample_so3(jax.random.key(0), (1000,))
    >>> mean = frames(phi, irreps.so3((1,))).mean(axis=0)  # 0, but for 1000 samples
    >>> bool(jnp.abs(mean).max() < 0.1)
    True
    """
    quaternion = jax.random.normal(key, (*shape, 4), jnp.result_type(dtype))
    real, vector = quaternion[..., :1], quaternion[..., 1:]
    # q and -q are one rotation: that with a real part of at least 0 turns by at most pi.
    vector = jnp.where(real < 0, -vector, vector)
    length = safe_norm(vector, keepdims=True)
    angle = 2.0 * jnp.arctan2(length, jnp.abs(real))
    return vector * (angle / jnp.where(length == 0, 1.0, length))


def sample_so(
    key: Array, n: int, shape: tuple[int, ...] = (), dtype: jax.typing.DTypeLike = float
) -> Array:
    """Uniform random rotations of n dimensions as matrices.

    By the subgroup algorithm: a uniform rotation of the first m - 1 axes, followed by one that
    takes axis m to a uniform point of the sphere, for m = 2 to n. O(n^3) each, products only.

    Args:
        key: a key of ``jax.random``.
        n: dimension, at least 2.
        shape: shape of the draws.
        dtype: real floating dtype; the default float by default.

    Returns:
        ``[*shape, n, n]``, orthogonal with determinant 1.

    Raises:
        ValueError: for n below 2.

    Source: Diaconis and Shahshahani, Probability in the Engineering and Informational Sciences 1
    (1987) 15.

    >>> rotations = sample_so(jax.random.key(0), 4, (10,))
    >>> bool(jnp.allclose(rotations @ jnp.swapaxes(rotations, -1, -2), jnp.eye(4), atol=1e-5))
    True
    """
    if n < 2:
        raise ValueError(f"SO(n) needs n >= 2, got {n}")
    dtype = jnp.result_type(dtype)
    rotation = jnp.ones((*shape, 1, 1), dtype)
    for m, subkey in enumerate(jax.random.split(key, n - 1), start=2):
        point = jax.random.normal(subkey, (*shape, m), dtype)
        point = point / safe_norm(point, keepdims=True)
        fixed = jnp.pad(rotation, [(0, 0)] * len(shape) + [(0, 1), (0, 1)])
        rotation = matmul(_towards(point), fixed.at[..., -1, -1].set(1.0))
    return rotation


def _towards(point: Array) -> Array:
    """A rotation that takes the last axis to unit vectors ``point [..., m]``: the mirror between
    the two, behind a flip of the first axis.
    """
    m = point.shape[-1]
    head, last = point[..., :-1], point[..., -1:]
    # 1 - last without cancellation.
    gap = jnp.where(last > 0, jnp.sum(head * head, -1, keepdims=True) / (1.0 + last), 1.0 - last)
    normal = jnp.concatenate([-head, gap], axis=-1)
    length = safe_norm(normal, keepdims=True)
    # At the last axis itself every mirror that holds it does: the one that undoes the flip.
    first = jnp.zeros((m,), point.dtype).at[0].set(1.0).reshape((1,) * (point.ndim - 1) + (m,))
    normal = jnp.where(length == 0, first, normal / jnp.where(length == 0, 1.0, length))
    outer = normal[..., :, None] * normal[..., None, :]
    mirror = identity_like(outer) - 2.0 * outer
    flip = jnp.ones((m,), point.dtype).at[0].set(-1.0)
    return mirror * flip.reshape((1,) * point.ndim + (m,))


def _multiply(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Product of quaternions ``[..., 4]``, real part first."""
    real = p[..., :1] * q[..., :1] - np.sum(p[..., 1:] * q[..., 1:], axis=-1, keepdims=True)
    vector = p[..., :1] * q[..., 1:] + q[..., :1] * p[..., 1:] + np.cross(p[..., 1:], q[..., 1:])
    return np.concatenate([real, vector], axis=-1)


def _about(axis: int, angle: np.ndarray) -> np.ndarray:
    """Quaternions of rotations about a coordinate axis."""
    quaternion = np.zeros((*angle.shape, 4))
    quaternion[..., 0], quaternion[..., 1 + axis] = np.cos(angle / 2), np.sin(angle / 2)
    return quaternion


def so3_quadrature(max_spin: int) -> Quadrature:
    """Points and weights on SO(3) that average every matrix element of spins up to ``max_spin``
    exactly.

    In Euler angles ``R_z(alpha) R_y(beta) R_z(gamma)`` a matrix element is ``exp(-i m alpha)
    d(beta) exp(-i m' gamma)``. L + 1 equal steps of alpha and gamma average every order but 0 away.
    What is left are Legendre polynomials of cos beta, which Gauss's rule with ``floor(L / 2) + 1``
    nodes integrates exactly.

    Args:
        max_spin: the largest spin L; for a product of representations the sum of their spins.

    Returns:
        ``(L + 1)^2 (floor(L / 2) + 1)`` points as NumPy float64 constants, rotation vectors of
        length at most pi. Cast them to the precision you compute in.

    Raises:
        ValueError: when ``max_spin`` is not an integer >= 0.

    >>> points = so3_quadrature(2)
    >>> points.phi.shape, round(float(points.weights.sum()), 4)
    ((18, 3), 1.0)
    """
    if isinstance(max_spin, bool) or int(max_spin) != max_spin or max_spin < 0:
        raise ValueError(f"max_spin must be an integer >= 0, got {max_spin}")
    turns = 2 * math.pi * np.arange(max_spin + 1) / (max_spin + 1)
    nodes, weights = np.polynomial.legendre.leggauss(int(max_spin) // 2 + 1)
    alpha, beta, gamma = np.meshgrid(turns, np.arccos(nodes), turns, indexing="ij")
    quaternion = _multiply(_multiply(_about(2, alpha), _about(1, beta)), _about(2, gamma))
    quaternion = quaternion * np.where(quaternion[..., :1] < 0, -1.0, 1.0)
    length = np.linalg.norm(quaternion[..., 1:], axis=-1, keepdims=True)
    angle = 2 * np.arctan2(length, quaternion[..., :1])
    phi = quaternion[..., 1:] * np.where(length > 0, angle / np.where(length > 0, length, 1), 2.0)
    weights = np.broadcast_to(weights[None, :, None] / 2, alpha.shape) / (max_spin + 1) ** 2
    return Quadrature(phi.reshape(-1, 3), weights.reshape(-1))


def average(
    function: Callable[[Array], PyTree], points: Array, weights: Array | None = None
) -> PyTree:
    """Average of a function over points of a group.

    Args:
        function: one point, such as coordinates ``[a]`` or a matrix, to a pytree of arrays.
        points: ``[m, ...]``, random samples or the points of a quadrature.
        weights: ``[m]``, which sum to 1; 1 / m by default.

    Returns:
        A pytree like that of ``function``.

    >>> from vfejax.geometry import irreps
    >>> phi, weights = (jnp.asarray(x, jnp.float32) for x in so3_quadrature(2))
    >>> x = jnp.array([3.0, 0.0, 4.0])  # its turned copies have the second moment |x|^2 / 3
    >>> square = lambda p: jnp.outer(*2 * (frames(p, irreps.so3((1,))) @ x,))
    >>> bool(jnp.allclose(average(square, phi, weights), 25 / 3 * jnp.eye(3), atol=1e-4))
    True
    """
    values = jax.vmap(function)(points)
    if weights is None:
        return jax.tree.map(lambda v: jnp.mean(v, axis=0), values)
    return jax.tree.map(
        lambda v: jnp.tensordot(weights.astype(v.dtype), v, axes=1, precision="highest"), values
    )


def invariant_projector(representations: tuple[Generators, ...], quadrature: Quadrature) -> Array:
    """Projector onto the invariants of a tensor product of representations, ``integral U_1 (x) U_2
    (x) ... dU``.

    Args:
        representations: groups or bases of generators ``[a, k_r, k_r]`` of one algebra.
        quadrature: exact up to the sum of their spins, from :func:`so3_quadrature`.

    Returns:
        ``[k, k]`` with k the product of the k_r, symmetric and idempotent. Its trace is the number
        of invariants.

    >>> from vfejax.geometry import irreps
    >>> vector = irreps.so3((1,))
    >>> projector = invariant_projector((vector, vector), so3_quadrature(2))
    >>> round(float(jnp.trace(projector)), 4)  # the scalar product, and nothing else
    1.0
    """
    phi, weights = (jnp.asarray(x, jnp.result_type(float)) for x in quadrature)

    def product(point: Array) -> Array:
        total = jnp.ones((1, 1), point.dtype)
        for representation in representations:
            total = jnp.kron(total, frames(point, representation))
        return total

    return average(product, phi, weights)

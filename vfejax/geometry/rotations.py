"""Rotations in space by their vectors: exponential, logarithm, group law, metric, principal ball.

A rotation vector ``phi`` has the axis as its direction and the angle as its length, in radians. It
acts by ``exp(phi^a J_a)`` in any direct sum of irreps of so(3), whose generators are those of
:mod:`vfejax.geometry.irreps`: real antisymmetric with ``[J_x, J_y] = J_z`` and cyclic. Exponential
and metric are written in the square of the angle, in which they are analytic: all derivatives are
right at the identity.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.geometry import quaternions
from vfejax.geometry.groups import algebra, matrix_exponential
from vfejax.numerics import as_floating, identity_like, matmul, safe_norm, sinc_sqrt, transpose
from vfejax.types import Array, ExponentialFn

__all__ = [
    "principal_rotation",
    "rotation_angle",
    "so3_compose",
    "so3_exponential",
    "so3_logarithm",
    "so3_natural_direction",
]


def so3_exponential(max_spin: int) -> ExponentialFn:
    """Exponential for every direct sum of integer spins up to ``max_spin``, by matrix products.

    Spins up to 1: Rodrigues' formula. Spins up to 2: with ``Y = X sin(theta/2) / (theta/2)`` and
    ``x = sin^2(theta/2)``::

        exp(X) = 1 + cos(theta/2) (1 + 2x/3) Y + (1/2 + x/6) Y^2 + cos(theta/2) Y^3 / 6 + Y^4 / 24

    taken at half the angle and squared. Every coefficient is analytic in ``theta^2``, so all
    derivatives are right at ``phi = 0``. Closed forms exist for higher spins, too, but their terms
    cancel: at spin 10 nothing is left of float32. From spin 3 on this is therefore
    :func:`vfejax.geometry.groups.matrix_exponential` of angles taken modulo 4 pi.

    Measured for spins 0 to 16, the largest error of an entry is 8e-7 in float32 for angles
    up to pi and 1.5e-6 up to 2 pi, and below 3e-13 in float64, the error of the reference. At
    larger angles the rounding of the angle itself adds ``l eps |phi|``.

    Args:
        max_spin: the largest spin l in the direct sum, an integer >= 0.

    Returns:
        A function ``(phi [..., 3], generators [3, k, k]) -> [..., k, k]``. It refuses generators
        with other spins by a ValueError where their numbers are known. Where they are traced it
        returns the exponential or NaN, never another matrix.

    Raises:
        ValueError: when ``max_spin`` is not an integer >= 0.

    Source: Curtright, Fairlie, Zachos, SIGMA 10 (2014) 084, eqs. (3) and (4), for integer spin.

    >>> from vfejax.geometry.irreps import so3_generators
    >>> quarter = so3_exponential(1)(jnp.array([0.0, 0.0, jnp.pi / 2]), so3_generators((1,)))
    >>> bool(jnp.allclose(quarter[:, 0], jnp.array([0.0, 1.0, 0.0]), atol=1e-6))  # x turns to y
    True
    """
    if isinstance(max_spin, bool) or int(max_spin) != max_spin or max_spin < 0:
        raise ValueError(f"max_spin must be an integer >= 0, got {max_spin}")
    return _so3_exponential(int(max_spin))


@functools.cache
def _so3_exponential(max_spin: int) -> ExponentialFn:
    """Cached: two groups with the same spins are then one static argument to ``jax.jit``."""

    def exponential(phi: Array, generators: Array | np.ndarray) -> Array:
        phi = as_floating(phi, "phi")
        if max_spin == 2:
            phi = principal_rotation(phi)
        elif max_spin > 2:
            phi = 2.0 * principal_rotation(0.5 * phi)  # up to 2 pi, where nothing is rounded yet
        x = algebra(phi, generators)
        traced = isinstance(generators, jax.core.Tracer)
        if not traced:
            _check_rotations(generators, max_spin)
        if max_spin > 2:
            max_norm = 2 * math.pi * max_spin * math.sqrt(x.shape[-1])
            return matrix_exponential(x, max_norm=max_norm)
        generators = jnp.asarray(generators, x.dtype)
        total = (_vector_exponential if max_spin < 2 else _tensor_exponential)(phi, generators)
        return jnp.where(_represents(generators, max_spin), total, jnp.nan) if traced else total

    return exponential


def _vector_exponential(phi: Array, generators: Array) -> Array:
    """Rodrigues' formula ``1 + c_1 phi^a J_a + c_2 phi^a phi^b J_a J_b`` for spins 0 and 1.

    It is linear in nine numbers per rotation, the components of phi and their products in pairs:
    one product with a constant for the whole stack takes the place of a square per matrix.
    """
    square = jnp.sum(phi * phi, axis=-1, keepdims=True)
    half = 0.5 * sinc_sqrt(square / 4) ** 2
    first, second = np.triu_indices(3)
    # Components are taken by products with constants: so is then their gradient, and not a scatter.
    once = np.eye(3)[:, first] * np.where(first == second, 0.5, 1.0)
    pairs = matmul(phi, jnp.asarray(once, phi.dtype))
    pairs = pairs * matmul(phi, jnp.asarray(np.eye(3)[:, second], phi.dtype))
    squares = jnp.einsum("aij,bjk->abik", generators, generators, precision="highest")
    basis = jnp.concatenate([generators, squares[first, second] + squares[second, first]])
    x = algebra(jnp.concatenate([sinc_sqrt(square) * phi, half * pairs], axis=-1), basis)
    return identity_like(x) + x


def _tensor_exponential(phi: Array, generators: Array) -> Array:
    """The same for spins 0, 1 and 2 by products, from half the angle: the terms cancel less, and
    one squaring leads back.
    """
    x = algebra(phi / 2, generators)
    square = jnp.sum(phi * phi, axis=-1)[..., None, None] / 4
    half_sinc = sinc_sqrt(square / 4)
    s = square / 4 * half_sinc**2
    cosine = 1.0 - square / 8 * sinc_sqrt(square / 16) ** 2
    y = x * half_sinc
    y2 = matmul(y, y)
    quadratic = (0.5 + s / 6) * identity_like(y) + cosine / 6 * y + y2 / 24
    half = identity_like(y) + cosine * (1.0 + 2.0 / 3.0 * s) * y + matmul(y2, quadratic)
    return matmul(half, half)


def _check_rotations(generators: Array | np.ndarray, max_spin: int) -> None:
    """Refuse known generators that do not represent so(3) with integer spins up to
    ``max_spin``.
    """
    j = np.asarray(generators, np.float64)
    fits = j.shape[0] == 3 and bool(np.isfinite(j).all())
    if fits:
        floating = jnp.issubdtype(generators.dtype, jnp.floating)
        eps = float(jnp.finfo(generators.dtype if floating else float).eps)
        after, last = np.roll(j, -1, 0), np.roll(j, -2, 0)
        closure = after @ last - last @ after - j
        casimir = np.linalg.eigvals(-np.sum(j @ j, 0))
        spins = np.clip(np.round((np.sqrt(1 + 4 * np.abs(casimir)) - 1) / 2), 0, max_spin)
        miss = max(np.abs(closure).max(), np.abs(casimir - spins * (spins + 1)).max())
        fits = miss <= 32 * eps * (max_spin + 1) ** 2 * j.shape[-1]
    if not fits:
        raise ValueError(
            f"generators must represent so(3) with integer spins up to {max_spin}, and these do "
            "not; irreps.so3(spins) keeps generators and exponential together"
        )


def _represents(generators: Array, max_spin: int) -> Array:
    """Whether traced generators have spins up to ``max_spin``: ``prod_l (C - l (l + 1)) = 0`` for
    the Casimir C.
    """
    product = casimir = -jnp.sum(matmul(generators, generators), axis=0)
    for spin in range(1, max_spin + 1):
        product = matmul(product, casimir - spin * (spin + 1) * identity_like(casimir))
    size = float((max_spin + 1) ** (2 * max_spin + 2) * generators.shape[-1])
    return jnp.max(jnp.abs(product)) <= 64 * jnp.finfo(casimir.dtype).eps * size


def so3_logarithm(frame: Array, generators: Array | np.ndarray) -> Array:
    """Rotation vector of frames in any direct sum of irreps, right at every angle up to pi.

    The frame acts on its own generators, ``U J_a U^T = sum_b R_ba J_b``, and R is the rotation
    matrix itself. So the representation does not matter: at spin 2 the eigenvalues of a frame turn
    twice as fast as the rotation, and its matrix logarithm ends at ``pi / 2``.

    Args:
        frame: ``[..., k, k]``, orthogonal.
        generators: basis ``[3, k, k]`` of so(3) with ``[J_1, J_2] = J_3`` and cyclic.

    Returns:
        ``[..., 3]`` in radians, with norm at most pi; one of two opposite vectors at exactly pi,
        and 0 for generators that are all 0 (spin 0), whose frames do not depend on a rotation.

    >>> from vfejax.geometry.irreps import so3
    >>> group = so3((0, 2))
    >>> frame = group.exponential(jnp.array([0.0, 3.0, 0.0]), group.generators)
    >>> bool(jnp.allclose(so3_logarithm(frame, group.generators), jnp.array([0.0, 3.0, 0.0])))
    True
    """
    frame = as_floating(frame, "frame")
    j = jnp.asarray(generators).astype(frame.dtype)
    turned = jnp.einsum("...ij,ajk,...lk->...ail", frame, j, frame, precision="highest")
    size = jnp.sum(j * j) / 3
    rotation = jnp.einsum("...ail,bil->...ba", turned, j, precision="highest")
    rotation = jnp.where(
        size == 0, identity_like(rotation), rotation / jnp.where(size == 0, 1.0, size)
    )
    return quaternions.to_rotation_vector(quaternions.from_matrix(rotation))


def so3_compose(phi: Array, step: Array) -> Array:
    """Rotation vector of ``exp(phi . J) exp(step . J)``, in the principal ball, by quaternions.

    Args:
        phi: rotation vectors ``[..., 3]`` in radians.
        step: likewise; the leading axes broadcast.

    Returns:
        ``[..., 3]`` with norm at most pi.

    >>> quarter = jnp.pi / 2 * jnp.eye(3)
    >>> turned = so3_compose(quarter[0], quarter[1])  # by 2 pi / 3 about (1, 1, 1)
    >>> bool(jnp.allclose(turned, 2 * jnp.pi / 3 / jnp.sqrt(3.0), atol=1e-6))
    True
    """
    factors = (quaternions.from_rotation_vector(x) for x in (phi, step))
    return quaternions.to_rotation_vector(quaternions.product(*factors))


def so3_natural_direction(phi: Array, covector: Array) -> Array:
    """Steepest ascent on rotations in the bi-invariant metric that makes the generators
    orthonormal.

    Along the rotation axis the metric in coordinates is 1, across it ``sinc^2(theta / 2)``, so
    ``direction = g_parallel + g_perpendicular / sinc^2(theta / 2)``. Keep ``|phi| <= pi``
    (:func:`principal_rotation`): at ``theta = 2 pi`` the chart is singular.

    Args:
        phi: rotation vectors ``[..., 3]`` in radians.
        covector: derivative of an energy with respect to ``phi``, ``[..., 3]``.

    Returns:
        Coordinate direction ``[..., 3]``.

    >>> so3_natural_direction(jnp.array([0.0, 0.0, 1.0]), jnp.array([0.0, 0.0, 2.0])).tolist()
    [0.0, 0.0, 2.0]
    """
    phi, covector = as_floating(phi, "phi"), as_floating(covector, "covector")
    square = jnp.sum(phi * phi, axis=-1, keepdims=True)
    products = jnp.sum(phi * covector, axis=-1, keepdims=True)
    return covector + _excess(square) * (square * covector - products * phi)


def _excess(square: Array) -> Array:
    """``(1 / sinc^2(theta / 2) - 1) / theta^2`` of ``square = theta^2``: analytic at 0, so that all
    derivatives of a metric made of it are right at the identity.
    """
    small = square < 0.1
    x = jnp.where(small, square, 0.0) / 4
    series = jnp.zeros_like(square)
    for coefficient in (
        *(4 / 1403325, 1382 / 58046625, 2 / 10395, 1 / 675, 2 / 189, 1 / 15, 1 / 3),
    ):
        series = coefficient + x * series
    s = jnp.where(small, 1.0, square)
    return jnp.where(small, 0.25 * series, (1.0 / sinc_sqrt(s / 4) ** 2 - 1.0) / s)


def principal_rotation(phi: Array) -> Array:
    """Coordinates of the same rotation inside the principal ball ``|phi| <= pi``.

    The angle is taken modulo 2 pi along its axis, which leaves ``exp(phi . J)`` of every integer
    spin, and hence every transport, unchanged.

    Args:
        phi: rotation vectors ``[..., 3]`` in radians.

    Returns:
        ``[..., 3]`` with norm at most pi, up to rounding.

    >>> round(float(principal_rotation(jnp.array([0.0, 0.0, 6.0]))[2]), 3)  # 6 - 2 pi
    -0.283
    """
    phi = as_floating(phi, "phi")
    angle = safe_norm(phi, keepdims=True)
    turns = jnp.round(angle / (2 * math.pi))
    scale = jnp.where(
        turns == 0, 1.0, 1.0 - 2 * math.pi * turns / jnp.where(turns == 0, 1.0, angle)
    )
    return phi * scale


def rotation_angle(rotation: Array) -> Array:
    """Angle in [0, pi] of rotation matrices ``[..., 3, 3]``, accurate also near 0 and pi, in
    radians.

    >>> round(float(rotation_angle(jnp.diag(jnp.array([1.0, -1.0, -1.0])))), 4)
    3.1416
    """
    antisymmetric = 0.5 * (rotation - transpose(rotation))
    axis = jnp.stack(
        [antisymmetric[..., 2, 1], antisymmetric[..., 0, 2], antisymmetric[..., 1, 0]], axis=-1
    )
    return jnp.arctan2(safe_norm(axis), 0.5 * (jnp.trace(rotation, axis1=-2, axis2=-1) - 1.0))

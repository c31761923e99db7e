"""Matrix Lie groups in exponential coordinates: algebra element, exponential, structure constants,
metric.

A group is given by its generators ``J [a, k, k]``, a basis of the Lie algebra in some
representation. A frame is ``U = exp(sum_a phi^a J_a)`` with coordinates ``phi [..., a]`` (radians
for rotations).
"""

import math

import jax
import jax.numpy as jnp

from vfejax.numerics import cholesky, identity_like, matvec, transpose, triangular_inverse
from vfejax.types import Array

__all__ = [
    "algebra",
    "body_jacobian",
    "exponential",
    "inverse_metric",
    "matrix_exponential",
    "structure_constants",
]

_MAX_SQUARINGS = 16


def _matmul(left: Array, right: Array) -> Array:
    return jnp.matmul(left, right, precision="highest")


def algebra(phi: Array, generators: Array) -> Array:
    """Algebra element ``X = sum_a phi^a J_a``.

    Args:
        phi: coordinates ``[..., a]``.
        generators: basis ``[a, k, k]``.

    Returns:
        ``[..., k, k]``.

    Raises:
        ValueError: when the shapes do not fit.
    """
    if generators.ndim != 3 or generators.shape[-1] != generators.shape[-2]:
        raise ValueError(f"generators must have shape [a, k, k], got {generators.shape}")
    if phi.ndim == 0 or phi.shape[-1] != generators.shape[0]:
        raise ValueError(
            f"phi must end in one coordinate per generator ({generators.shape[0]}), got shape {phi.shape}"
        )
    return jnp.einsum("...a,akl->...kl", phi, generators.astype(phi.dtype), precision="highest")


def exponential(phi: Array, generators: Array) -> Array:
    """Group element ``exp(sum_a phi^a J_a)``, for any generators.

    For direct sums of so(3) irreps :func:`vfejax.geometry.irreps.so3_exponential` is a closed form
    that compiles and runs faster.

    Args:
        phi: coordinates ``[..., a]``.
        generators: basis ``[a, k, k]``.

    Returns:
        ``[..., k, k]``.
    """
    return matrix_exponential(algebra(phi, generators))


def matrix_exponential(x: Array) -> Array:
    """``exp(x)`` of ``x [..., k, k]`` by Taylor's series of order 16 on ``x / 2^s`` and s
    squarings.

    Products only: unlike Pade's rational form (``jax.scipy.linalg.expm``) it needs no batched LU,
    which can deadlock on CPU (:mod:`vfejax.numerics`) and compiles slowly. s is chosen per matrix
    so that ``|x / 2^s|_1`` is at most 1/2 in float64 (truncation error 2e-20) and 2 in lower
    precision (4e-10): every squaring doubles the rounding error, so none is wasted.

    Returns:
        ``[..., k, k]``; NaN where ``|x|_1`` exceeds 2^15 (2^17 in lower precision), which would
        take more squarings than are provided.

    Source: Higham, Functions of Matrices (2008), section 10.3.
    """
    norm = jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(x), axis=-2), axis=-1))[..., None, None]
    radius = 0.5 if x.dtype == jnp.float64 else 2.0
    squarings = jnp.maximum(0.0, jnp.ceil(jnp.log2(jnp.maximum(norm, radius) / radius)))
    y = x * jnp.exp2(-squarings)
    powers = [identity_like(y), y]
    for _ in range(3):
        powers.append(_matmul(powers[-1], y))
    total = powers[0] / float(math.factorial(16))
    for start in (12, 8, 4, 0):
        chunk = sum(powers[m] / float(math.factorial(start + m)) for m in range(4))
        total = _matmul(total, powers[4]) + chunk

    def square(carry: Array, step: Array) -> tuple[Array, None]:
        return jnp.where(step < squarings, _matmul(carry, carry), carry), None

    total, _ = jax.lax.scan(square, total, jnp.arange(_MAX_SQUARINGS, dtype=x.dtype))
    return jnp.where(squarings <= _MAX_SQUARINGS, total, jnp.nan)


def structure_constants(generators: Array) -> Array:
    """Structure constants ``f`` with ``[J_a, J_b] = sum_c f[a, b, c] J_c``.

    Args:
        generators: linearly independent basis ``[a, k, k]``, closed under commutators.

    Returns:
        ``[a, a, a]``, by least squares on the Gram matrix ``tr(J_a^T J_b)``; exact when the span is
        closed.
    """
    products = jnp.einsum("aij,bjk->abik", generators, generators, precision="highest")
    commutators = products - jnp.swapaxes(products, 0, 1)
    gram = jnp.einsum("aij,bij->ab", generators, generators, precision="highest")
    overlaps = jnp.einsum("abij,cij->abc", commutators, generators, precision="highest")
    return jnp.einsum("abd,dc->abc", overlaps, jnp.linalg.inv(gram), precision="highest")


def body_jacobian(phi: Array, generators: Array) -> Array:
    """Matrix T that turns coordinate velocities into body velocities.

    ``U^{-1} dU = sum_c (T(phi) dphi)^c J_c`` with ``T = (1 - exp(-ad_phi)) / ad_phi``, read off the
    exponential of a block matrix so that nothing is divided by ``ad_phi``.

    Args:
        phi: coordinates ``[..., a]``.
        generators: basis ``[a, k, k]``.

    Returns:
        ``[..., a, a]``.

    Source: Higham, Functions of Matrices (2008), section 10.7.4 (phi functions by augmentation).
    """
    num = phi.shape[-1]
    ad = jnp.einsum(
        "...a,abc->...cb",
        phi,
        structure_constants(generators).astype(phi.dtype),
        precision="highest",
    )
    top = jnp.concatenate([-ad, jnp.broadcast_to(jnp.eye(num, dtype=phi.dtype), ad.shape)], axis=-1)
    augmented = jnp.concatenate([top, jnp.zeros_like(top)], axis=-2)
    return matrix_exponential(augmented)[..., :num, num:]


def inverse_metric(phi: Array, gradient: Array, generators: Array) -> Array:
    """Natural gradient ``(T^T T)^{-1} g`` of the left-invariant metric that makes the generators
    orthonormal.

    Args:
        phi: coordinates ``[..., a]`` inside the ball where the exponential is a local
            diffeomorphism.
        gradient: derivative of an energy with respect to ``phi``, ``[..., a]``.
        generators: basis ``[a, k, k]``.

    Returns:
        Coordinate direction of steepest ascent ``[..., a]``.
    """
    jacobian = body_jacobian(phi, generators)
    inverse = triangular_inverse(cholesky(_matmul(transpose(jacobian), jacobian)))
    return matvec(transpose(inverse), matvec(inverse, gradient))

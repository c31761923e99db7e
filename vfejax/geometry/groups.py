"""Matrix Lie groups in exponential coordinates: algebra element, exponential, retraction, metric.

A group is given by its generators ``J [a, k, k]``, a basis of the Lie algebra in some
representation. A frame is ``U = exp(sum_a phi^a J_a)`` with coordinates ``phi [..., a]`` (radians
for rotations). A :class:`Group` keeps everything that belongs to one representation together.
Functions of this package accept a :class:`Group` or plain generators, which mean the general
exponential.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.numerics import (
    as_floating,
    cholesky,
    identity_like,
    matmul,
    matvec,
    transpose,
    triangular_inverse,
    triangularize,
)
from vfejax.types import Array, ExponentialFn, LogarithmFn

__all__ = [
    "Generators",
    "Group",
    "add",
    "algebra",
    "as_group",
    "body_jacobian",
    "exponential",
    "general",
    "matrix_exponential",
    "natural_direction",
    "structure_constants",
]

_MAX_SQUARINGS = 16


class Group(NamedTuple):
    """A matrix Lie group in one representation: what belongs together, kept together.

    Built by :func:`vfejax.geometry.irreps.so3`, :func:`vfejax.geometry.irreps.so` and
    :func:`general`. It is a pytree whose only leaf is ``generators``, so it passes through
    ``jax.jit`` like an array.

    Attributes:
        generators: basis of the algebra ``[a, k, k]``, real.
        exponential: ``(phi [..., a], generators) -> frames [..., k, k]``.
        retract: ``(phi [..., a], step [..., a]) -> phi [..., a]``: coordinates after a step, moved
            to equivalent ones where the chart ends.
        natural_direction: ``(phi [..., a], covector [..., a]) -> direction [..., a]``: steepest
            ascent in the left-invariant metric that makes the generators orthonormal.
        logarithm: ``(frames [..., k, k], generators) -> phi [..., a]``, inverse of the exponential
            near 0. None for :func:`vfejax.geometry.logarithms.orthogonal_logarithm`.
        compose: the group law in coordinates, ``(phi [..., a], step [..., a]) -> phi [..., a]`` of
            the frame ``exp(phi . J) exp(step . J)``. None to go through the frames
            (:func:`vfejax.geometry.logarithms.compose`).

    >>> from vfejax.geometry import irreps
    >>> group = irreps.so3((1,))
    >>> phi = group.retract(jnp.array([0.0, 0.0, 3.0]), jnp.array([0.0, 0.0, 1.0]))
    >>> round(float(phi[2]), 3)  # 4 - 2 pi
    -2.283
    """

    generators: Array | np.ndarray
    exponential: ExponentialFn
    retract: Callable[[Array, Array], Array]
    natural_direction: Callable[[Array, Array], Array]
    logarithm: LogarithmFn | None = None
    compose: Callable[[Array, Array], Array] | None = None


def _flatten_group(group: Group) -> tuple[tuple, tuple]:
    return ((jax.tree_util.GetAttrKey("generators"), group.generators),), tuple(group[1:])


jax.tree_util.register_pytree_with_keys(
    Group, _flatten_group, lambda functions, leaves: Group(*leaves, *functions)
)

Generators = Group | Array | np.ndarray


def _check_generators(generators: Array | np.ndarray) -> None:
    if generators.ndim != 3 or generators.shape[-1] != generators.shape[-2]:
        raise ValueError(f"generators must have shape [a, k, k], got {generators.shape}")
    if jnp.issubdtype(generators.dtype, jnp.complexfloating):
        raise ValueError(
            f"generators must be real, got {generators.dtype}; write a complex X as the real "
            "[[Re X, -Im X], [Im X, Re X]]"
        )


def as_group(generators: Generators) -> Group:
    """The argument itself when it is a :class:`Group`, else ``general(generators)``.

    Args:
        generators: a group, or a basis ``[a, k, k]`` of real numbers.

    Returns:
        A :class:`Group`.

    Raises:
        ValueError: when plain generators are not real ``[a, k, k]``.

    >>> from vfejax.geometry import irreps
    >>> as_group(irreps.so_generators(4)).generators.shape
    (6, 4, 4)
    """
    return generators if isinstance(generators, Group) else general(generators)


def add(phi: Array, step: Array) -> Array:
    """The plain retraction ``phi + step``, right for every group inside its chart.

    >>> add(jnp.zeros(2), jnp.ones(2)).tolist()
    [1.0, 1.0]
    """
    return phi + step


def algebra(phi: Array, generators: Generators) -> Array:
    """Algebra element ``X = sum_a phi^a J_a``.

    Args:
        phi: coordinates ``[..., a]``, real; integers count as floating numbers of the default
            precision.
        generators: basis ``[a, k, k]``, real, or a :class:`Group`.

    Returns:
        ``[..., k, k]`` in the dtype of ``phi``.

    Raises:
        ValueError: when the shapes do not fit, or an argument is complex.

    >>> from vfejax.geometry import irreps
    >>> algebra(jnp.array([2]), irreps.so_generators(2)).tolist()
    [[0.0, -2.0], [2.0, 0.0]]
    """
    generators = generators.generators if isinstance(generators, Group) else generators
    generators = jnp.asarray(generators)
    _check_generators(generators)
    phi = as_floating(phi, "phi")
    if phi.ndim == 0 or phi.shape[-1] != generators.shape[0]:
        raise ValueError(
            f"phi must end in one coordinate per generator ({generators.shape[0]}), got shape "
            f"{phi.shape}"
        )
    return jnp.einsum("...a,akl->...kl", phi, generators.astype(phi.dtype), precision="highest")


def exponential(phi: Array, generators: Generators) -> Array:
    """Group element ``exp(sum_a phi^a J_a)`` by :func:`matrix_exponential`, for any generators.

    Args:
        phi: coordinates ``[..., a]``.
        generators: basis ``[a, k, k]``, or a :class:`Group` (whose own exponential is not used:
            :func:`vfejax.geometry.transport.frames` uses it).

    Returns:
        ``[..., k, k]``.

    >>> from vfejax.geometry import irreps
    >>> quarter = exponential(jnp.array([jnp.pi / 2]), irreps.so_generators(2))
    >>> bool(jnp.allclose(quarter, jnp.array([[0.0, -1.0], [1.0, 0.0]]), atol=1e-6))
    True
    """
    return matrix_exponential(algebra(phi, generators))


def matrix_exponential(x: Array, *, max_norm: float | None = None) -> Array:
    """``exp(x)`` by Taylor's series of order 16 on ``x / 2^s`` and s squarings.

    Products only, so there is no batched LU as in Pade's rational form (see
    :mod:`vfejax.numerics`). s is chosen per matrix so that ``|x / 2^s|_1`` is at most 1/2 where the
    real part has 64 bits (truncation error 2e-20) and 2 in lower precision (4e-10): every squaring
    doubles the rounding error, so none is wasted.

    Args:
        x: ``[..., k, k]``, real or complex.
        max_norm: the largest ``|x|_1`` that can occur; it shortens the loop of squarings. By
            default 2^15 (2^17 in lower precision), which is 16 squarings.

    Returns:
        ``[..., k, k]``; NaN where ``|x|_1`` exceeds what the squarings reach.

    Raises:
        ValueError: when ``x`` is not square or not of a floating dtype.

    Source: Higham, Functions of Matrices (2008), section 10.3.

    >>> matrix_exponential(jnp.array([[0.0, 1.0], [0.0, 0.0]])).tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    if x.ndim < 2 or x.shape[-1] != x.shape[-2] or not jnp.issubdtype(x.dtype, jnp.inexact):
        raise ValueError(f"x must be floating [..., k, k], got {x.dtype} {x.shape}")
    radius = 0.5 if jnp.finfo(x.dtype).bits == 64 else 2.0
    most = _MAX_SQUARINGS
    if max_norm is not None:
        most = min(most, max(0, math.ceil(math.log2(max(max_norm, radius) / radius))))
    norm = jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(x), axis=-2), axis=-1, initial=0.0))
    norm = norm[..., None, None]
    squarings = jnp.maximum(0.0, jnp.ceil(jnp.log2(jnp.maximum(norm, radius) / radius)))
    y = x * jnp.exp2(-squarings).astype(x.dtype)
    powers = [identity_like(y), y]
    for _ in range(3):
        powers.append(matmul(powers[-1], y))
    total = powers[0] / float(math.factorial(16))
    for start in (12, 8, 4, 0):
        chunk = sum(powers[m] / float(math.factorial(start + m)) for m in range(4))
        total = matmul(total, powers[4]) + chunk

    def square(carry: Array, step: Array) -> tuple[Array, None]:
        return jnp.where(step < squarings, matmul(carry, carry), carry), None

    total, _ = jax.lax.scan(square, total, jnp.arange(most, dtype=norm.dtype))
    return jnp.where(squarings <= most, total, jnp.nan)


def structure_constants(generators: Generators) -> Array:
    """Structure constants ``f`` with ``[J_a, J_b] = sum_c f[a, b, c] J_c``.

    Args:
        generators: linearly independent basis ``[a, k, k]`` closed under commutators, or a
            :class:`Group`. All of them may be 0, as for spin 0; then so are the constants.

    Returns:
        ``[a, a, a]``, by least squares on the Gram matrix ``tr(J_a^T J_b)``; exact when the span is
        closed.

    >>> from vfejax.geometry import irreps
    >>> float(structure_constants(irreps.so3_generators((1,)))[0, 1, 2].round(4))
    1.0
    """
    generators = as_group(generators).generators
    if not isinstance(generators, jax.core.Tracer):
        # Known numbers: NumPy in float64 while the program is traced, a constant when it runs.
        j = np.asarray(generators, np.float64)
        products = np.einsum("aij,bjk->abik", j, j)
        gram, commutators = np.einsum("aij,bij->ab", j, j), products - np.swapaxes(products, 0, 1)
        overlaps = np.einsum("abij,cij->abc", commutators, j)
        constants = overlaps @ np.linalg.pinv(gram, hermitian=True)
        return jnp.asarray(constants, jnp.result_type(float))
    # One contraction: commutators as a stack of products come out NaN in places when jaxlib 0.12.0
    # compiles them for a CPU.
    traces = jnp.einsum("aij,bjk,cik->abc", generators, generators, generators, precision="highest")
    overlaps = traces - jnp.swapaxes(traces, 0, 1)
    rows = jnp.reshape(generators, (generators.shape[0], -1))
    gram = matmul(rows, rows.T)
    gram = jnp.where(jnp.trace(gram) == 0, identity_like(gram), gram)
    inverse = triangular_inverse(cholesky(gram))
    return matmul(matmul(overlaps, inverse.T), inverse)


def body_jacobian(phi: Array, generators: Generators) -> Array:
    """Matrix T that turns coordinate velocities into body velocities.

    ``U^{-1} dU = sum_c (T(phi) dphi)^c J_c`` with ``T = (1 - exp(-ad_phi)) / ad_phi``, read off the
    exponential of a block matrix so that nothing is divided by ``ad_phi``.

    Args:
        phi: coordinates ``[..., a]``.
        generators: basis ``[a, k, k]``, or a :class:`Group`.

    Returns:
        ``[..., a, a]``.

    Source: Higham, Functions of Matrices (2008), section 10.7.4 (phi functions by augmentation).

    >>> from vfejax.geometry import irreps
    >>> body_jacobian(jnp.zeros(3), irreps.so3_generators((1,))).round(4).tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    phi = as_floating(phi, "phi")
    num = phi.shape[-1]
    constants = structure_constants(generators).astype(phi.dtype)
    ad = jnp.einsum("...a,abc->...cb", phi, constants, precision="highest")
    top = jnp.concatenate([-ad, jnp.broadcast_to(jnp.eye(num, dtype=phi.dtype), ad.shape)], axis=-1)
    augmented = jnp.concatenate([top, jnp.zeros_like(top)], axis=-2)
    return matrix_exponential(augmented)[..., :num, num:]


def natural_direction(phi: Array, covector: Array, generators: Generators) -> Array:
    """Steepest ascent ``(T^T T)^{-1} g`` in the left-invariant metric that makes the generators
    orthonormal.

    Args:
        phi: coordinates ``[..., a]`` inside the ball where the exponential is a local
            diffeomorphism.
        covector: derivative of an energy with respect to ``phi``, ``[..., a]``.
        generators: basis ``[a, k, k]``, or a :class:`Group`.

    Returns:
        Coordinate direction ``[..., a]``.

    >>> from vfejax.geometry import irreps
    >>> natural_direction(jnp.zeros(3), jnp.ones(3), irreps.so3_generators((1,))).tolist()
    [1.0, 1.0, 1.0]
    """
    covector = as_floating(covector, "covector")
    jacobian = body_jacobian(phi, generators)
    inverse = triangular_inverse(triangularize(jacobian))
    return matvec(transpose(inverse), matvec(inverse, covector))


def general(generators: Array | np.ndarray, *, exponential: ExponentialFn = exponential) -> Group:
    """The group of any generators.

    Args:
        generators: basis ``[a, k, k]`` of a matrix Lie algebra, real.
        exponential: how to exponentiate, ``(phi, generators) -> frames``. By default
            :func:`exponential`.

    Returns:
        A :class:`Group` with the plain retraction ``phi + step`` and :func:`natural_direction`.

    Raises:
        ValueError: when the generators are not real ``[a, k, k]``.

    >>> import jax.scipy.linalg
    >>> from vfejax.geometry import irreps
    >>> pade = lambda phi, generators: jax.scipy.linalg.expm(algebra(phi, generators))
    >>> group = general(irreps.so_generators(4), exponential=pade)
    >>> frame = group.exponential(jnp.ones(6), group.generators)
    >>> bool(jnp.allclose(frame @ frame.T, jnp.eye(4), atol=1e-5))
    True
    """
    generators = generators if hasattr(generators, "dtype") else jnp.asarray(generators)
    _check_generators(generators)

    def direction(phi: Array, covector: Array) -> Array:
        return natural_direction(phi, covector, generators)

    return Group(generators, exponential, add, direction)

"""Generators of so(3) irreps and so(n), direct sums, and the closed-form so(3) exponential.

Conventions: real antisymmetric generators with ``[J_x, J_y] = J_z`` and cyclic. Spin l acts on the
2l + 1 real spherical harmonics in the order (cos l, sin l, cos l-1, sin l-1, ..., cos 1, sin 1, 0),
which for l = 1 is (x, y, z): there ``(J_a)_bc = -epsilon_abc`` and ``exp(theta J_z)`` turns x
towards y.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from vfejax.geometry.groups import algebra
from vfejax.numerics import identity_like, safe_norm, sinc_sqrt, transpose
from vfejax.types import Array, ExponentialFn

__all__ = [
    "direct_sum",
    "principal_rotation",
    "rotation_angle",
    "so3_exponential",
    "so3_generators",
    "so3_inverse_metric",
    "so_generators",
]


def direct_sum(*generators: np.ndarray) -> np.ndarray:
    """Block-diagonal direct sum of representations of one algebra.

    Args:
        *generators: representations ``[a, k_i, k_i]`` with the same number of generators a.

    Returns:
        ``[a, sum k_i, sum k_i]``.
    """
    counts = {block.shape[0] for block in generators}
    if len(counts) != 1:
        raise ValueError(
            f"direct_sum needs representations of one algebra, got {sorted(counts)} generators"
        )
    size = sum(block.shape[-1] for block in generators)
    total = np.zeros((counts.pop(), size, size))
    start = 0
    for block in generators:
        stop = start + block.shape[-1]
        total[:, start:stop, start:stop] = block
        start = stop
    return total


def _real_harmonics(spin: int) -> np.ndarray:
    """Columns: real spherical harmonics in the basis |m>, m = -l..l (Condon-Shortley phases)."""
    basis = np.zeros((2 * spin + 1, 2 * spin + 1), complex)
    for column, m in enumerate(range(spin, 0, -1)):
        sign = (-1) ** m
        basis[spin - m, 2 * column] = 1 / math.sqrt(2)
        basis[spin + m, 2 * column] = sign / math.sqrt(2)
        basis[spin - m, 2 * column + 1] = 1j / math.sqrt(2)
        basis[spin + m, 2 * column + 1] = -1j * sign / math.sqrt(2)
    basis[spin, -1] = 1
    return basis


def _spin_generators(spin: int) -> np.ndarray:
    m = np.arange(-spin, spin + 1)
    raising = np.diag(np.sqrt(spin * (spin + 1) - m[:-1] * (m[:-1] + 1.0)), -1)
    operators = np.stack(
        [(raising + raising.T) / 2, (raising - raising.T) / 2j, np.diag(m).astype(complex)]
    )
    basis = _real_harmonics(spin)
    return np.einsum("mi,amn,nj->aij", basis.conj(), -1j * operators, basis).real


def so3_generators(spins: Sequence[int]) -> np.ndarray:
    """Generators of the direct sum of so(3) irreps.

    Args:
        spins: integer spins l >= 0, for example ``(0, 1, 2)`` (k = 1 + 3 + 5 = 9) or ``(1, 1, 1)``
            (three vectors).

    Returns:
        NumPy float64 constants ``[3, k, k]``, k = sum of (2 l + 1); real antisymmetric, Casimir
        ``sum_a J_a^2 = -l (l + 1)`` on each block. Cast them to the precision you compute in.

    Raises:
        ValueError: for an empty list, a negative or a non-integer spin.
    """
    spins = tuple(spins)
    if not spins or any(int(spin) != spin or spin < 0 for spin in spins):
        raise ValueError(f"spins must be a non-empty sequence of integers >= 0, got {spins}")
    return direct_sum(*(_spin_generators(int(spin)) for spin in spins))


def so_generators(n: int) -> np.ndarray:
    """Generators of so(n) in the fundamental representation, one per plane i < j in lexicographic
    order.

    The generator of plane (i, j) turns axis i towards axis j. For n = 3 these are ``(J_z, -J_y,
    J_x)``.

    Args:
        n: dimension, at least 2.

    Returns:
        NumPy float64 constants ``[n (n - 1) / 2, n, n]``.
    """
    if n < 2:
        raise ValueError(f"so(n) needs n >= 2, got {n}")
    rows, columns = np.triu_indices(n, 1)
    generators = np.zeros((rows.size, n, n))
    generators[np.arange(rows.size), columns, rows] = 1.0
    generators[np.arange(rows.size), rows, columns] = -1.0
    return generators


def _truncated_power(
    series: list[float], power: int, start: list[float], order: int
) -> list[float]:
    product = np.asarray(start[: order + 1])
    for _ in range(power):
        product = np.convolve(product, series)[: order + 1]
    return [float(c) for c in product]


def _rotation_polynomials(max_spin: int) -> list[list[float]]:
    """Coefficients in x = sin^2(theta / 2) of the factor of Y^k in the closed form, k = 0..2
    max_spin.
    """
    central = [math.comb(2 * n, n) / 4**n for n in range(max_spin + 1)]
    arcsine = [c / (2 * n + 1) for n, c in enumerate(central)]
    one = [1.0] + [0.0] * max_spin
    return [
        [
            c / math.factorial(k)
            for c in _truncated_power(
                arcsine, k, central if k % 2 else one, max_spin - (k + 1) // 2
            )
        ]
        for k in range(2 * max_spin + 1)
    ]


def so3_exponential(max_spin: int) -> ExponentialFn:
    """Closed-form exponential for every direct sum of integer spins up to ``max_spin``.

    With ``X = sum_a phi^a J_a``, ``theta = |phi|``, ``Y = X sin(theta/2) / (theta/2)`` and ``x =
    sin^2(theta/2)``::

        exp(X) = sum_{k even} t_k(x) Y^k + cos(theta/2) sum_{k odd} t_k(x) Y^k,      k = 0 .. 2 max_spin

    where ``t_k`` is ``(arcsin(sqrt x) / sqrt x)^k / k!`` (times ``1 / sqrt(1 - x)`` for odd k)
    truncated after the power ``max_spin - ceil(k / 2)``. It is a polynomial that agrees with exp on
    the eigenvalues ``i m theta``, ``|m| <= max_spin``; so one polynomial serves all smaller integer
    spins. For ``max_spin = 1`` it is Rodrigues' formula. Matrix products only, and every
    coefficient is analytic in ``theta^2``: all derivatives are right at ``phi = 0``.

    Args:
        max_spin: the largest spin l in the direct sum.

    Returns:
        A function ``(phi [..., 3], generators [3, k, k]) -> [..., k, k]``.

    Source: Curtright, Fairlie, Zachos, SIGMA 10 (2014) 084, eqs. (3) and (4), for integer spin.
    """
    polynomials = _rotation_polynomials(max_spin)

    def exponential(phi: Array, generators: Array) -> Array:
        square = jnp.sum(phi * phi, axis=-1)[..., None, None]
        half_sinc = sinc_sqrt(square / 4)
        x = square / 4 * half_sinc**2
        cosine = 1.0 - square / 8 * sinc_sqrt(square / 16) ** 2
        y = algebra(phi, generators) * half_sinc
        identity = identity_like(y)
        total = jnp.zeros_like(y)
        for k in reversed(range(len(polynomials))):
            factor = jnp.zeros_like(x)
            for coefficient in reversed(polynomials[k]):
                factor = factor * x + coefficient
            factor = factor * cosine if k % 2 else factor
            last = k == len(polynomials) - 1
            total = (
                factor * identity
                if last
                else jnp.matmul(total, y, precision="highest") + factor * identity
            )
        return total

    return exponential


def principal_rotation(phi: Array) -> Array:
    """Coordinates of the same rotation inside the principal ball ``|phi| <= pi``.

    The angle is taken modulo 2 pi along its axis, which leaves ``exp(phi . J)`` of every integer
    spin, and hence every transport, unchanged.

    Args:
        phi: rotation vectors ``[..., 3]`` in radians.

    Returns:
        ``[..., 3]`` with norm at most pi.
    """
    angle = safe_norm(phi, keepdims=True)
    turns = jnp.round(angle / (2 * math.pi))
    scale = jnp.where(
        turns == 0, 1.0, 1.0 - 2 * math.pi * turns / jnp.where(turns == 0, 1.0, angle)
    )
    return phi * scale


def rotation_angle(rotation: Array) -> Array:
    """Angle in [0, pi] of rotation matrices ``[..., 3, 3]``, accurate also near 0 and pi, in
    radians.
    """
    antisymmetric = 0.5 * (rotation - transpose(rotation))
    axis = jnp.stack(
        [antisymmetric[..., 2, 1], antisymmetric[..., 0, 2], antisymmetric[..., 1, 0]], axis=-1
    )
    return jnp.arctan2(safe_norm(axis), 0.5 * (jnp.trace(rotation, axis1=-2, axis2=-1) - 1.0))


def so3_inverse_metric(phi: Array, gradient: Array) -> Array:
    """Natural gradient on rotations for the bi-invariant metric ``tr``-normalised so that the
    generators are orthonormal.

    Along the rotation axis the metric in coordinates is 1, across it ``sinc^2(theta / 2)``, so
    ``direction = g_parallel + g_perpendicular / sinc^2(theta / 2)``. Keep ``|phi| <= pi``
    (:func:`principal_rotation`): at ``theta = 2 pi`` the chart is singular.

    Args:
        phi: rotation vectors ``[..., 3]`` in radians.
        gradient: derivative of an energy with respect to ``phi``, ``[..., 3]``.

    Returns:
        Coordinate direction of steepest ascent ``[..., 3]``.
    """
    square = jnp.sum(phi * phi, axis=-1, keepdims=True)
    stretch = 1.0 / sinc_sqrt(square / 4) ** 2
    nonzero = square > 0
    along = phi * jnp.sum(phi * gradient, axis=-1, keepdims=True) / jnp.where(nonzero, square, 1.0)
    return stretch * gradient + (1.0 - stretch) * along

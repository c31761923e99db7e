"""Generators of so(3) irreps and so(n), their direct sums, and the groups that they generate.

Conventions: real antisymmetric generators with ``[J_x, J_y] = J_z`` and cyclic. Spin l acts on the
2l + 1 real spherical harmonics in the order (cos l, sin l, cos l-1, sin l-1, ..., cos 1, sin 1, 0),
which for l = 1 is (x, y, z): there ``(J_a)_bc = -epsilon_abc`` and ``exp(theta J_z)`` turns x
towards y.
"""

import math
from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from vfejax.geometry.groups import Group, general
from vfejax.geometry.rotations import (
    principal_rotation,
    rotation_angle,
    so3_compose,
    so3_exponential,
    so3_logarithm,
    so3_natural_direction,
)
from vfejax.types import Array

__all__ = [
    "direct_sum",
    "principal_rotation",
    "rotation_angle",
    "so",
    "so3",
    "so3_compose",
    "so3_exponential",
    "so3_generators",
    "so3_logarithm",
    "so3_natural_direction",
    "so_generators",
]


def direct_sum(*generators: np.ndarray) -> np.ndarray:
    """Block-diagonal direct sum of representations of one algebra.

    Args:
        *generators: representations ``[a, k_i, k_i]`` with the same number of generators a.

    Returns:
        ``[a, sum k_i, sum k_i]``.

    Raises:
        ValueError: when the numbers of generators differ.

    >>> direct_sum(so_generators(2), so_generators(2)).shape
    (1, 4, 4)
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

    >>> so3_generators((0, 1, 2)).shape
    (3, 9, 9)
    """
    spins = tuple(spins)
    if not spins or any(int(spin) != spin or spin < 0 for spin in spins):
        raise ValueError(f"spins must be a non-empty sequence of integers >= 0, got {spins}")
    return direct_sum(*(_spin_generators(int(spin)) for spin in spins))


def _spin_generators(spin: int) -> np.ndarray:
    m = np.arange(-spin, spin + 1)
    raising = np.diag(np.sqrt(spin * (spin + 1) - m[:-1] * (m[:-1] + 1.0)), -1)
    operators = np.stack(
        [(raising + raising.T) / 2, (raising - raising.T) / 2j, np.diag(m).astype(complex)]
    )
    basis = _real_harmonics(spin)
    return (basis.conj().T @ (-1j * operators) @ basis).real


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


def so_generators(n: int) -> np.ndarray:
    """Generators of so(n) in the fundamental representation, one per plane i < j in lexicographic
    order.

    The generator of plane (i, j) turns axis i towards axis j. For n = 3 these are ``(J_z, -J_y,
    J_x)``.

    Args:
        n: dimension, at least 2.

    Returns:
        NumPy float64 constants ``[n (n - 1) / 2, n, n]``.

    Raises:
        ValueError: for n below 2.

    >>> so_generators(2).tolist()
    [[[0.0, -1.0], [1.0, 0.0]]]
    """
    if n < 2:
        raise ValueError(f"so(n) needs n >= 2, got {n}")
    rows, columns = np.triu_indices(n, 1)
    generators = np.zeros((rows.size, n, n))
    generators[np.arange(rows.size), columns, rows] = 1.0
    generators[np.arange(rows.size), rows, columns] = -1.0
    return generators


def so3(spins: Sequence[int]) -> Group:
    """The rotation group in a direct sum of irreps: generators, exponential, retraction and metric
    that fit each other.

    Args:
        spins: integer spins l >= 0, for example ``(0, 1, 2)`` (k = 1 + 3 + 5 = 9).

    Returns:
        A :class:`vfejax.geometry.groups.Group` with :func:`so3_generators` and the functions of
        :mod:`vfejax.geometry.rotations`; its retraction leads into the principal ball.

    Raises:
        ValueError: for an empty list, a negative or a non-integer spin.

    >>> group = so3((0, 1, 2))
    >>> group.exponential(jnp.zeros((4, 3)), group.generators).shape
    (4, 9, 9)
    """
    return _so3_group(so3_generators(spins), max(spins))


def _so3_group(generators: np.ndarray, max_spin: int) -> Group:
    return Group(
        generators,
        so3_exponential(max_spin),
        _turn,
        so3_natural_direction,
        so3_logarithm,
        so3_compose,
    )


def so(n: int) -> Group:
    """The rotation group SO(n) in the fundamental representation.

    Args:
        n: dimension, at least 2.

    Returns:
        A :class:`vfejax.geometry.groups.Group` with :func:`so_generators`. For n = 3 its other
        parts are those of :func:`so3`; for n = 2 angles are taken modulo 2 pi; else it is the
        general group.

    Raises:
        ValueError: for n below 2.

    >>> so(4).retract(jnp.zeros(6), jnp.ones(6)).shape
    (6,)
    """
    generators = so_generators(n)
    if n == 3:
        return _so3_group(generators, 1)
    group = general(generators)
    if n == 2:
        group = group._replace(retract=_turn, logarithm=_plane_angle, compose=_turn)
    return group


def _plane_angle(frame: Array, generators: Array | np.ndarray) -> Array:
    """The angle of rotations of the plane ``[..., 2, 2]``, as ``[..., 1]``."""
    turn = jnp.asarray(generators)[0].astype(frame.dtype)
    sine = 0.5 * jnp.einsum("...ij,ij->...", frame, turn, precision="highest")
    return jnp.arctan2(sine, 0.5 * jnp.trace(frame, axis1=-2, axis2=-1))[..., None]


def _turn(phi: Array, step: Array) -> Array:
    return principal_rotation(phi + step)

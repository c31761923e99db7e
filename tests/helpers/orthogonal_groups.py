"""Orthogonal groups, their exponentials in NumPy, and random coordinates of a given angle."""

import numpy as np
import pytest

from vfejax.geometry import irreps

__all__ = ["FOUR", "GROUPS", "ROTATIONS", "coordinates", "each", "exact_frames"]

ROTATIONS = irreps.so3((0, 1, 2))
FOUR = irreps.so(4)
# Groups whose law is tested; a new orthogonal one joins by one line. Quaternions compile quickly,
# products of matrices do not: the groups of every kind but the first are for slow runs.
GROUPS = {
    "so3(0, 1, 2)": ROTATIONS,
    "so(2)": irreps.so(2),
    "so3(3)": irreps.so3((3,)),
    "so(3)": irreps.so(3),
    "so(4)": FOUR,
}


def each(*fast):
    """A test of every group, of those not named in slow runs only."""
    return pytest.mark.parametrize(
        "group",
        [
            pytest.param(group, id=name, marks=() if name in fast else pytest.mark.slow)
            for name, group in GROUPS.items()
        ],
    )


def exact_frames(phi, group):
    """Exponentials of antisymmetric matrices by their eigenvectors, in float64."""
    x = np.tensordot(np.asarray(phi, np.float64), group.generators, 1)
    values, vectors = np.linalg.eigh(1j * x)
    return np.einsum("...ij,...j,...kj->...ik", vectors, np.exp(-1j * values), vectors.conj()).real


def coordinates(rng, group, largest, num=12):
    """Coordinates whose fastest plane turns by so many radians in the defining representation."""
    phi = rng.normal(size=(num, group.generators.shape[0]))
    if phi.shape[1] <= 3:
        speed = np.linalg.norm(phi, axis=-1)
    else:
        speed = np.abs(np.linalg.eigvals(np.tensordot(phi, group.generators, 1))).max(-1)
    return largest * phi / speed[:, None]

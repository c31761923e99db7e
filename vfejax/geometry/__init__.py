"""Geometry: groups and their irreps, transport between frames, base manifolds."""

from vfejax.geometry import (
    connection,
    derivatives,
    grid,
    groups,
    haar,
    irreps,
    logarithms,
    means,
    quaternions,
    rotations,
    torus,
    transport,
)

__all__ = [
    "connection",
    "derivatives",
    "grid",
    "groups",
    "haar",
    "irreps",
    "logarithms",
    "means",
    "quaternions",
    "rotations",
    "torus",
    "transport",
]

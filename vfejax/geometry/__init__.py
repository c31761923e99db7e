"""Geometry: groups and their irreps, transport between frames, base manifolds."""

from vfejax.geometry import (
    connection,
    grid,
    groups,
    irreps,
    means,
    quaternions,
    torus,
    transport,
)

__all__ = [
    "connection",
    "grid",
    "groups",
    "irreps",
    "means",
    "quaternions",
    "torus",
    "transport",
]

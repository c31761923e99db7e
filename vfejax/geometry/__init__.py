"""Geometry: groups and their irreps, transport between frames, base manifolds."""

from vfejax.geometry import grid, groups, irreps, means, quaternions, torus, transport

__all__ = ["grid", "groups", "irreps", "means", "quaternions", "torus", "transport"]

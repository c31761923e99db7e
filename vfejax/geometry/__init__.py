"""Geometry: groups and their irreps, transport between frames, base manifolds."""

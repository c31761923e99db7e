"""Tridiagonal operators: resolvents by recursion, determinants, densities of states."""

from vfejax.spectral import (
    gates,
    mesh,
    recurrence,
    resolvent,
    scans,
    sharded,
    streaming,
    tridiagonal,
)

__all__ = [
    "gates",
    "mesh",
    "recurrence",
    "resolvent",
    "scans",
    "sharded",
    "streaming",
    "tridiagonal",
]

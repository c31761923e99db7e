"""Figures: arrays in, a matplotlib Figure out."""

from vfejax.figures import (
    ellipses,
    energies,
    fields,
    hierarchies,
    maps,
    populations,
    style,
    training,
)

__all__ = [
    "ellipses",
    "energies",
    "fields",
    "hierarchies",
    "maps",
    "populations",
    "style",
    "training",
]

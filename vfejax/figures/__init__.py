"""Figures: arrays in, a matplotlib Figure out."""

from vfejax.figures import (
    ellipses,
    energies,
    fields,
    flows,
    geometry,
    hierarchies,
    latencies,
    maps,
    phases,
    pictures,
    populations,
    series,
    spectra,
    style,
    training,
)

__all__ = [
    "ellipses",
    "energies",
    "fields",
    "flows",
    "geometry",
    "hierarchies",
    "latencies",
    "maps",
    "phases",
    "pictures",
    "populations",
    "series",
    "spectra",
    "style",
    "training",
]

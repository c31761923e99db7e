"""Figures: arrays in, a matplotlib Figure out."""

from vfejax.figures import energies, fields, maps, populations, style, training

__all__ = ["energies", "fields", "maps", "populations", "style", "training"]

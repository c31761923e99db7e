"""Figures: arrays in, a matplotlib Figure out."""

from vfejax.figures import energies, fields, populations, style, training

__all__ = ["energies", "fields", "populations", "style", "training"]

"""Quantum causal transformer: tokens are density matrices that mix and evolve."""

from vfejax.models.quantum import layers, model

__all__ = ["layers", "model"]

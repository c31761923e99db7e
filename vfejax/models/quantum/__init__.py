"""Quantum causal transformer: tokens are density matrices that mix and evolve."""

from vfejax.models.quantum import config, layers, model

__all__ = ["config", "layers", "model"]

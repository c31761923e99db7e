"""The reversible model: blocks that are kick-drift steps of learned energies."""

from vfejax.models.reversible import block, config, energies, model

__all__ = ["block", "config", "energies", "model"]

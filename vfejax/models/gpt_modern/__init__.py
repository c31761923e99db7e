"""The second reference: a causal transformer as they are built today."""

from vfejax.models.gpt_modern import model

__all__ = ["model"]

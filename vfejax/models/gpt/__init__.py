"""The reference: a causal transformer."""

from vfejax.models.gpt import model

__all__ = ["model"]

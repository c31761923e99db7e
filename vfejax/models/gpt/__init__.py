"""The reference: a causal transformer."""

from vfejax.models.gpt import config, model

__all__ = ["config", "model"]

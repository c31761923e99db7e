"""The second reference: a causal transformer as they are built today."""

from vfejax.models.gpt_modern import config, model

__all__ = ["config", "model"]

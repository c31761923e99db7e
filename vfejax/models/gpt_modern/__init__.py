"""The second reference: a causal transformer as they are built today."""

from vfejax.models.gpt_modern import block, config, model

__all__ = ["block", "config", "model"]

"""The second reference: a causal transformer of current design."""

from vfejax.models.gpt_modern import block, config, model

__all__ = ["block", "config", "model"]

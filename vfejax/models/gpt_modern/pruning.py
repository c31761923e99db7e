"""The prunable units of a modern GPT, and of models that share its block."""

from vfejax.compression.prune import Part
from vfejax.models.gpt_modern.block import BlockConfig
from vfejax.models.prunable_units import transformer

__all__ = ["structure"]


def structure(config: BlockConfig, depth: int = 1) -> dict[str, Part]:
    """Where heads, channels, hidden units and layers are in the weights.

    Args:
        config: sizes.
        depth: platters that the heads are dealt out to. The heads at the same place of each
            platter are one unit, so that platters go on matching.

    >>> from vfejax.models.gpt_modern.config import ModernGPTConfig
    >>> structure(ModernGPTConfig())["heads"].channels
    32
    """
    return transformer(config, embeddings=["tokens/embedding"], gates=1, depth=depth)

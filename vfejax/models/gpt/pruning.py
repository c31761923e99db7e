"""The prunable units of a GPT."""

from vfejax.compression.prune import Part
from vfejax.models.gpt.config import TransformerConfig
from vfejax.models.prunable_units import transformer

__all__ = ["structure"]


def structure(config: TransformerConfig) -> dict[str, Part]:
    """Where heads, channels, hidden units and layers are in the weights.

    >>> structure(TransformerConfig())["heads"].channels
    32
    """
    return transformer(config, embeddings=["tokens/embedding", "positions/embedding"])

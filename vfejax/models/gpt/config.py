"""Options of the reference transformer."""

from dataclasses import dataclass

__all__ = ["TransformerConfig"]


@dataclass(frozen=True)
class TransformerConfig:
    """A small GPT."""

    layers: int = 4
    """Number of blocks."""
    dim: int = 128
    """Width of the residual stream, a multiple of heads."""
    heads: int = 4
    """Attention heads per block."""
    hidden: int = 512
    """Width of the feed-forward layers."""
    dropout: float = 0.0
    """Share of activations that training leaves out."""

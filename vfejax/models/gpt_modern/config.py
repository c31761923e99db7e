"""Options of the modern GPT."""

from dataclasses import dataclass

__all__ = ["ModernGPTConfig"]


@dataclass(frozen=True)
class ModernGPTConfig:
    """A GPT with rotary positions, root-mean-square norms and a gated feed-forward layer."""

    layers: int = 4
    """Number of blocks."""
    dim: int = 128
    """Width of the residual stream, a multiple of heads."""
    heads: int = 4
    """Attention heads per block; the width of a head must be even."""
    hidden: int = 348
    """Width of the feed-forward layers, which have three matrices each."""
    base: float = 10_000.0
    """Slowest wavelength of the rotary positions, in tokens, divided by 2 pi."""
    dropout: float = 0.0
    """Share of activations that training leaves out."""

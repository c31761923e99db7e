"""Options of the toroidal GPT."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["ToroidalConfig"]


@dataclass(frozen=True)
class ToroidalConfig:
    """The modern GPT with attention on a torus: a ring of places times a stack of platters."""

    layers: int = 4
    """Number of blocks."""
    dim: int = 128
    """Width of the residual stream, a multiple of heads."""
    heads: int = 4
    """Attention heads per block; the width of a head must be even."""
    hidden: int = 348
    """Width of the feed-forward layers, which have three matrices each."""
    depth: int = 2
    """Number of platters that the heads are divided among, a divisor of heads; 1 for ordinary
    attention.
    """
    depth_mode: Literal["joint", "axial"] = "joint"
    """Whether a head attends to the keys of all platters, at depth times the cost, or of its own
    only.
    """
    circumference: int = 0
    """Places of the ring, after which rotary positions repeat; also the unit of distance, and the
    largest window. 0 for --length, or a little more where that is too few for the encoding.
    """
    window: int = 0
    """How many of the last tokens a head reads, its own included; 0 for the circumference."""
    distance: Literal["linear", "circular"] = "linear"
    """Whether the distance of the bias is a token's age, or the shorter way around the ring, so
    that tokens one circumference apart count as near.
    """
    encoding: Literal["geometric", "snapped", "mixed", "standard", "none"] = "geometric"
    """Rotary positions. geometric: whole turns around the ring, geometrically spaced. snapped: the
    whole turns nearest to the usual frequencies. mixed: each pair of channels is rotated by place
    and platter. standard: the usual frequencies, which are not periodic. none: no rotary positions.
    """
    base: float = 10_000.0
    """Slowest wavelength of standard and snapped rotary positions, in tokens, divided by 2 pi."""
    slopes: tuple[float, ...] = ()
    """First slopes of the distance bias, in nats per turn of the ring: one for all heads, one for
    each head of a platter, or one for each head. By default head i of h has 2^(-8 i / h) nats per
    token.
    """
    learn_slopes: bool = True
    """Whether slopes learn; they stay positive then. Fixed slopes may be 0, for no bias."""
    fusion: Literal["low-rank", "attention", "mean", "none"] = "low-rank"
    """How the outputs of the platters are mixed: by the identity plus a learned map of low rank,
    which is 0 at first; by attention among platters; by their mean; or not at all.
    """
    rank: int = 4
    """Rank of the low-rank fusion."""
    dropout: float = 0.0
    """Share of activations that training leaves out."""

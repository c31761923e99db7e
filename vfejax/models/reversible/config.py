"""Options of the reversible model."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["ReversibleConfig"]


@dataclass(frozen=True)
class ReversibleConfig:
    """Blocks that are kick-drift steps of learned energies, whose gradient needs no stored
    activations.
    """

    layers: int = 4
    """Number of blocks."""
    dim: int = 256
    """Width of the stream: one half are positions, the other momenta."""
    heads: int = 8
    """Gates per block, each with reaches and phases of its own; they divide half the width."""
    convolution: int = 4
    """Tokens that a short convolution before the gates spans; 1 for none."""
    hidden: int = 504
    """Hidden units of each of a block's two energies."""
    step_size: float = 0.5
    """Step size dt of every block at first; each learns its own."""
    gradient: Literal["reconstruct", "recompute", "store"] = "reconstruct"
    """Where the gradient takes the activations of blocks from: reconstruct them backward from the
    last output, recompute each block from its stored input, or store all.
    """
    energy_penalty: float = 0.0
    """Weight of the mean squared change of a token's energy in a block, in the loss."""
    dropout: float = 0.0
    """Share of activations that training leaves out."""

"""Options of the quantum causal transformer."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["QuantumTransformerConfig"]


@dataclass(frozen=True)
class QuantumTransformerConfig:
    """Density matrices that mix and evolve."""

    blocks: int = 2
    """Number of blocks."""
    dim: int = 16
    """Dimension d of the states, which have d^2 entries; 5 to 48 is sensible."""
    width: int = 128
    """Width of the residual stream that the values of the populations are added to."""
    hidden: int = 256
    """Width of the feed-forward layers."""
    mixing: Literal["convex", "dephasing"] = "convex"
    """How earlier tokens act on a state. convex: their states are mixed into it. dephasing: as an
    ablation, they only dephase it, which passes on no information about them.
    """
    gate: bool = False
    """Whether states of free energy |F| <= 0.236 / d (nats) skip the evolution: the loss jumps
    there, and every state's entropy is needed.
    """
    free_energy_weight: float = 0.01
    """Weight of the mean free energy in the loss."""
    measure_every: int = 16
    """Free energy, entropy, purity and coherence are means over one in this many positions; each
    measured state costs an eigendecomposition.
    """
    decohere: bool = False
    """Ablation: off-diagonal entries are zeroed before every evolution."""

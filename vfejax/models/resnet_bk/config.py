"""Options of ResNet-BK."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["ResNetBKConfig"]


@dataclass(frozen=True)
class ResNetBKConfig:
    """Resolvent (BK) recursions with a mixture of experts."""

    layers: int = 4
    """Number of blocks."""
    dim: int = 128
    """Width of the residual stream."""
    heads: int = 8
    """Operators or gates per block, each with reaches and phases of its own."""
    mixer: Literal["gate", "tridiagonal", "operator", "features", "rg-lru"] = "gate"
    """How tokens are mixed. gate: a recurrence with a complex gate, the inverse of an operator
    whose subdiagonal is computed from the tokens. tridiagonal: the same with both off-diagonals.
    operator: a resolvent whose potential is computed from the tokens, applied to vectors. features:
    the diagonal of this resolvent as features. rg-lru: a recurrence with a real gate.
    """
    convolution: int = 4
    """Tokens that a short convolution before the gates and the tridiagonal operator spans; 1 for
    none.
    """
    coupling: float = 0.25
    """Bound of the forward coupling of the tridiagonal operator, from 0 (the gate) to 1."""
    experts: int = 4
    """Feed-forward experts per block."""
    top_k: int = 1
    """Number of experts that process each token."""
    hidden: int = 128
    """Width of each expert's hidden layer."""
    router: Literal["top-k", "gumbel"] = "top-k"
    """How experts are chosen: the most probable ones, or straight-through Gumbel noise in
    training.
    """
    v_max: float = 3.0
    """Bound of the potential of operator and features, in units of energy (hoppings start at 1)."""
    feature_clamp: float = 10.0
    """Bound of the features of the features mixer, in inverse energy."""
    z_floor: float = 0.01
    """Smallest Im z of operator and features, in units of energy; the reach is about hopping / Im z
    tokens.
    """
    positions: bool = False
    """Whether to add learned positions, which limit a sequence to --length tokens."""
    tied: bool = True
    """Whether the output shares the token embedding."""
    dropout: float = 0.0
    """Share of activations that training leaves out."""
    balance_weight: float = 0.01
    """Weight of the load-balance loss (1 when experts are used evenly)."""
    router_z_weight: float = 0.001
    """Weight of the router-z loss, which keeps routing logits small."""

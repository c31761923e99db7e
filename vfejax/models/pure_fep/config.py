"""Options of the Pure-FEP transformer."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["PureFEPConfig"]


@dataclass(frozen=True)
class PureFEPConfig:
    """Layers of Gaussian agents that learn by free energy alone: no optimiser, and no gradient
    between layers.
    """

    layers: int = 3
    """Layers at the start."""
    max_layers: int = 3
    """Largest number of layers; arrays have room for so many."""
    dim: int = 144
    """Width of a belief, a multiple of the width of the irreps: the sum of 2 l + 1 over spins."""
    spins: tuple[int, ...] = (0, 0, 1, 1, 1, 2)
    """Spins of the so(3) irreps of one head. A covariance is constant on each irrep."""
    hidden: int = 752
    """Features of the map from a layer's beliefs to the priors of the next one."""
    log_variance_bound: float = 1.5
    """Bound of the log variances of priors, of both signs."""
    inference_steps: int = 2
    """Descent steps of the beliefs of a layer before it predicts."""
    self_weight: float = 1.0
    """Weight of KL(q || p) in the free energy."""
    belief_weight: float = 1.0
    """Weight of the alignment of beliefs with those of earlier tokens; each head learns a factor
    between 0 and 2.
    """
    prior_weight: float = 0.0
    """Weight of the alignment of priors with those of earlier tokens."""
    temperature: float = 1.0
    """Temperature of the attention, in nats."""
    output_temperature: float = 1.0
    """Temperature of the divergences from the bank of priors, in nats."""
    embedding: Literal["bank", "learned", "hybrid"] = "learned"
    """Prior of a token in the first layer: its Gaussian of the bank, one of its own, or the one of
    the bank moved by an offset of its own.
    """
    output: Literal["kl", "linear", "both"] = "kl"
    """Logits: divergences from the bank, a linear map of the mean, or their sum."""
    position: Literal["frame", "sinusoidal", "none"] = "frame"
    """Position encoding: in the frame of the agent, so that only distances count; by a sinusoid
    added to the first prior; or none.
    """
    tower_depth: int = 0
    """Number of ancestors whose beliefs attract a prior: 1 for the parent, 2 for the grandparent
    too. With 0 priors come from the map from below alone.
    """
    tower_weight: float = 0.25
    """Weight of KL(p || h) of the parent."""
    tower_decay: float = 0.5
    """Factor of that weight for every generation further up, at most 1."""
    nudge: float = 0.1
    """Weight of the observed token in the learning phase."""
    nudge_steps: int = 1
    """Descent steps of the beliefs towards the observation. Take more than one only with a small
    nudge.
    """
    prior_update: Literal["gradient", "average"] = "gradient"
    """How the Gaussians of tokens learn: by descent, or as moving averages of beliefs."""
    average_gain: float = 50.0
    """With averages, the Gaussian of a token moves towards the moments of the beliefs about that
    token, by this times the learning rate of the way.
    """
    scaling: Literal["plain", "fisher", "rms"] = "rms"
    """What a slow gradient is divided by: nothing, a running Fisher information of its own, or the
    root of that.
    """
    momentum: float = 0.0
    """Share of a slow direction that is kept for the next update. Its square must be below memory.
    """
    memory: float = 0.99
    """Share of the running Fisher information that is kept."""
    spawn_pressure: float = 0.0
    """A layer is added while the slope of the last layer's free energy, in the metric of its
    beliefs, exceeds this. 0 never adds one.
    """
    merge_divergence: float = 0.0
    """Two layers become one when their beliefs differ by less than this many nats per token. 0
    never merges.
    """
    cool_down: int = 200
    """Number of updates after an added layer or a merger in which neither happens again."""

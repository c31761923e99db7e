"""Options of the VFE transformer."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["VFEConfig"]


@dataclass(frozen=True)
class VFEConfig:
    """Layers of Gaussian agents that descend a variational free energy."""

    layers: int = 4
    """Number of layers, each a population of agents."""
    dim: int = 128
    """Width of the residual stream: heads x copies x components of the irreps."""
    heads: int = 4
    """Heads per layer: sets of irreps with an attention of their own."""
    group: Literal["so3", "so"] = "so3"
    """What frames turn under: rotations of space, in irreps of the given spins; or rotations of
    n axes, in vectors.
    """
    spins: tuple[int, ...] = (0, 1)
    """Spins of the irreps in one copy, for so3: spin l has 2 l + 1 components."""
    vector_dim: int = 4
    """Components of a vector, for so: n of so(n)."""
    steps: int = 1
    """Steps of inference per layer, 0 to 32; may differ from those of training."""
    step_size: float = 1.0
    """First size of the first step, in units of the natural gradient; each layer learns its own."""
    decay: float = 0.9
    """First factor from one step size to the next, at most 1; each layer learns its own."""
    trust_radius: float = 1.0
    """Longest step of one agent in one head, as a Fisher length."""
    dynamics: Literal["gradient", "hamiltonian"] = "gradient"
    """How means move: down the natural gradient; or with a velocity, a mass and friction."""
    mass: float = 1.0
    """Mass of the means, in units of their precision, for Hamiltonian dynamics."""
    friction: float = 1.0
    """Rate at which velocities decay, per unit of step size, for Hamiltonian dynamics."""
    priors: Literal["projected", "carried"] = "projected"
    """Priors of a layer: linear maps of the residual stream, to which posterior means are added;
    or the posteriors of the layer before, and at first a table of tokens.
    """
    covariance: Literal["irrep", "full", "diagonal"] = "irrep"
    """Covariances: one variance per irrep; full blocks of irreps; or, as an ablation, diagonal in
    the agent's own frame, which no rotation keeps.
    """
    covariances: Literal["evolved", "frozen"] = "evolved"
    """Whether inference moves covariances, or leaves them as the priors have them."""
    frames: Literal["identity", "frozen", "evolved"] = "identity"
    """Frames of agents: none; those of the priors; or inference moves them."""
    link: bool = True
    """Whether each head learns a matrix between the content of a receiver and its position."""
    link_start: Literal["identity", "offsets"] = "offsets"
    """First links: the identity; or turns by as many tokens as the head's number, so that a head
    looks for its own likeness so far back. Heads count from 1 where no agent reads itself, else
    from 0.
    """
    position: Literal["frame", "sinusoidal", "none"] = "frame"
    """Where positions enter: they turn the frames about one axis, so that only distances matter;
    waves are added to the embedding; or nowhere.
    """
    base: float = 100.0
    """Slowest wavelength of positions, in tokens, divided by 2 pi; at least 1."""
    turned: float = 1.0
    """Share of the copies of irreps that positions in the frame turn."""
    mean_norm: bool = True
    """Whether projected prior means have a norm in each head, as queries and keys have."""
    mean_bias: float = 0.2
    """Standard deviation of the first biases of projected prior means; 0 for no biases."""
    spread_range: float = 1.0
    """First log variances of projected priors go from minus this to this over the irreps of a
    head.
    """
    adds: Literal["mean", "change"] = "change"
    """What a layer with projected priors adds to the stream: posterior means, or how far they are
    from those of the priors.
    """
    alignment: Literal["entropic", "weighted", "saturating"] = "entropic"
    """Alignment energy: the soft minimum of divergences; their mean under the attention; or a soft
    minimum that nobody can pull far.
    """
    temperature: float = 10.0
    """First temperature of the attention in nats; each head learns its own."""
    coupling: float = 1.0
    """First weight of the alignment energy; each head learns its own."""
    window: int | None = None
    """How many of the last tokens an agent reads, its own included; by default all."""
    stride: int = 0
    """Every so many tokens back an agent reads one beyond the window; 0 for none."""
    mask_self: bool = True
    """Whether an agent does not read itself."""
    hidden: int = 400
    """Width of the gated feed-forward layers; 0 for none."""
    norm: Literal["rms", "none"] = "rms"
    """Norm of what a layer and the output read of the residual stream."""
    output: Literal["tied", "linear", "kl"] = "tied"
    """Output: the token embedding; a linear map of its own; or divergences from a bank of
    Gaussians, one for each token.
    """
    observation: float = 0.0
    """Weight in the loss of the free energy with the next tokens observed, in training only; 0 for
    none.
    """
    dropout: float = 0.0
    """Share of activations that training leaves out."""

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
    """Gauge group of the frames: so3, rotations of space on irreps of the given spins; or so,
    rotations in n dimensions on vectors.
    """
    spins: tuple[int, ...] = (0, 1)
    """Spins of the irreps in one copy, for so3: spin l has 2 l + 1 components."""
    vector_dim: int = 4
    """Components of a vector, for so: n of so(n)."""
    steps: int = 1
    """Steps of inference per layer, 0 to 32; can be changed after training."""
    step_size: float = 1.0
    """Initial value of the first step size, in units of the natural gradient; each layer learns its
    own.
    """
    decay: float = 0.9
    """Initial factor from one step size to the next, at most 1; each layer learns its own."""
    trust_radius: float = 1.0
    """Longest step of one agent in one head, as a Fisher length."""
    dynamics: Literal["gradient", "hamiltonian"] = "gradient"
    """How means move: down the natural gradient; or with a velocity, a mass and friction."""
    mass: float = 1.0
    """Mass of the means, in units of their precision, for Hamiltonian dynamics."""
    friction: float = 1.0
    """Rate at which velocities decay, per unit of step size, for Hamiltonian dynamics."""
    priors: Literal["projected", "carried"] = "projected"
    """Priors of a layer: linear maps of the residual stream, to which posterior means are added; or
    the posteriors of the layer before, and for the first layer a table with one Gaussian per token.
    """
    covariance: Literal["irrep", "full", "diagonal"] = "irrep"
    """Covariances: one variance per irrep; full blocks of irreps; or, as an ablation, diagonal in
    the agent's own frame, which rotations do not preserve.
    """
    covariances: Literal["evolved", "frozen"] = "evolved"
    """Whether inference updates covariances, or keeps those of the priors."""
    frames: Literal["identity", "frozen", "evolved"] = "identity"
    """Frames of agents: none (identity); those of the priors (frozen); or updated by inference
    (evolved).
    """
    link: bool = True
    """Whether each head learns a matrix between the content of a receiver and its position."""
    link_start: Literal["identity", "offsets"] = "offsets"
    """Initial links: the identity; or, for head number n, the rotation of n positions, so that the
    head attends to similar tokens n positions back. Heads are numbered from 1 with --vfe.mask-self,
    else from 0.
    """
    position: Literal["frame", "sinusoidal", "none"] = "frame"
    """Position encoding: rotations of the frames about one axis, so that only distances matter
    (frame); sinusoids that are added to the embedding; or none.
    """
    base: float = 100.0
    """Slowest wavelength of positions, in tokens, divided by 2 pi; at least 1."""
    turned: float = 1.0
    """Share of the copies of irreps that are rotated by positions in the frame."""
    mean_norm: bool = True
    """Whether projected prior means are normalised in each head, as queries and keys are in some
    models.
    """
    mean_bias: float = 0.2
    """Standard deviation of the initial biases of projected prior means; 0 for no biases."""
    spread_range: float = 1.0
    """Initial log variances of projected priors range from minus this to this over the irreps of a
    head.
    """
    adds: Literal["mean", "change"] = "change"
    """What a layer with projected priors adds to the stream: posterior means, or how far they are
    from those of the priors.
    """
    alignment: Literal["entropic", "weighted", "saturating"] = "entropic"
    """Alignment energy: the soft minimum of divergences; their mean under the attention; or a soft
    minimum with a limit, so that distant agents do not attract.
    """
    temperature: float = 10.0
    """Initial temperature of the attention in nats; each head learns its own."""
    coupling: float = 1.0
    """Initial weight of the alignment energy; each head learns its own."""
    window: int | None = None
    """How many of the last tokens an agent reads, its own included; by default all."""
    stride: int = 0
    """Beyond the window an agent reads one token in this many; 0 for none."""
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

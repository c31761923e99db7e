"""From the options of a VFE transformer to the rule of its inference, once the options fit."""

import functools

from vfejax.agents.alignment import ALIGNMENTS
from vfejax.models.blocks import (
    OptionError,
    check_choice,
    check_dropout,
    check_options,
    check_positive,
)
from vfejax.models.vfe import energy, irreps
from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.covariances import COVARIANCES
from vfejax.models.vfe.dynamics import Dynamics, gradient_flow, hamiltonian
from vfejax.models.vfe.energy import neighbours
from vfejax.models.vfe.inference import Rule
from vfejax.models.vfe.irreps import Layout

__all__ = ["CHOICES", "MAX_STEPS", "check", "num_copies", "rule_of"]

MAX_STEPS = 32
_MODERATE = 1e-6, 1e6  # beyond, float32 overflows in the square of a step or in its slope

CHOICES = {
    "group": ("so3", "so"),
    "dynamics": ("gradient", "hamiltonian"),
    "priors": ("projected", "carried"),
    "covariance": COVARIANCES,
    "covariances": ("evolved", "frozen"),
    "frames": ("identity", "frozen", "evolved"),
    "link_start": ("identity", "offsets"),
    "adds": ("mean", "change"),
    "position": ("frame", "sinusoidal", "none"),
    "alignment": ALIGNMENTS,
    "norm": ("rms", "none"),
    "output": ("tied", "linear", "kl"),
}


def check(config: VFEConfig) -> None:
    """Refuse options that do not fit.

    Raises:
        ValueError: naming the first such option, its value and what fits.

    >>> check(VFEConfig())
    """
    check_options(config, layers=1, dim=1, heads=1, steps=0, stride=0, hidden=0)
    check_options(config, vector_dim=2, observation=0, friction=0, mean_bias=0, spread_range=0)
    check_positive(config, "step_size", "decay", "trust_radius", "mass", "base")
    check_positive(config, "temperature", "coupling")
    check_dropout(config.dropout)
    for name, choices in CHOICES.items():
        check_choice(config, name, choices)
    _check_moderate(config)
    if config.decay > 1:
        raise OptionError("decay", config.decay, "at most 1")
    if config.spread_range > 20:
        raise OptionError("spread_range", config.spread_range, "at most 20")
    if not 0 < config.turned <= 1:
        raise OptionError("turned", config.turned, "above 0 and at most 1")
    if config.steps > MAX_STEPS:
        raise OptionError("steps", config.steps, f"at most {MAX_STEPS}")
    if not config.spins or min(config.spins) < 0:
        raise OptionError("spins", config.spins, "one spin or more, each at least 0")
    _check_turned(config)
    _check_window(config)
    num_copies(config)


def _check_moderate(config: VFEConfig) -> None:
    least, most = _MODERATE
    for name in ("step_size", "trust_radius", "mass", "temperature", "coupling"):
        value = getattr(config, name)
        if not least <= value <= most:
            raise OptionError(name, value, f"between {least:g} and {most:g}")
    for name in ("mean_bias", "observation"):
        if getattr(config, name) > most:
            raise OptionError(name, getattr(config, name), f"at most {most:g}")
    if config.base < 1:
        raise OptionError("base", config.base, "at least 1")


def _check_turned(config: VFEConfig) -> None:
    """Refuse frames and positions that would turn nothing."""
    if config.group != "so3" or max(config.spins):
        return
    if config.frames != "identity":
        raise OptionError("frames", config.frames, "identity where all spins are 0")
    if config.position == "frame":
        raise OptionError("position", "frame", "sinusoidal or none where all spins are 0")


def _check_window(config: VFEConfig) -> None:
    if config.window is not None:
        check_options(config, window=1)
    if config.stride and config.window is None:
        raise OptionError("stride", config.stride, "0 without a window, which it reaches beyond")
    if config.stride == 1:
        raise OptionError("stride", config.stride, "0 or at least 2")
    if config.window == 1 and config.mask_self and not config.stride:
        raise OptionError("window", config.window, "at least 2 where no agent reads itself")


def num_copies(config: VFEConfig) -> int:
    """Copies of the irreps in each head.

    Raises:
        ValueError: for a width that the irreps cannot give.
    """
    return irreps.num_copies(config.dim, config.heads, _components(config))


def _components(config: VFEConfig) -> int:
    if config.group == "so":
        return config.vector_dim
    return sum(2 * spin + 1 for spin in config.spins)


def _layout(config: VFEConfig) -> Layout:
    copies = num_copies(config)
    positions = config.base, config.turned
    if config.group == "so":
        return irreps.so(config.vector_dim, config.heads, copies, *positions)
    return irreps.so3(config.spins, config.heads, copies, *positions)


def _dynamics(config: VFEConfig) -> Dynamics:
    if config.dynamics == "hamiltonian":
        return hamiltonian(config.mass, config.friction)
    return gradient_flow()


@functools.cache
def rule_of(config: VFEConfig) -> Rule:
    """What is the same for all layers of a model. Cached: modules ask for it whenever they run.

    Args:
        config: options that :func:`check` accepts.

    >>> rule_of(VFEConfig(dim=32, heads=2, spins=(0, 1))).layout.copies
    4
    """
    near = neighbours(config.window, config.stride, config.mask_self)
    return Rule(
        _layout(config),
        COVARIANCES[config.covariance],
        energy.reader(config.alignment, near),
        _dynamics(config),
        moves_spread=config.covariances == "evolved",
        moves_frame=config.frames == "evolved",
        trust_radius=config.trust_radius,
    )

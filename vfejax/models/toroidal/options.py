"""From the options of a toroidal GPT to a torus and first slopes, once the options are checked."""

import math
from functools import partial

import numpy as np

from vfejax.attention.depth_fusion import FUSIONS
from vfejax.attention.encodings import ENCODINGS, snapped, standard
from vfejax.attention.frequencies import LARGEST_CIRCUMFERENCE
from vfejax.geometry.torus import circular_distance, linear_distance
from vfejax.models.blocks import (
    OptionError,
    check_choice,
    check_dropout,
    check_options,
    check_positive,
)
from vfejax.models.toroidal.config import ToroidalConfig
from vfejax.models.toroidal.torus import AXIAL, JOINT, EncodingFn, Torus

__all__ = ["DEPTH_MODES", "DISTANCES", "check", "first_slopes", "torus_of"]

DEPTH_MODES = {"joint": JOINT, "axial": AXIAL}
"""Which platters a head reads, by the name of the option."""

DISTANCES = {"linear": linear_distance, "circular": circular_distance}
"""Distances along the ring, by the name of the option."""


def _encoding(config: ToroidalConfig) -> EncodingFn | None:
    if config.encoding == "none":
        return None
    with_base: dict[str, EncodingFn] = {
        "snapped": partial(snapped, base=config.base),
        "standard": lambda channels, _, depth: standard(channels, depth, config.base),
    }
    return (ENCODINGS | with_base)[config.encoding]


def check(config: ToroidalConfig) -> None:
    """Refuse options that do not fit, whatever the length of the texts.

    Args:
        config: the options.

    Raises:
        OptionError: naming the option, its value and what it must be.

    >>> check(ToroidalConfig(heads=4, depth=3))
    Traceback (most recent call last):
    vfejax.models.blocks.OptionError: depth must be a divisor of the heads 4 (one of 1, 2, 4), got 3
    """
    check_options(config, layers=1, dim=1, heads=1, hidden=1, depth=1, rank=1)
    check_options(config, circumference=0, window=0)
    check_dropout(config.dropout)
    check_positive(config, "base")
    check_choice(config, "depth_mode", DEPTH_MODES)
    check_choice(config, "distance", DISTANCES)
    check_choice(config, "encoding", [*ENCODINGS, "none"])
    check_choice(config, "fusion", FUSIONS)
    if config.dim % (2 * config.heads):
        raise OptionError("dim", config.dim, f"a multiple of twice the heads {config.heads}")
    if config.heads % config.depth:
        valid = [str(d) for d in range(1, config.heads + 1) if config.heads % d == 0]
        needed = f"a divisor of the heads {config.heads} (one of {', '.join(valid)})"
        raise OptionError("depth", config.depth, needed)
    if config.depth > 1 and config.encoding != "none" and config.dim < 4 * config.heads:
        needed = f"at least {4 * config.heads}, 4 for each of the heads, when depth exceeds 1"
        raise OptionError("dim", config.dim, needed)


def torus_of(config: ToroidalConfig, length: int) -> Torus:
    """The torus of a model that is trained on ``length`` tokens.

    Args:
        config: checked options.
        length: the circumference, where the options leave it open and it is no less than the
            encoding needs.

    Raises:
        OptionError: for a circumference or a window that does not fit.

    >>> torus_of(ToroidalConfig(window=16), 64).window
    16
    """
    least = _least_circumference(config)
    largest = LARGEST_CIRCUMFERENCE
    circumference = config.circumference or max(length, least)
    if not least <= circumference <= largest:
        needed = f"0, or from {least} (twice the pairs of channels that turn with it) to {largest}"
        raise OptionError("circumference", config.circumference, needed)
    if config.window > circumference:
        needed = f"at most the circumference {circumference}"
        raise OptionError("window", config.window, needed)
    return Torus(
        circumference,
        config.depth,
        DEPTH_MODES[config.depth_mode],
        _encoding(config),
        DISTANCES[config.distance],
        causal=True,
        window=config.window or circumference,
    )


def _least_circumference(config: ToroidalConfig) -> int:
    """Integer numbers of turns have to be distinct: twice as many places as pairs that turn."""
    if config.encoding in ("standard", "none"):
        return 1
    channels = config.dim // config.heads
    if config.encoding == "mixed" or config.depth_mode == "axial":
        return channels
    return 2 * int(np.count_nonzero(standard(channels, config.depth).sequence))


def first_slopes(config: ToroidalConfig, circumference: int) -> tuple[float, ...]:
    """First slopes of the heads in nats per turn: ``h / D`` or ``h`` of them.

    Args:
        config: checked options.
        circumference: tokens per turn.

    Raises:
        OptionError: for another number of slopes, or negative ones.

    >>> first_slopes(ToroidalConfig(heads=4), 64)
    (16.0, 4.0, 1.0, 0.25)
    """
    heads = config.heads
    if not config.slopes:
        return tuple(circumference * 2.0 ** (-8 * (i + 1) / heads) for i in range(heads))
    valid = sorted({1, heads // config.depth, heads})
    if len(config.slopes) not in valid:
        needed = f"as many as one of {', '.join(map(str, valid))}"
        raise OptionError("slopes", config.slopes, needed)
    least = "positive" if config.learn_slopes else "not negative"
    for slope in config.slopes:
        allowed = slope > 0 or (slope == 0 and not config.learn_slopes)
        if not (allowed and math.isfinite(slope)):
            raise OptionError("slopes", config.slopes, f"{least} and finite")
    return config.slopes * heads if len(config.slopes) == 1 else config.slopes

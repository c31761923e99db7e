"""The parts of a Pure-FEP transformer: its parameters, and the alternatives that options choose."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.models.blocks import (
    OptionError,
    check_choice,
    check_options,
    check_positive,
)
from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.pure_fep.frames import sinusoids, turn_rates
from vfejax.models.pure_fep.gaussians import IrrepGaussian, Irreps, irreps
from vfejax.models.pure_fep.layer import Layer, Rules
from vfejax.models.pure_fep.prior_bank import bank_logits
from vfejax.numerics import at_least_float32, matmul
from vfejax.types import Array

__all__ = ["Anatomy", "Parameters", "Readout", "anatomy", "check", "draw_layers", "draw_parameters"]

_EMBEDDINGS = ("bank", "learned", "hybrid")
_OUTPUTS = ("kl", "linear", "both")
_POSITIONS = ("frame", "sinusoidal", "none")
_MODERATE = 1e-6, 1e6  # of weights, temperatures and nudges


class Readout(NamedTuple):
    """From a belief to logits.

    Attributes:
        bank: Gaussians of the tokens, ``[v, h, c]``; None where nothing uses them.
        prevalence: ``[v]``, log probabilities of tokens before any belief.
        weights: ``[h c, v]``, of the mean; None without a linear output.
    """

    bank: IrrepGaussian | None
    prevalence: Array
    weights: Array | None


class Parameters(NamedTuple):
    """All that is learned, and which layers there are.

    Attributes:
        table: first priors of the tokens ``[v, h, c]``; None where the bank is that.
        readout: from beliefs to logits, the same for every layer.
        layers: stacked, ``[max_layers, ...]``.
        alive: 1 for a layer that there is, 0 for room, ``[max_layers]``; not learned.
    """

    table: IrrepGaussian | None
    readout: Readout
    layers: Layer
    alive: Array


class Anatomy(NamedTuple):
    """The parts of a model.

    Attributes:
        config: its options.
        rules: numbers of its layers.
        vocab_size: number of tokens.
        length: most tokens it reads.
        dtype: that of its parameters.
        embed_fn: ``(params, tokens [b, n], positions [b, n]) -> IrrepGaussian [b, n, h, c]``: what
            the first layer makes its priors of.
        logits_fn: ``(readout, belief) -> [..., v]``.
    """

    config: PureFEPConfig
    rules: Rules
    vocab_size: int
    length: int
    dtype: jnp.dtype
    embed_fn: Callable[[Parameters, Array, Array], IrrepGaussian]
    logits_fn: Callable[[Readout, IrrepGaussian], Array]


def check(config: PureFEPConfig) -> None:
    """Refuse options that do not fit.

    Raises:
        OptionError: naming the option, its value and what it must be.

    >>> check(PureFEPConfig(dim=100))
    Traceback (most recent call last):
    vfejax.models.blocks.OptionError: dim must be a multiple of 16, the width of the irreps \
(0, 0, 1, 1, 1, 2): 96 or 112, got 100
    """
    check_options(config, layers=1, max_layers=1, dim=1, hidden=1, inference_steps=1)
    check_options(config, tower_depth=0, nudge_steps=1, cool_down=0)
    check_options(config, belief_weight=0, prior_weight=0, tower_weight=0, tower_decay=0)
    check_options(config, average_gain=0, spawn_pressure=0, merge_divergence=0)
    check_positive(config, "self_weight", "temperature", "output_temperature", "nudge")
    _check_moderate(config)
    if not 0 < config.log_variance_bound <= 20:
        value = config.log_variance_bound
        raise OptionError("log_variance_bound", value, "above 0 and at most 20")
    check_choice(config, "embedding", _EMBEDDINGS)
    check_choice(config, "output", _OUTPUTS)
    check_choice(config, "position", _POSITIONS)
    check_choice(config, "prior_update", ("gradient", "average"))
    check_choice(config, "scaling", ("plain", "fisher", "rms"))
    for name in ("momentum", "memory"):
        if not 0 <= getattr(config, name) < 1:
            raise OptionError(name, getattr(config, name), "at least 0 and below 1")
    if config.scaling != "plain" and config.momentum and config.momentum**2 >= config.memory:
        least = f"above the square of momentum {config.momentum}, or directions have no bound"
        raise OptionError("memory", config.memory, least)
    if config.layers > config.max_layers:
        raise OptionError("layers", config.layers, f"at most max_layers {config.max_layers}")
    if not config.spins or min(config.spins) < 0:
        raise OptionError("spins", config.spins, "one or more integers of at least 0")
    if config.position == "frame" and not max(config.spins):
        raise OptionError("position", "frame", "sinusoidal or none where all spins are 0")
    width = sum(2 * spin + 1 for spin in config.spins)
    if config.dim % width:
        below = config.dim // width * width
        near = f"{below} or {below + width}" if below else f"{width}"
        needed = f"a multiple of {width}, the width of the irreps {config.spins}: {near}"
        raise OptionError("dim", config.dim, needed)


def _check_moderate(config: PureFEPConfig) -> None:
    """Refuse what float32 cannot hold against terms of order 1: all of them would be NaN."""
    least, most = _MODERATE
    for name in ("self_weight", "temperature", "output_temperature", "nudge"):
        value = getattr(config, name)
        if not least <= value <= most:
            raise OptionError(name, value, f"between {least:g} and {most:g}")
    for name in ("belief_weight", "prior_weight", "tower_weight"):
        if getattr(config, name) > most:
            raise OptionError(name, getattr(config, name), f"at most {most:g}")
    if config.tower_decay > 1:
        raise OptionError("tower_decay", config.tower_decay, "at most 1")


def _embed(
    params: Parameters, tokens: Array, positions: Array, *, config: PureFEPConfig
) -> IrrepGaussian:
    """The Gaussian of every token: of the table, of the bank, or of the bank with an offset. A
    token outside the vocabulary has NaN.
    """
    own, bank = params.table, params.readout.bank
    source = bank if own is None else own
    if config.embedding == "hybrid":
        source = jax.tree.map(jnp.add, own, bank)
    chosen: IrrepGaussian = jax.tree.map(lambda x: jnp.take(x, tokens, axis=0), source)
    if config.position != "sinusoidal":
        return chosen
    wave = sinusoids(positions, config.dim).astype(chosen.mean.dtype)
    return chosen._replace(mean=chosen.mean + wave.reshape(chosen.mean.shape))


def _logits(
    readout: Readout, belief: IrrepGaussian, *, config: PureFEPConfig, kind: Irreps
) -> Array:
    """Log probabilities of the next token but for a constant."""
    logits = readout.prevalence
    if config.output != "linear":
        assert readout.bank is not None  # built so
        logits = logits + bank_logits(belief, readout.bank, kind, config.output_temperature)
    if readout.weights is not None:
        mean = belief.mean.reshape(*belief.mean.shape[:-2], -1)
        logits = logits + matmul(mean, readout.weights)
    return logits


def anatomy(
    config: PureFEPConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> Anatomy:
    """The parts that the options choose.

    Args:
        config: the options.
        vocab_size: number of tokens.
        length: most tokens that the model reads.
        dtype: of its logits; arithmetic is float32 at least.

    Raises:
        ValueError: for options that do not fit, naming the option.
    """
    check(config)
    for name, value in (("vocab_size", vocab_size), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    kind = irreps(config.spins)
    heads = config.dim // kind.member.shape[1]
    rates = turn_rates(heads, length)
    if config.position != "frame":
        rates = np.zeros_like(rates)
    dtype = at_least_float32(dtype)
    rules = Rules(
        kind,
        rates,
        self_weight=config.self_weight,
        belief_weight=config.belief_weight,
        prior_weight=config.prior_weight,
        temperature=config.temperature,
        steps=config.inference_steps,
        log_variance_bound=config.log_variance_bound,
    )

    def embed_fn(params: Parameters, tokens: Array, positions: Array) -> IrrepGaussian:
        return _embed(params, tokens, positions, config=config)

    def logits_fn(readout: Readout, belief: IrrepGaussian) -> Array:
        return _logits(readout, belief, config=config, kind=kind)

    return Anatomy(config, rules, vocab_size, length, dtype, embed_fn, logits_fn)


def draw_layers(key: Array, parts: Anatomy) -> Layer:
    """First parameters of all layers, stacked: maps that change little, frames that turn little,
    and heads that prefer the distances 1, 2, 3, ... in turn.
    """
    config, (irreps_per_head, width) = parts.config, parts.rules.kind.member.shape
    count, heads, dtype = config.max_layers, config.dim // width, parts.dtype
    expand, contract, frames = jax.random.split(key, 3)

    def normal(key: Array, scale: float, *shape: int) -> Array:
        return scale * jax.random.normal(key, (count, *shape), dtype)

    distance = jnp.arange(parts.length)[None] - jnp.arange(heads)[:, None]
    links = -jnp.minimum(jnp.abs(distance), 6).astype(dtype)
    return Layer(
        normal(expand, (2.0 / config.dim) ** 0.5, config.dim, config.hidden),
        jnp.zeros((count, config.hidden), dtype),
        normal(contract, 0.02, config.hidden, heads * (width + irreps_per_head)),
        jnp.zeros((count, heads, irreps_per_head), dtype),
        jnp.zeros((count, heads), dtype),
        jnp.tile(links, (count, 1, 1)),
        normal(frames, 0.01, parts.vocab_size, heads, 3),
    )


def draw_parameters(key: Array, parts: Anatomy) -> Parameters:
    """First parameters: Gaussians of variance 1 about means near 0."""
    config, (irreps_per_head, width) = parts.config, parts.rules.kind.member.shape
    heads, dtype, vocab = config.dim // width, parts.dtype, parts.vocab_size
    layers, table, bank, linear = jax.random.split(key, 4)

    def gaussians(key: Array) -> IrrepGaussian:
        mean = 0.3 * jax.random.normal(key, (vocab, heads, width), dtype)
        return IrrepGaussian(mean, jnp.zeros((vocab, heads, irreps_per_head), dtype))

    needs_bank = config.embedding != "learned" or config.output != "linear"
    weights = None
    if config.output != "kl":
        weights = 0.02 * jax.random.normal(linear, (config.dim, vocab), dtype)
    readout = Readout(gaussians(bank) if needs_bank else None, jnp.zeros(vocab, dtype), weights)
    alive = jnp.arange(config.max_layers) < config.layers
    return Parameters(
        None if config.embedding == "bank" else gaussians(table),
        readout,
        draw_layers(layers, parts),
        alive.astype(dtype),
    )

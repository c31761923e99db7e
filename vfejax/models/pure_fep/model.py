"""Pure-FEP transformer: layers of Gaussian agents that perceive by fast descent of a free energy
and learn by its slow descent, without an optimiser and without gradients between layers.

    z_i = Gaussian of token i                                    table, bank of priors, or both
    per layer:
        p_i <- learned map of the belief below, drawn to ancestors' beliefs
        q_i <- argmin of F_i: between p_i and the transported beliefs of earlier tokens
    logits_v = -KL(q_i || pi_v) / temperature + log prevalence_v

Perception is here, learning in :mod:`vfejax.models.pure_fep.trainer`. With a tower of priors the
layers are visited twice: the beliefs of the first visit are what the ancestors say in the second.
Decoding keeps the beliefs with which every earlier token began each layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.models.protocol import packed_batch, positions_of, unpacked, unpacked_layers
from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.pure_fep.frames import from_common
from vfejax.models.pure_fep.gaussians import IrrepGaussian
from vfejax.models.pure_fep.growth import passed_on
from vfejax.models.pure_fep.layer import (
    Ancestors,
    Surroundings,
    descend,
    frames_of,
    layer_prior,
)
from vfejax.models.pure_fep.parameters import Anatomy, Parameters, anatomy, draw_parameters
from vfejax.types import Array, Batch, Layers, Maps, Prediction, PyTree, SequenceModel

__all__ = [
    "Memory",
    "Perception",
    "PureFEPConfig",
    "ancestor_weights",
    "build",
    "maps",
    "perceive",
    "surroundings",
]


class Memory(NamedTuple):
    """Beliefs in the common frame with which earlier tokens began each layer of each visit,
    ``[visits, layers, b, length, h, c]``, and the number of tokens read.
    """

    senders: IrrepGaussian
    position: Array


class Perception(NamedTuple):
    """What the layers believe.

    Attributes:
        last: belief of the last layer in its own frames, ``[b, n, h, c]``.
        common: beliefs of all layers in the common frame, ``[l, b, n, h, c]``.
        attention: of the last step of every layer, ``[l, b, h, n, m]``.
        senders: what later tokens read of these, ``[l, b, m, h, c]``.
        ancestors: beliefs of all layers before their priors were drawn to them; None without a
            tower.
        hidden: means of what each layer passes on, ``[l, b, n, h c]``; None unless it is watched.
    """

    last: IrrepGaussian
    common: IrrepGaussian
    attention: Array
    senders: IrrepGaussian
    ancestors: IrrepGaussian | None
    hidden: Array | None = None


def ancestor_weights(alive: Array, config: PureFEPConfig) -> Array:
    """Weight of each layer's belief (columns) in the prior of each layer (rows), ``[l, l]``.

    The parent is the next living layer above, with ``tower_weight``; every generation further up
    counts ``tower_decay`` times as much, and ``tower_depth`` generations do.

    Args:
        alive: ``[l]``.
        config: the options.

    >>> config = PureFEPConfig(tower_depth=2, tower_weight=0.5, tower_decay=0.5)
    >>> ancestor_weights(jnp.array([1.0, 0.0, 1.0, 1.0]), config)[0].tolist()
    [0.0, 0.0, 0.5, 0.25]
    """
    rank = jnp.cumsum(alive)
    generation = rank[None, :] - rank[:, None] - 1.0
    counts = (generation >= 0) & (generation < config.tower_depth) & (alive > 0)[None, :]
    decay = jnp.power(config.tower_decay, jnp.maximum(generation, 0.0))
    return jnp.where(counts, config.tower_weight * decay, 0.0).astype(alive.dtype)


def surroundings(tokens: Array, positions: Array) -> Surroundings:
    """Where tokens ``[b, n]`` that are read at once stand, at positions ``[b | 1, n]``."""
    place = jnp.arange(tokens.shape[1], dtype=jnp.int32)
    return Surroundings(
        tokens, jnp.broadcast_to(positions, tokens.shape), place[:, None] - place[None, :]
    )


def _stored(old: IrrepGaussian, new: IrrepGaussian, position: Array) -> IrrepGaussian:
    """Senders with one more at ``position``."""
    return jax.tree.map(
        lambda x, y: jax.lax.dynamic_update_slice_in_dim(x, y, position, axis=1), old, new
    )


def _visit(
    parts: Anatomy,
    params: Parameters,
    around: Surroundings,
    ancestors: IrrepGaussian | None,
    memory: tuple[IrrepGaussian, Array] | None,
    watched: bool,
) -> Perception:
    """One way up through the layers."""
    rules = parts.rules
    weights = ancestor_weights(params.alive, parts.config)

    def step(below: IrrepGaussian, inputs: PyTree) -> tuple[IrrepGaussian, PyTree]:
        layer, alive, weight, past = inputs
        above = None if ancestors is None else Ancestors(ancestors, weight)
        prior = layer_prior(layer, below, around, above, rules)
        senders = prior if memory is None else _stored(past, prior, memory[1])
        common, attention = descend(layer, prior, senders, around, rules)
        belief = from_common(common, frames_of(layer, around, rules), rules.kind)
        after = passed_on(alive, belief, below)
        hidden = after.mean.reshape(*after.mean.shape[:2], -1) if watched else None
        return after, (common, attention, senders, hidden)

    first = parts.embed_fn(params, around.tokens, around.positions)
    past = None if memory is None else memory[0]
    inputs = params.layers, params.alive, weights, past
    last, (common, attention, senders, hidden) = jax.lax.scan(step, first, inputs)
    return Perception(last, common, attention, senders, ancestors, hidden)


def perceive(
    parts: Anatomy,
    params: Parameters,
    around: Surroundings,
    memory: Memory | None = None,
    *,
    watched: bool = False,
) -> tuple[Perception, Memory | None]:
    """Beliefs about tokens, by descent of the free energy alone.

    Args:
        parts: the model.
        params: what it has learned.
        around: the tokens and where they stand.
        memory: of the tokens before; None when there are none.
        watched: whether to say what each layer passes on.

    Returns:
        The beliefs of the last visit, and the memory with these tokens.
    """
    visits = 2 if parts.config.tower_depth else 1
    seen, ancestors, stored = None, None, []
    for visit in range(visits):
        past = None
        if memory is not None:
            past = jax.tree.map(lambda x, visit=visit: x[visit], memory.senders), memory.position
        seen = _visit(parts, params, around, ancestors, past, watched)
        ancestors = seen.common
        stored.append(seen.senders)
    assert seen is not None  # there is one visit at least
    if memory is None:
        return seen, None
    senders = jax.tree.map(lambda *x: jnp.stack(x), *stored)
    return seen, Memory(senders, memory.position + around.tokens.shape[1])


def build(
    config: PureFEPConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """A Pure-FEP transformer over ``vocab_size`` tokens.

    Args:
        config: see :class:`vfejax.models.pure_fep.config.PureFEPConfig`.
        vocab_size: number of tokens.
        length: most tokens of a sequence.
        dtype: that of the logits: float32, float64 or bfloat16. Arithmetic is float32 at least.

    Raises:
        ValueError: for options that do not fit, naming the option.

    >>> model = build(PureFEPConfig(layers=1, max_layers=1, dim=16, hidden=8), 5, length=6)
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.zeros((2, 6), jnp.int32)).logits.shape
    (2, 6, 5)
    """
    parts = anatomy(config, vocab_size, length, dtype)

    def init(key: Array) -> Parameters:
        return draw_parameters(key, parts)

    def apply(params: Parameters, batch: Batch | Array, key: Array | None = None) -> Prediction:
        return forward(params, batch, watched=False)[0]

    def watch(
        params: Parameters, batch: Batch | Array, key: Array | None = None
    ) -> tuple[Prediction, Layers]:
        return forward(params, batch, watched=True)

    def forward(
        params: Parameters, batch: Batch | Array, *, watched: bool
    ) -> tuple[Prediction, Any]:
        batch, packed = packed_batch(batch, length)
        around = surroundings(batch.tokens, positions_of(batch))
        seen, _ = perceive(parts, params, around, watched=watched)
        logits = parts.logits_fn(params.readout, seen.last).astype(dtype)
        prediction = Prediction(unpacked(logits, packed), {}, {})
        hidden = seen.hidden
        layers = None if hidden is None else unpacked_layers(Layers(hidden), packed)
        return prediction, layers

    def init_decode(params: Parameters, batch_size: int) -> Memory:
        visits = 2 if config.tower_depth else 1
        irreps_per_head, width = parts.rules.kind.member.shape
        shape = (visits, config.max_layers, batch_size, length, config.dim // width)
        nobody = IrrepGaussian(
            jnp.zeros((*shape, width), parts.dtype),
            jnp.zeros((*shape, irreps_per_head), parts.dtype),
        )
        return Memory(nobody, jnp.zeros((), jnp.int32))

    def decode(params: Parameters, state: Memory, tokens: Array) -> tuple[Array, Memory]:
        lags = state.position - jnp.arange(length, dtype=jnp.int32)[None, :]
        positions = jnp.broadcast_to(state.position, (tokens.shape[0], 1))
        around = Surroundings(tokens[:, None], positions, lags)
        seen, memory = perceive(parts, params, around, state)
        assert memory is not None  # one was given
        return parts.logits_fn(params.readout, seen.last)[:, 0].astype(dtype), memory

    return SequenceModel(init, apply, init_decode, decode, length, config=config, watch=watch)


def maps(
    config: PureFEPConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> Maps:
    """How far back the heads of every layer look.

    Args:
        config, vocab_size, length, dtype: as :func:`build` takes them.

    Returns:
        Panels ``[h, length - 1]`` by name: mean attention of the last token of a text by distance.
    """
    parts = anatomy(config, vocab_size, length, dtype)

    def values(params: Parameters, tokens: Array) -> dict[str, Array]:
        around = surroundings(tokens, jnp.arange(tokens.shape[1], dtype=jnp.int32)[None])
        attention = perceive(parts, params, around)[0].attention[:, :, :, -1, :-1]
        mean = jnp.mean(attention, axis=1)[..., ::-1]
        return {f"layer {i}": mean[i] * params.alive[i] for i in range(config.max_layers)}

    return Maps(
        values,
        name="attention",
        title="Where agents look",
        caption=(
            "Attention that the last agent of a window of the validation text gives to each agent "
            "before it, by head; mean over windows. Grey: not read."
        ),
        xlabel="tokens back, less 1",
        ylabel="head",
        label="mean attention",
        columns=2,
    )

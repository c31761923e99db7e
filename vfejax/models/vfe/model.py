"""VFE transformer: every layer is a population of Gaussian agents, one token each, that descends a
variational free energy; its attention is that of the energy.

    p_i: linear maps of the normalised stream, or the posterior of the layer before
    q_i <- p_i
    steps times:  every agent reads what its predecessors believe now, and descends
                  F_i = KL(q_i || p_i) + sum_h lambda_h E_h({KL(q_i || Omega_ij q_j)}_{j <= i})
    x_i <- x_i + W_o (mean of q_i - mean of p_i),  then a gated feed-forward layer
    logits = from norm(x): the token embedding, a linear map, or divergences from a bank

The mathematics stands in modules without flax: :mod:`vfejax.models.vfe.beliefs` (divergences as
products of rows), :mod:`vfejax.models.vfe.energy` and :mod:`vfejax.models.vfe.inference`. No weight
depends on the number of steps, which may differ between training and use.

**Observation.** With ``observation > 0`` and the targets of a batch, training goes on after the
predictions are made (:mod:`vfejax.models.vfe.observation`).

**Decoding** keeps the senders' rows of every layer and step. With a window and no stride it is a
ring buffer, and a text may have any length.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.blocks import Stack
from vfejax.models.intermediates import Watched, WatchFn
from vfejax.models.protocol import positions_of, pure
from vfejax.models.vfe import inference, irreps
from vfejax.models.vfe.beliefs import Belief, Transport
from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.embeddings import EMBEDDINGS
from vfejax.models.vfe.energy import Places
from vfejax.models.vfe.inference import Info, Rule
from vfejax.models.vfe.layers import LAYERS
from vfejax.models.vfe.observation import Held, observed_free_energy
from vfejax.models.vfe.options import check, rule_of
from vfejax.models.vfe.readout import READOUTS
from vfejax.models.vfe.statistics import summary, sums_of
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Batch, Prediction, PyTree, SequenceModel

__all__ = [
    "Memory",
    "VFEConfig",
    "VFETransformer",
    "build",
    "creator",
    "with_steps",
]

_NOWHERE = jnp.iinfo(jnp.int32).max // 2  # after every token, so nobody reads what stands there


class Memory(NamedTuple):
    """What decoding remembers.

    Attributes:
        rows: of senders at every layer and step, ``[layers, steps, b, slots, heads, r]``.
        places: where the token of each slot stands, ``[slots]``.
        position: tokens read so far.
    """

    rows: Array
    places: Array
    position: Array


class VFETransformer(Watched):
    """The weights of a VFE transformer, and what it computes with them; :func:`build` checks the
    options.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        length: the most tokens that its memory holds, where it must hold all.
        dtype: that of the stream: float32, float64 or bfloat16. Beliefs are at least float32.
        rngs: where first weights come from.
    """

    def __init__(
        self,
        config: VFEConfig,
        vocab_size: int,
        length: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        window = config.window if config.stride == 0 else None
        self.config, self.dtype = config, dtype
        self.max_length = length if window is None else None
        self.slots = length if window is None else window
        layer = LAYERS[config.priors]
        self.stream = layer.stream
        self.embed = EMBEDDINGS[config.priors](config, vocab_size, dtype=dtype, rngs=rngs)
        self.blocks = Stack(
            lambda rngs: layer(config, dtype=dtype, rngs=rngs), config.layers, rngs=rngs
        )
        self.readout = READOUTS[config.output](config, vocab_size, dtype=dtype, rngs=rngs)

    @property
    def rule(self) -> Rule:
        """What is the same for all layers."""
        return rule_of(self.config)

    def turn(self, positions: Array) -> irreps.Phases | None:
        """How far the places ``[b | 1, n]`` turn frames; None where they do not."""
        if self.config.position != "frame":
            return None
        return irreps.phases(self.rule.layout, positions, at_least_float32(self.dtype))

    def infer(
        self, block: Any, carry: PyTree, turn: irreps.Phases | None, places: Places, **options: Any
    ) -> tuple[Belief, Belief, Info, PyTree]:
        """Prior, posterior, info of every step, and memory of a layer.

        Args:
            block: the layer.
            carry: what it is given.
            turn: how far positions turn.
            places: of receivers and senders.
            **options: further ones of :func:`vfejax.models.vfe.inference.infer`.
        """
        prior = block.prior(carry)
        posterior, info, memory = inference.infer(
            prior,
            block.transport(turn),
            block.strength(),
            places,
            self.rule,
            steps=self.config.steps,
            **options,
        )
        return prior, posterior, info, memory

    def _logits(self, carry: PyTree) -> Array:
        return self.readout(self.stream(carry, self.dtype), self.embed)

    def _forward(
        self, batch: Batch, key: Array | None, watch_fn: WatchFn
    ) -> tuple[Prediction, Any]:
        keys = None if key is None else jax.random.split(key, self.config.layers + 1)
        positions, count = positions_of(batch), batch.tokens.shape[1]
        turn, here = self.turn(positions), jnp.arange(count, dtype=jnp.int32)
        places, watched = Places(here, here), self._observes(batch)
        first = self.embed(batch.tokens, positions, None if keys is None else keys[-1])

        def step(block: Any, state: PyTree, key: Array | None) -> tuple[PyTree, Any]:
            carry = state[0]
            prior, posterior, info, _ = self.infer(block, carry, turn, places)
            after = block.finish(carry, prior, posterior, key)
            held = Held(carry, prior, posterior) if watched else None
            paid = self.rule.family.divergence(posterior, prior, self.rule.layout)
            seen = watch_fn(self.stream(after, self.dtype))
            return (after, held), (sums_of(paid, info, batch.mask), seen)

        def empty(block: Any) -> Held:
            prior = block.prior(first)
            return Held(first, prior, prior)

        held = empty(self.blocks.one(-1)) if watched else None
        state, keys = (first, held), None if keys is None else keys[:-1]
        (carry, held), (sums, seen) = self.blocks.scan(step, state, keys)
        if watched:
            sums = sums._replace(observed=self._observed(held, batch, turn, places))
        logits = self._logits(carry)
        return Prediction(logits, {}, {}, sums._replace(tokens=sums.tokens[0])), seen

    def _observes(self, batch: Batch) -> bool:
        return self.config.observation > 0 and batch.targets is not None

    def _observed(
        self, held: Held, batch: Batch, turn: irreps.Phases | None, places: Places
    ) -> Array:
        assert batch.targets is not None  # for the type checker
        observe = partial(
            observed_free_energy, held, batch.targets, turn, places, self._logits, batch.mask
        )
        return observe(self.blocks.one(-1))

    def init_decode(self, batch_size: int) -> Memory:
        config = self.config
        width = self._row_width()
        shape = (config.layers, config.steps, batch_size, self.slots, config.heads, width)
        return Memory(
            jnp.zeros(shape, at_least_float32(self.dtype)),
            jnp.full((self.slots,), _NOWHERE, jnp.int32),
            jnp.zeros((), jnp.int32),
        )

    def _row_width(self) -> int:
        def rows() -> Array:
            token = jnp.zeros((1, 1), jnp.int32)
            prior = self.blocks.one(-1).prior(self.embed(token, token))
            return inference.senders(prior, Transport(), self.rule)

        return jax.eval_shape(rows).shape[-1]

    def decode(self, state: Memory, tokens: Array) -> tuple[Array, Memory]:
        position = state.position
        slot = position % self.slots
        turn = self.turn(position[None, None])
        seen = jax.lax.dynamic_update_slice_in_dim(state.places, position[None], slot, 0)
        places = Places(position[None], seen)

        def exchange(own: Array, rows: Array) -> tuple[Array, Array]:
            rows = jax.lax.dynamic_update_slice_in_dim(rows, own, slot, axis=1)
            return rows, rows

        def step(block: Any, carry: PyTree, rows: Array) -> tuple[PyTree, Array]:
            prior, posterior, _, rows = self.infer(
                block, carry, turn, places, exchange=exchange, memory=rows
            )
            return block.finish(carry, prior, posterior, None), rows

        first = self.embed(tokens[:, None], position[None, None])
        carry, rows = self.blocks.scan(step, first, state.rows)
        return self._logits(carry)[:, 0], Memory(rows, seen, position + 1)


def build(
    config: VFEConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """A VFE transformer over ``vocab_size`` tokens.

    No weight depends on ``length`` or on the number of steps: what was trained with some can be
    read with others.

    Args:
        config: see :class:`vfejax.models.vfe.config.VFEConfig`.
        vocab_size: number of tokens.
        length: how many tokens a sequence may have; any number with a window and no stride.
        dtype: that of the residual stream: float32, float64 or bfloat16. Beliefs and energies are
            at least float32.

    Raises:
        ValueError: for options that do not fit, naming the option.

    >>> config = VFEConfig(layers=1, dim=16, heads=2, spins=(0, 1), hidden=8, window=4)
    >>> model = build(config, vocab_size=5, length=12)
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.zeros((2, 30), jnp.int32)).logits.shape
    (2, 30, 5)
    """
    create = creator(config, vocab_size, length, dtype)
    model = pure(create, summarize=lambda found: summary(config.observation, found))
    return model._replace(config=(config, vocab_size, length, dtype))


def creator(
    config: VFEConfig, vocab_size: int, length: int, dtype: jnp.dtype
) -> Callable[[nnx.Rngs], VFETransformer]:
    """What makes the module, ``rngs -> module``.

    Args:
        config, vocab_size, length, dtype: as :func:`build` takes them.

    Raises:
        ValueError: for options that do not fit, naming the option.

    >>> creator(VFEConfig(), 5, 8, jnp.float32)(nnx.Rngs(0)).max_length
    8
    """
    check(config)
    for name, value in (("vocab_size", vocab_size), ("length", length)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    return lambda rngs: VFETransformer(config, vocab_size, length, dtype=dtype, rngs=rngs)


def with_steps(model: SequenceModel, steps: int) -> SequenceModel:
    """The same model with another number of steps of inference, for the same weights.

    Args:
        model: of :func:`build`.
        steps: 0 to 32.

    Raises:
        ValueError: for a number beyond.

    >>> model = build(VFEConfig(layers=1, dim=16, heads=2, hidden=0), vocab_size=5, length=4)
    >>> params = model.init(jax.random.key(0))
    >>> tokens = jnp.zeros((1, 4), jnp.int32)
    >>> with_steps(model, 3).apply(params, tokens).logits.shape
    (1, 4, 5)
    """
    config, *rest = model.config
    return build(dataclasses.replace(config, steps=steps), *rest)

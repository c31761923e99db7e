"""A language model whose blocks are kick-drift steps of learned energies: reversible, so that
training needs no more memory for activations when it gets deeper.

The stream is a pair (q, p) of positions and momenta. A block
(:class:`vfejax.models.reversible.block.Block`) has learned an energy ``T(p) + V(q; c_t)`` of each
token, given what it hears of those before it, and takes one step of its flow:

    p <- p - dt dV/dq,    q <- q + dt dT/dp.

What a token hears comes from the gate of ResNet-BK, so that decoding takes constant memory. The
gradient reconstructs the states of the blocks from the last one
(:mod:`vfejax.dynamics.reversible`). In bfloat16 the products of blocks are bfloat16 and the stream
is float32: sums that were rounded to eight bits could not be undone.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.devices import whole
from vfejax.dynamics import reversible
from vfejax.dynamics.reversible import KickDrift, Pair
from vfejax.models.blocks import (
    Stack,
    check_choice,
    check_dropout,
    check_options,
    check_positive,
    embedding,
)
from vfejax.models.intermediates import Watched, WatchFn, unseen
from vfejax.models.protocol import pure
from vfejax.models.reversible.block import Block, EnergySums, energy_sums
from vfejax.models.reversible.config import ReversibleConfig
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Batch, Prediction, PyTree, SequenceModel

__all__ = ["GRADIENTS", "ReversibleConfig", "build"]

GRADIENTS: dict[str, Callable[..., tuple[Pair, PyTree]]] = {
    "reconstruct": reversible.reconstructed,
    "recompute": reversible.recomputed,
    "store": reversible.stored,
}
"""How the blocks are run, by what the gradient does about their activations."""


class Reversible(Watched):
    """The weights of a reversible model, and what it computes with them; :func:`build` checks the
    options.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        dtype: that of the products: float32, float64 or bfloat16; the stream is at least float32.
        rngs: where first weights come from.
    """

    max_length = None

    def __init__(
        self, config: ReversibleConfig, vocab_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        self.config, self.stream = config, at_least_float32(dtype)
        self.tokens = embedding(vocab_size, config.dim, dtype=dtype, rngs=rngs)
        self.blocks = Stack(
            lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.layers, rngs=rngs
        )
        self.norm = nnx.RMSNorm(
            config.dim, epsilon=1e-6, dtype=dtype, param_dtype=self.stream, rngs=rngs
        )

    def embed(self, tokens: Array) -> Pair:
        return Pair(*jnp.split(self.tokens(tokens).astype(self.stream), 2, axis=-1))

    def logits(self, pair: Pair) -> Array:
        return self.tokens.attend(self.norm(jnp.concatenate(pair, axis=-1)))

    def _forward(
        self, batch: Batch, key: Array | None, watch_fn: WatchFn
    ) -> tuple[Prediction, Any]:
        graphdef, params = nnx.split(self.blocks.block)
        keys = None if key is None else jax.random.split(key, (self.config.layers, 2))
        run = GRADIENTS[self.config.gradient]
        step = _step(graphdef, watch_fn, energies=self.config.energy_penalty > 0)
        pair, (sums, seen) = run(step, self.embed(batch.tokens), (params, keys), batch.mask)
        return Prediction(self.logits(pair), {}, {}, sums), seen

    def init_decode(self, batch_size: int) -> PyTree:
        """The mixers' memories, stacked by layer."""
        return self.blocks.repeat(lambda block: block.mixer.init_decode(batch_size))

    def decode(self, state: PyTree, tokens: Array) -> tuple[Array, PyTree]:
        def step(block: Block, pair: Pair, memory: PyTree) -> tuple[Pair, PyTree]:
            heard, memory = block.hear_next(pair.position, memory)
            momentum = pair.momentum + block.kick(pair.position, heard)
            return Pair(pair.position + block.drift(momentum), momentum), memory

        pair, state = self.blocks.scan(step, self.embed(tokens), state)
        return self.logits(pair), state


def _step(graphdef: Any, watch_fn: WatchFn, *, energies: bool) -> KickDrift:
    """What a block does, as a layer of a chain whose inputs are its weights and two random keys, or
    None for the keys.
    """

    def kick(layer: Any, position: Array, mask: Array | None) -> tuple[Array, Array]:
        block, (key, _) = _merged(graphdef, layer)
        heard = block.hear(position)
        return block.kick(position, heard, key), heard

    def drift(layer: Any, momentum: Array, mask: Array | None) -> Array:
        block, (_, key) = _merged(graphdef, layer)
        return block.drift(momentum, key)

    def observe(
        layer: Any, before: Pair, after: Pair, heard: Array, mask: Array | None
    ) -> tuple[EnergySums | None, Any]:
        block, _ = _merged(graphdef, layer)
        sums = None
        if energies:
            sums = energy_sums(block.energy(before, heard), block.energy(after, heard), mask)
        seen = None if watch_fn is unseen else watch_fn(jnp.concatenate(after, axis=-1))
        return sums, seen

    return KickDrift(kick, drift, observe)


def _merged(graphdef: Any, layer: Any) -> tuple[Block, Any]:
    params, keys = layer
    return nnx.merge(graphdef, whole(params)), (None, None) if keys is None else (keys[0], keys[1])


def _summary(
    config: ReversibleConfig, sums: EnergySums | None
) -> tuple[dict[str, Array], dict[str, Array]]:
    """The penalty, and how much a token's energy changes in a block beside how much energies of
    tokens differ.
    """
    if sums is None:
        return {}, {}
    tokens = jnp.maximum(sums.tokens, 1)
    change, mean = sums.squared_change / tokens, sums.energy / tokens
    variance = jnp.maximum(sums.squared_energy / tokens - mean * mean, 0)
    diagnostics = {
        "energy_drift": jnp.sqrt(jax.lax.stop_gradient(jnp.mean(change))),
        "energy_spread": jnp.sqrt(jnp.mean(variance)),
    }
    return {"energy": config.energy_penalty * jnp.mean(change)}, diagnostics


def build(
    config: ReversibleConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """A reversible model over ``vocab_size`` tokens.

    Args:
        config: see :class:`vfejax.models.reversible.config.ReversibleConfig`.
        vocab_size: number of tokens.
        length: without effect: sequences may have any length.
        dtype: float32, float64 or bfloat16, that of the products; the stream is at least float32.

    Raises:
        ValueError: for numbers that do not fit together, naming the option.
    """
    del length
    check_options(config, layers=1, dim=1, heads=1, convolution=1, hidden=1, energy_penalty=0)
    check_dropout(config.dropout)
    check_positive(config, "step_size")
    check_choice(config, "gradient", GRADIENTS)
    if config.dim % (2 * config.heads):
        raise ValueError(
            f"dim must be a multiple of 2 heads, got dim {config.dim} and heads {config.heads}"
        )
    model = pure(
        lambda rngs: Reversible(config, vocab_size, dtype=dtype, rngs=rngs),
        summarize=lambda sums: _summary(config, sums),
    )
    return model._replace(activations=None, recompute=None)

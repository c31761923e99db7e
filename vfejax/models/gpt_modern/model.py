"""A GPT of current design: the stronger of the two references that every other sequence model is
compared with.

Pre-norm blocks of causal multi-head attention and a gated feed-forward layer,

    x <- x + W_o attend(rotate(norm(W_q x)), rotate(norm(W_k x)), W_v x),
    x <- x + W_2 (silu(W_g x) * W_1 x),

with root-mean-square norms on what each block reads and on every query and key, rotary positions,
and an output that shares the token embedding. No biases.

Source: Touvron et al., LLaMA (2023) for the block; Dehghani et al., Scaling vision transformers to
22 billion parameters (2023) for the norms of queries and keys; Shazeer, GLU variants improve
transformer (2020). The scale 0.02 of the first weights, less by ``(2 layers)^(1/2)`` before the
residual stream, is that of the first reference (:mod:`vfejax.models.gpt`).
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.attention.rope import rotary
from vfejax.models.blocks import (
    Stack,
    attend,
    check_dropout,
    check_options,
    check_positive,
    dropout,
    embedding,
)
from vfejax.models.cache import Cache, empty, read_next
from vfejax.models.gpt_modern.block import EPSILON, Block
from vfejax.models.gpt_modern.config import ModernGPTConfig
from vfejax.models.intermediates import Watched, WatchFn
from vfejax.models.protocol import positions_of, pure
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Batch, Prediction, SequenceModel

__all__ = ["ModernGPTConfig", "build"]


class ModernGPT(Watched):
    """The weights of a modern GPT, and what it computes with them; :func:`build` checks the
    options.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        length: the most tokens that its memory holds.
        dtype: that of the arithmetic: float32, float64 or bfloat16.
        rngs: where first weights come from.
    """

    residual = True

    def __init__(
        self,
        config: ModernGPTConfig,
        vocab_size: int,
        length: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        weights = at_least_float32(dtype)
        self.config = config
        self.max_length = length
        self.tokens = embedding(vocab_size, config.dim, dtype=dtype, rngs=rngs)
        self.blocks = Stack(
            lambda rngs: Block(config, dtype=dtype, rngs=rngs), config.layers, rngs=rngs
        )
        self.norm = nnx.RMSNorm(
            config.dim, epsilon=EPSILON, dtype=dtype, param_dtype=weights, rngs=rngs
        )

    def _turned(self, block: Block, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Turned query, turned key and value ``[b, n, heads, c]`` of tokens at ``positions [b,
        n]``.
        """
        query, key, value = block.project(x)
        base = self.config.base
        return rotary(query, positions, base=base), rotary(key, positions, base=base), value

    def _forward(
        self, batch: Batch, key: Array | None, watch_fn: WatchFn
    ) -> tuple[Prediction, Any]:
        keys = None if key is None else jax.random.split(key, self.config.layers + 1)
        x = self.tokens(batch.tokens)
        x = dropout(x, self.config.dropout, None if keys is None else keys[-1])
        positions = jnp.broadcast_to(positions_of(batch), batch.tokens.shape)
        num_tokens = batch.tokens.shape[1]
        causal = jnp.tril(jnp.ones((num_tokens, num_tokens), bool))

        def step(block: Block, x: Array, key: Array | None) -> tuple[Array, Any]:
            x = block.finish(x, attend(*self._turned(block, x, positions), causal), key)
            return x, watch_fn(x)

        x, seen = self.blocks.scan(step, x, None if keys is None else keys[:-1])
        return Prediction(self.tokens.attend(self.norm(x)), {}, {}), seen

    def init_decode(self, batch_size: int) -> Cache:
        heads, channels = self.config.heads, self.config.dim // self.config.heads
        shape = (self.config.layers, batch_size, self.max_length, heads, channels)
        return empty(shape, self.tokens.dtype)

    def decode(self, state: Cache, tokens: Array) -> tuple[Array, Cache]:
        x = self.tokens(tokens)[:, None]
        positions = jnp.broadcast_to(state.position, (tokens.shape[0], 1))

        def step(
            block: Block, x: Array, layer: tuple[Array, Array]
        ) -> tuple[Array, tuple[Array, Array]]:
            projected = self._turned(block, x, positions)
            attended, layer = read_next(projected, layer, state.position)
            return block.finish(x, attended, None), layer

        x, (keys, values) = self.blocks.scan(step, x, (state.keys, state.values))
        return self.tokens.attend(self.norm(x))[:, 0], Cache(keys, values, state.position + 1)


def build(
    config: ModernGPTConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """A modern GPT over ``vocab_size`` tokens whose memory holds at most ``length`` of them.

    No weight depends on ``length``: what was trained at one length can be read at another.

    Args:
        config: see :class:`vfejax.models.gpt_modern.config.ModernGPTConfig`.
        vocab_size: number of tokens.
        length: how many tokens a sequence may have.
        dtype: float32, float64 or bfloat16, that of the arithmetic.

    Raises:
        ValueError: for numbers that do not fit together, naming the option.
    """
    check_options(config, layers=1, dim=1, heads=1, hidden=1)
    check_dropout(config.dropout)
    if config.dim % (2 * config.heads):
        raise ValueError(
            f"dim must be a multiple of 2 heads, got dim {config.dim} and heads {config.heads}"
        )
    check_positive(config, "base")
    return pure(lambda rngs: ModernGPT(config, vocab_size, length, dtype=dtype, rngs=rngs))

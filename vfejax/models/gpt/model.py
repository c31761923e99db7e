"""A small GPT: the reference that every other sequence model is compared with.

Pre-norm blocks of causal multi-head attention and a feed-forward layer, learned positions, tied
output. No biases.

Source: Radford et al., Language models are unsupervised multitask learners (2019); initialisation
from there.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models import kernel_products
from vfejax.models.blocks import (
    Stack,
    attend,
    check_dropout,
    check_options,
    dropout,
    embedding,
    normal,
)
from vfejax.models.cache import Cache, empty, read_next
from vfejax.models.gpt.config import TransformerConfig
from vfejax.models.intermediates import Watched, WatchFn
from vfejax.models.protocol import positions_of, pure
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Batch, Prediction, SequenceModel

__all__ = ["TransformerConfig", "build"]


class _Block(nnx.Module):
    def __init__(self, config: TransformerConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        dim, out_scale = config.dim, 0.02 / (2 * config.layers) ** 0.5
        weights = at_least_float32(dtype)
        linear = partial(
            kernel_products.linear, use_bias=False, dtype=dtype, param_dtype=weights, rngs=rngs
        )
        norm = partial(nnx.LayerNorm, use_bias=False, dtype=dtype, param_dtype=weights, rngs=rngs)
        self.heads, self.rate = config.heads, config.dropout
        self.attention_norm = norm(dim)
        self.qkv = linear(dim, 3 * dim, kernel_init=normal(0.02))
        self.attention_out = linear(dim, dim, kernel_init=normal(out_scale))
        self.mlp_norm = norm(dim)
        self.mlp_in = linear(dim, config.hidden, kernel_init=normal(0.02))
        self.mlp_out = linear(config.hidden, dim, kernel_init=normal(out_scale))

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """Query, key and value ``[b, n, heads, c]``."""
        heads = self.qkv(self.attention_norm(x)).reshape(*x.shape[:-1], 3, self.heads, -1)
        return heads[..., 0, :, :], heads[..., 1, :, :], heads[..., 2, :, :]

    def finish(self, x: Array, attended: Array, key: Array | None) -> Array:
        """The rest of the block, once every head has its answer ``[b, n, heads, c]``."""
        keys = (None, None) if key is None else jax.random.split(key)
        x = x + dropout(self.attention_out(attended.reshape(x.shape)), self.rate, keys[0])
        return x + dropout(
            self.mlp_out(nnx.gelu(self.mlp_in(self.mlp_norm(x)))), self.rate, keys[1]
        )


class Transformer(Watched):
    """The weights of a GPT, and what it computes with them; :func:`build` checks the options.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        length: the most tokens that a sequence may have.
        dtype: that of the arithmetic: float32, float64 or bfloat16.
        rngs: where first weights come from.
    """

    residual = True

    def __init__(
        self,
        config: TransformerConfig,
        vocab_size: int,
        length: int,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        weights = at_least_float32(dtype)
        embed = partial(embedding, dim=config.dim, dtype=dtype, rngs=rngs)
        self.config = config
        self.max_length = length
        self.tokens = embed(vocab_size)
        self.positions = embed(length)
        self.blocks = Stack(
            lambda rngs: _Block(config, dtype=dtype, rngs=rngs), config.layers, rngs=rngs
        )
        self.norm = nnx.LayerNorm(
            config.dim, use_bias=False, dtype=dtype, param_dtype=weights, rngs=rngs
        )

    def _forward(
        self, batch: Batch, key: Array | None, watch_fn: WatchFn
    ) -> tuple[Prediction, Any]:
        keys = None if key is None else jax.random.split(key, self.config.layers + 1)
        x = self.tokens(batch.tokens) + self.positions(positions_of(batch))
        x = dropout(x, self.config.dropout, None if keys is None else keys[-1])

        num_tokens = batch.tokens.shape[1]
        causal = jnp.tril(jnp.ones((num_tokens, num_tokens), bool))

        def step(block: _Block, x: Array, key: Array | None) -> tuple[Array, Any]:
            x = block.finish(x, attend(*block.project(x), causal), key)
            return x, watch_fn(x)

        x, seen = self.blocks.scan(step, x, None if keys is None else keys[:-1])
        return Prediction(self.tokens.attend(self.norm(x)), {}, {}), seen

    def init_decode(self, batch_size: int) -> Cache:
        heads, channels = self.config.heads, self.config.dim // self.config.heads
        shape = (self.config.layers, batch_size, self.max_length, heads, channels)
        return empty(shape, self.tokens.dtype)

    def decode(self, state: Cache, tokens: Array) -> tuple[Array, Cache]:
        places = jnp.broadcast_to(state.position, tokens.shape)
        x = (self.tokens(tokens) + self.positions(places))[:, None]

        def step(
            block: _Block, x: Array, layer: tuple[Array, Array]
        ) -> tuple[Array, tuple[Array, Array]]:
            attended, layer = read_next(block.project(x), layer, state.position)
            return block.finish(x, attended, None), layer

        x, (keys, values) = self.blocks.scan(step, x, (state.keys, state.values))
        return self.tokens.attend(self.norm(x))[:, 0], Cache(keys, values, state.position + 1)


def build(
    config: TransformerConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """A GPT over ``vocab_size`` tokens that reads at most ``length`` of them.

    Args:
        config: see :class:`vfejax.models.gpt.config.TransformerConfig`.
        vocab_size: number of tokens.
        length: the most tokens that a sequence may have.
        dtype: that of the arithmetic: float32, float64 or bfloat16.

    Raises:
        ValueError: for numbers that do not fit together, naming the option.
    """
    check_options(config, layers=1, dim=1, heads=1, hidden=1)
    check_dropout(config.dropout)
    if config.dim % config.heads:
        raise ValueError(
            f"dim must be a multiple of heads, got dim {config.dim} and heads {config.heads}"
        )
    return pure(lambda rngs: Transformer(config, vocab_size, length, dtype=dtype, rngs=rngs))

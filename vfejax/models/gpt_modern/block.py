"""The block of the modern GPT, for every model that differs from it in what the heads do with their
queries, keys and values.
"""

from functools import partial
from typing import Protocol

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models import kernel_products
from vfejax.models.blocks import dropout, normal
from vfejax.models.prunable_units import Sizes
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["EPSILON", "Block", "BlockConfig"]

EPSILON = 1e-6
"""What the norms add to mean squares."""


class BlockConfig(Sizes, Protocol):
    """Options that a block reads; see :class:`vfejax.models.gpt_modern.config.ModernGPTConfig`."""

    @property
    def dropout(self) -> float: ...


class Block(nnx.Module):
    """Norms, projections and the gated feed-forward layer of a block, without its attention.

    Args:
        config: sizes and dropout.
        dtype: that of the arithmetic.
        rngs: where first weights come from.
    """

    def __init__(self, config: BlockConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        dim, out_scale = config.dim, 0.02 / (2 * config.layers) ** 0.5
        weights = at_least_float32(dtype)
        norm = partial(nnx.RMSNorm, epsilon=EPSILON, dtype=dtype, param_dtype=weights, rngs=rngs)
        linear = partial(
            kernel_products.linear, use_bias=False, dtype=dtype, param_dtype=weights, rngs=rngs
        )
        self.config = config
        self.attention_norm = norm(dim)
        self.qkv = linear(dim, 3 * dim, kernel_init=normal(0.02))
        self.query_norm = norm(dim // config.heads)
        self.key_norm = norm(dim // config.heads)
        self.attention_out = linear(dim, dim, kernel_init=normal(out_scale))
        self.mlp_norm = norm(dim)
        self.mlp_in = linear(dim, 2 * config.hidden, kernel_init=normal(0.02))
        self.mlp_out = linear(config.hidden, dim, kernel_init=normal(out_scale))

    def project(self, x: Array) -> tuple[Array, Array, Array]:
        """Query, key and value of every head, ``[b, n, heads, c]``, not turned yet."""
        heads = self.qkv(self.attention_norm(x)).reshape(*x.shape[:-1], 3, self.config.heads, -1)
        query, key = self.query_norm(heads[..., 0, :, :]), self.key_norm(heads[..., 1, :, :])
        return query, key, heads[..., 2, :, :]

    def finish(self, x: Array, attended: Array, key: Array | None) -> Array:
        """The rest of the block, once every head has its answer.

        Args:
            x: what the block was given, ``[b, n, dim]``.
            attended: the answers, ``[b, n, heads, c]``.
            key: source of dropout; None outside training.
        """
        keys = (None, None) if key is None else jax.random.split(key)
        rate = self.config.dropout
        x = x + dropout(self.attention_out(attended.reshape(x.shape)), rate, keys[0])
        gate, value = jnp.split(self.mlp_in(self.mlp_norm(x)), 2, axis=-1)
        return x + dropout(self.mlp_out(nnx.silu(gate) * value), rate, keys[1])

"""A GPT as they are built today: the stronger of the two references that every other sequence model
is compared with.

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

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.attention.rope import rotary
from vfejax.models.blocks import Stack, check_tokens, dropout, normal, pure
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Prediction, SequenceModel

__all__ = ["Cache", "ModernGPTConfig", "build"]

_EPSILON = 1e-6


@dataclass(frozen=True)
class ModernGPTConfig:
    """A GPT with rotary positions, root-mean-square norms and a gated feed-forward layer."""

    layers: int = 4
    """Number of blocks."""
    dim: int = 128
    """Width of the residual stream, a multiple of heads."""
    heads: int = 4
    """Attention heads per block; the width of a head must be even."""
    hidden: int = 344
    """Width of the feed-forward layers, which have three matrices each."""
    base: float = 10_000.0
    """Slowest wavelength of the rotary positions, in tokens, divided by 2 pi."""
    dropout: float = 0.0
    """Share of activations that training leaves out."""


class Cache(NamedTuple):
    """Turned keys and values read so far, ``[layers, b, max_length, heads, c]``, and how many there
    are.
    """

    keys: Array
    values: Array
    position: Array


def _attend(query: Array, keys: Array, values: Array, mask: Array) -> Array:
    """Softmax attention of every head, ``[b, n, heads, c]``; True in ``mask [n, m]`` may be
    read.
    """
    scores = jnp.einsum("bnhc,bmhc->bhnm", query, keys) / query.shape[-1] ** 0.5
    scores = jnp.where(mask[None, None], scores.astype(at_least_float32(scores.dtype)), -jnp.inf)
    return jnp.einsum(
        "bhnm,bmhc->bnhc", jax.nn.softmax(scores, axis=-1).astype(values.dtype), values
    )


class _Block(nnx.Module):
    def __init__(self, config: ModernGPTConfig, dtype: jnp.dtype, rngs: nnx.Rngs):
        dim, out_scale = config.dim, 0.02 / (2 * config.layers) ** 0.5
        shared = {"dtype": dtype, "param_dtype": at_least_float32(dtype), "rngs": rngs}
        norm = {"epsilon": _EPSILON, **shared}
        linear = {"use_bias": False, **shared}
        self.config = config
        self.attention_norm = nnx.RMSNorm(dim, **norm)
        self.qkv = nnx.Linear(dim, 3 * dim, kernel_init=normal(0.02), **linear)
        self.query_norm = nnx.RMSNorm(dim // config.heads, **norm)
        self.key_norm = nnx.RMSNorm(dim // config.heads, **norm)
        self.attention_out = nnx.Linear(dim, dim, kernel_init=normal(out_scale), **linear)
        self.mlp_norm = nnx.RMSNorm(dim, **norm)
        self.mlp_in = nnx.Linear(dim, 2 * config.hidden, kernel_init=normal(0.02), **linear)
        self.mlp_out = nnx.Linear(config.hidden, dim, kernel_init=normal(out_scale), **linear)

    def project(self, x: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Turned query, turned key and value ``[b, n, heads, c]`` of tokens at ``positions [b,
        n]``.
        """
        heads = self.qkv(self.attention_norm(x)).reshape(*x.shape[:-1], 3, self.config.heads, -1)
        query, key = self.query_norm(heads[..., 0, :, :]), self.key_norm(heads[..., 1, :, :])
        query, key = (rotary(part, positions, base=self.config.base) for part in (query, key))
        return query, key, heads[..., 2, :, :]

    def finish(self, x: Array, attended: Array, key: Array | None) -> Array:
        """The rest of the block, once every head has its answer ``[b, n, heads, c]``."""
        keys = (None, None) if key is None else jax.random.split(key)
        rate = self.config.dropout
        x = x + dropout(self.attention_out(attended.reshape(x.shape)), rate, keys[0])
        gate, value = jnp.split(self.mlp_in(self.mlp_norm(x)), 2, axis=-1)
        return x + dropout(self.mlp_out(nnx.silu(gate) * value), rate, keys[1])


class ModernGPT(nnx.Module):
    """See :func:`build`."""

    def __init__(
        self,
        config: ModernGPTConfig,
        vocab_size: int,
        length: int,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        shared = {"dtype": dtype, "param_dtype": at_least_float32(dtype), "rngs": rngs}
        self.config, self.max_length = config, length
        self.tokens = nnx.Embed(vocab_size, config.dim, embedding_init=normal(0.02), **shared)
        self.blocks = Stack(lambda r: _Block(config, dtype, r), config.layers, rngs=rngs)
        self.norm = nnx.RMSNorm(config.dim, epsilon=_EPSILON, **shared)

    def __call__(self, tokens: Array, key: Array | None = None) -> Prediction:
        check_tokens(tokens, self.max_length)
        keys = None if key is None else jax.random.split(key, self.config.layers + 1)
        x = dropout(self.tokens(tokens), self.config.dropout, None if keys is None else keys[-1])
        positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
        causal = jnp.tril(jnp.ones((tokens.shape[1], tokens.shape[1]), bool))

        def step(block: _Block, x: Array, key: Array | None) -> tuple[Array, None]:
            return block.finish(x, _attend(*block.project(x, positions), causal), key), None

        x, _ = self.blocks.scan(step, x, None if keys is None else keys[:-1])
        return Prediction(self.tokens.attend(self.norm(x)), {}, {})

    def init_decode(self, batch: int) -> Cache:
        config = self.config
        shape = (config.layers, batch, self.max_length, config.heads, config.dim // config.heads)
        empty = jnp.zeros(shape, self.tokens.dtype)
        return Cache(empty, empty, jnp.zeros((), jnp.int32))

    def decode(self, state: Cache, tokens: Array) -> tuple[Array, Cache]:
        position = state.position
        x = self.tokens(tokens)[:, None]
        positions = jnp.broadcast_to(position, (tokens.shape[0], 1))
        seen = (jnp.arange(self.max_length, dtype=position.dtype) <= position)[None]

        def step(
            block: _Block, x: Array, cache: tuple[Array, Array]
        ) -> tuple[Array, tuple[Array, Array]]:
            query, *new = block.project(x, positions)
            keys, values = (
                jax.lax.dynamic_update_slice_in_dim(old, entry.astype(old.dtype), position, axis=1)
                for old, entry in zip(cache, new, strict=True)
            )
            return block.finish(x, _attend(query, keys, values, seen), None), (keys, values)

        x, (keys, values) = self.blocks.scan(step, x, (state.keys, state.values))
        return self.tokens.attend(self.norm(x))[:, 0], Cache(keys, values, position + 1)


def build(
    config: ModernGPTConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """A modern GPT over ``vocab_size`` tokens whose memory holds at most ``length`` of them.

    No weight depends on ``length``: what was trained at one length can be read at another.

    Args:
        config: see :class:`ModernGPTConfig`.
        vocab_size: number of tokens.
        length: how many tokens a sequence may have.
        dtype: float32, float64 or bfloat16, that of the arithmetic.

    Raises:
        ValueError: when the width is no even multiple of the number of heads.
    """
    if config.dim % (2 * config.heads):
        raise ValueError(
            f"dim must be a multiple of 2 heads, got dim {config.dim} and heads {config.heads}"
        )
    if not config.base > 0:
        raise ValueError(f"base must be positive, got {config.base}")
    return pure(lambda rngs: ModernGPT(config, vocab_size, length, dtype, rngs))

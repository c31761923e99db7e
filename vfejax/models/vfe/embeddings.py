"""From tokens to what the first layer of a VFE transformer is given: vectors, or Gaussians."""

from functools import partial
from typing import Any

import jax.numpy as jnp
from flax import nnx

from vfejax.models.blocks import dropout, embedding
from vfejax.models.vfe.beliefs import Belief
from vfejax.models.vfe.channels import frame_of, per_head, split
from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.inference import Rule
from vfejax.models.vfe.options import rule_of
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["EMBEDDINGS", "BeliefEmbedding", "StreamEmbedding", "waves"]

_FIRST_SPREAD = 0.1  # of carried beliefs, in units of the embedding: five times its own


def waves(positions: Array, dim: int, base: float, dtype: jnp.dtype) -> Array:
    """Sines and cosines of positions.

    Args:
        positions: integers ``[b | 1, n]``.
        dim: how many numbers there are for each.
        base: slowest wavelength in tokens, divided by 2 pi.
        dtype: of the result.

    Returns:
        ``[b | 1, n, dim]``.

    Source: Vaswani et al., Attention is all you need (2017), section 3.5.

    >>> waves(jnp.asarray([[0]]), 4, 100.0, jnp.float32).tolist()
    [[[0.0, 0.0, 1.0, 1.0]]]
    """
    rates = base ** (-jnp.arange(-(-dim // 2), dtype=dtype) / (dim / 2))
    angles = positions.astype(dtype)[..., None] * rates[None, None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)[..., :dim]


class StreamEmbedding(nnx.Module):
    """Tokens as vectors, with waves of their positions if the options ask for them.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        dtype: that of the stream.
        rngs: where first weights come from.
    """

    def __init__(self, config: VFEConfig, vocab_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config, self.dtype = config, dtype
        self.tokens = embedding(vocab_size, config.dim, dtype=dtype, rngs=rngs)
        if config.position == "sinusoidal":
            self.wave_scale = nnx.Param(jnp.full((), 0.02, at_least_float32(dtype)))

    @property
    def rule(self) -> Rule:
        """What is the same for all layers."""
        return rule_of(self.config)

    def vectors(self, tokens: Array, positions: Array, key: Array | None) -> Array:
        """Vectors ``[b, n, dim]``.

        Args:
            tokens: integers ``[b, n]``.
            positions: integers ``[b | 1, n]``.
            key: source of dropout; None outside training.
        """
        x = self.tokens(tokens)
        if self.config.position == "sinusoidal":
            real = at_least_float32(self.dtype)
            wave = waves(positions, self.config.dim, self.config.base, real)
            x = x + (self.wave_scale[...] * wave).astype(x.dtype)
        return dropout(x, self.config.dropout, key)

    def __call__(self, tokens: Array, positions: Array, key: Array | None = None) -> Any:
        """What the first layer is given.

        Args:
            tokens: integers ``[b, n]``.
            positions: integers ``[b | 1, n]``.
            key: source of dropout; None outside training.
        """
        return self.vectors(tokens, positions, key)

    def attend(self, x: Array) -> Array:
        """Logits ``[b, n, v]`` of an output that shares the table."""
        return self.tokens.attend(x)


class BeliefEmbedding(StreamEmbedding):
    """Tokens as Gaussians with frames.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        dtype: that of the stream.
        rngs: where first weights come from.
    """

    def __init__(self, config: VFEConfig, vocab_size: int, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        super().__init__(config, vocab_size, dtype=dtype, rngs=rngs)
        rule = self.rule
        table = partial(embedding, vocab_size, dtype=at_least_float32(dtype), rngs=rngs)
        self.spread = table(config.heads * rule.family.num_raw(rule.layout))
        if config.frames != "identity":
            self.phi = table(config.heads * rule.layout.group.generators.shape[0])

    def __call__(self, tokens: Array, positions: Array, key: Array | None = None) -> Belief:
        """The priors of the first layer.

        Args:
            tokens: integers ``[b, n]``.
            positions: integers ``[b | 1, n]``.
            key: source of dropout; None outside training.
        """
        rule = self.rule
        mean = split(self.vectors(tokens, positions, key), rule) / _FIRST_SPREAD
        spread = rule.family.spread(per_head(self.spread(tokens), rule), rule.layout)
        frame = None if self.config.frames == "identity" else frame_of(self.phi(tokens), rule)
        return Belief(mean, spread, frame)


EMBEDDINGS: dict[str, Any] = {"projected": StreamEmbedding, "carried": BeliefEmbedding}
"""What the first layer is given, by where priors come from."""

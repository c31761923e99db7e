"""Skeleton of a sequence model: each position reads a decaying sum of the embeddings before it."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.protocol import pure
from vfejax.models.table import Entry
from vfejax.types import Array, Batch, Prediction, SequenceModel


@dataclass(frozen=True)
class DecayConfig:
    """Options of the model; the docstrings of the fields are the help texts of the command."""

    dim: int = 64
    """Width of the embedding."""


class Decay(nnx.Module):
    """``y_i = sigmoid(r) y_{i-1} + x_i`` with one learned rate r per channel."""

    def __init__(
        self, config: DecayConfig, vocab_size: int, dtype: jnp.dtype, *, rngs: nnx.Rngs
    ) -> None:
        self.max_length = None  # sequences may have any length
        self.tokens = nnx.Embed(vocab_size, config.dim, dtype=dtype, param_dtype=dtype, rngs=rngs)
        self.rate = nnx.Param(jnp.zeros(config.dim, dtype))

    def __call__(self, batch: Batch, key: Array | None) -> Prediction:
        """Logits after every token. A key would feed dropout; this model has none."""
        del key
        x = jnp.moveaxis(self.tokens(batch.tokens), 1, 0)
        _, y = jax.lax.scan(self._read, jnp.zeros_like(x[0]), x)
        return Prediction(self.tokens.attend(jnp.moveaxis(y, 0, 1)), {}, {})

    def init_decode(self, batch_size: int) -> Array:
        """The sum before the first token."""
        return jnp.zeros((batch_size, self.rate.shape[0]), self.tokens.dtype)

    def decode(self, state: Array, tokens: Array) -> tuple[Array, Array]:
        """Logits ``[b, v]`` after one more token ``[b]`` of each sequence, and the new sum."""
        state, y = self._read(state, self.tokens(tokens))
        return self.tokens.attend(y), state

    def _read(self, state: Array, x: Array) -> tuple[Array, Array]:
        state = jax.nn.sigmoid(self.rate[...])[None] * state + x
        return state, state


def build(
    config: DecayConfig, vocab_size: int, length: int, dtype: jnp.dtype = jnp.float32
) -> SequenceModel:
    """The model as pure functions of its weights.

    Args:
        config: its options.
        vocab_size: number of tokens.
        length: tokens of a training sequence; not used, since any length will do.
        dtype: that of the arithmetic.

    Raises:
        ValueError: when an option does not fit, naming it.
    """
    del length
    if config.dim < 1:
        raise ValueError(f"dim must be at least 1, got {config.dim}")
    return pure(lambda rngs: Decay(config, vocab_size, dtype, rngs=rngs))


# The line that models/table.py would have:
ENTRY = Entry(DecayConfig, build, tiny=DecayConfig(dim=8))

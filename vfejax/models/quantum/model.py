"""Quantum causal transformer: tokens are density matrices that mix with their predecessors and
evolve, and Born populations are what is read.

    rho_i = dephased Givens state of token i                             x_i = W p(rho_i)
    per block:  rho_i <- mix of rho_{i-8} .. rho_i                       (all tokens read the block's input states)
                rho_i <- U_i rho_i U_i^dag,  U_i = exp(-i s_i dt H)      (H real symmetric, learned; one eigendecomposition per block)
                x_i <- values of the populations, then a feed-forward layer
                rho_i <- dephased a little
    logits = W norm(x)

The layers are in :mod:`vfejax.models.quantum.layers`. Decoding keeps the last 8 input states of
each block: constant memory, any length.
"""

import dataclasses
from dataclasses import dataclass
from typing import Literal, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from vfejax.models.blocks import Stack, check_tokens, normal, pure
from vfejax.models.quantum.layers import WINDOW, GivensEmbedding, QuantumBlock
from vfejax.numerics import at_least_float32
from vfejax.quantum import density
from vfejax.types import Array, Prediction, PyTree, SequenceModel

__all__ = ["Memory", "QuantumTransformerConfig", "build", "decohered_difference"]


@dataclass(frozen=True)
class QuantumTransformerConfig:
    """Density matrices that mix and evolve."""

    blocks: int = 2
    """Number of blocks."""
    dim: int = 16
    """Dimension d of the states, which have d^2 entries; 5 to 48 is sensible."""
    width: int = 128
    """Width of the residual stream that the values of the populations are added to."""
    hidden: int = 256
    """Width of the feed-forward layers."""
    mixing: Literal["convex", "dephasing"] = "convex"
    """How predecessors act: their states are mixed in; or, as an ablation, they only dephase, and
    no token hears of another.
    """
    gate: bool = False
    """Whether states of free energy |F| <= 0.236 / d (nats) skip the evolution: the loss jumps
    there, and every state's entropy is needed.
    """
    free_energy_weight: float = 0.01
    """Weight of the mean free energy in the loss."""
    measure_every: int = 16
    """Free energy, entropy, purity and coherence are means over every so many positions; each state
    costs an eigendecomposition.
    """
    decohere: bool = False
    """Ablation: off-diagonal entries are zeroed before every evolution."""


class Memory(NamedTuple):
    """Input states of every block at the last 8 positions, ``[blocks, b, 8, d, d]``, and the number
    of tokens read.
    """

    states: Array
    position: Array


class QuantumTransformer(nnx.Module):
    """See :func:`build`."""

    def __init__(
        self,
        config: QuantumTransformerConfig,
        vocab_size: int,
        length: int,
        dtype: jnp.dtype,
        counts: ArrayLike | None,
        rngs: nnx.Rngs,
    ):
        real = at_least_float32(dtype)
        kinds = {"use_bias": False, "dtype": dtype, "param_dtype": real, "rngs": rngs}
        self.config, self.max_length, self.dtype = config, None, dtype
        self.tokens = GivensEmbedding(vocab_size, config.dim, counts, real, rngs)
        self.values = nnx.Linear(config.dim, config.width, kernel_init=normal(0.02), **kinds)
        self.blocks = Stack(
            lambda r: QuantumBlock(config, length, dtype, r), config.blocks, rngs=rngs
        )
        self.norm = nnx.LayerNorm(config.width, **kinds)
        self.output = nnx.Linear(config.width, vocab_size, kernel_init=normal(0.02), **kinds)

    def _read(self, tokens: Array, memory: Memory) -> tuple[Array, Memory, dict[str, Array]]:
        """Logits ``[b, n, v]`` of the next tokens ``[b, n]``, the memory after them, and what the
        blocks measured.
        """
        count = tokens.shape[1]
        positions = memory.position + jnp.arange(count, dtype=jnp.int32)
        rho = self.tokens(tokens)
        x = self.values(density.populations(rho).astype(self.dtype))

        def step(block: QuantumBlock, carry: PyTree, past: Array) -> tuple[PyTree, PyTree]:
            carry, past, found = block(*carry, past, positions)
            return carry, (past, found)

        (x, _), (states, found) = self.blocks.scan(step, (x, rho), memory.states)
        return self.output(self.norm(x)), Memory(states, memory.position + count), found

    def __call__(self, tokens: Array, key: Array | None = None) -> Prediction:
        check_tokens(tokens, self.max_length)
        logits, _, found = self._read(tokens, self.init_decode(tokens.shape[0]))
        found = {name: jnp.mean(values) for name, values in found.items()}
        weight = self.config.free_energy_weight
        return Prediction(
            logits,
            {"free_energy_term": weight * found["free_energy_nats"]} if weight else {},
            found,
        )

    def init_decode(self, batch: int) -> Memory:
        config = self.config
        dtype = jnp.result_type(self.tokens.angles[...].dtype, jnp.complex64)
        states = jnp.zeros((config.blocks, batch, WINDOW, config.dim, config.dim), dtype)
        return Memory(states, jnp.zeros((), jnp.int32))

    def decode(self, state: Memory, tokens: Array) -> tuple[Array, Memory]:
        logits, state, _ = self._read(tokens[:, None], state)
        return logits[:, 0], state


def build(
    config: QuantumTransformerConfig,
    vocab_size: int,
    length: int,
    dtype: jnp.dtype = jnp.float32,
    counts: ArrayLike | None = None,
) -> SequenceModel:
    """Quantum causal transformer over ``vocab_size`` tokens, for sequences of any length.

    Args:
        config: see :class:`QuantumTransformerConfig`.
        vocab_size: number of tokens.
        length: tokens after which the factors of H repeat: how many a training sequence has.
        dtype: that of the projections: float32, float64 or bfloat16. States are complex64, or
            complex128 for float64.
        counts: how often each token occurs in the training text, ``[vocab_size]``: frequent ones
            lose coherence. They only decide the value of a parameter, so a model whose weights are
            read back may be built with any counts; None for a model without it.

    Raises:
        ValueError: for numbers that do not fit, naming them.
    """
    least = {
        "blocks": 1,
        "dim": 2,
        "width": 1,
        "hidden": 1,
        "measure_every": 1,
        "free_energy_weight": 0,
    }
    for name, bound in least.items():
        if not getattr(config, name) >= bound:
            raise ValueError(f"{name} must be at least {bound}, got {getattr(config, name)}")
    if counts is not None and jnp.shape(counts) != (vocab_size,):
        raise ValueError(
            f"counts must be [vocab_size = {vocab_size}], got shape {jnp.shape(counts)}"
        )
    return pure(lambda rngs: QuantumTransformer(config, vocab_size, length, dtype, counts, rngs))


def decohered_difference(
    config: QuantumTransformerConfig,
    length: int,
    params: PyTree,
    tokens: Array,
    dtype: jnp.dtype = jnp.float32,
) -> Array:
    """The decisive test: logits of the model minus logits when off-diagonal entries are zeroed
    before every evolution.

    Zero everywhere would mean that the model computes with probabilities alone.

    Args:
        config, length, dtype: what ``params`` were trained with.
        params: the weights.
        tokens: ``[b, n]``.

    Returns:
        ``[b, n, vocab_size]``.
    """
    vocab_size = params["tokens"]["angles"].shape[0]
    counts = jnp.ones(vocab_size) if "dephasing" in params["tokens"] else None
    whole, diagonal = (
        build(dataclasses.replace(config, decohere=decohere), vocab_size, length, dtype, counts)
        for decohere in (False, True)
    )
    return whole.apply(params, tokens, None).logits - diagonal.apply(params, tokens, None).logits

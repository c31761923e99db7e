"""Quantum causal transformer: tokens are density matrices that mix with their predecessors and
evolve, and Born populations are what is read.

    rho_i = dephased Givens state of token i;    x_i = W p(rho_i)
    per block:
        rho_i <- mix of rho_{i-8} .. rho_i       all tokens read the block's input states
        rho_i <- U_i rho_i U_i^dag               U_i = exp(-i s_i dt H), H real symmetric, learned
        x_i <- values of the populations, then a feed-forward layer
        rho_i <- dephased a little
    logits = W norm(x)

The layers are in :mod:`vfejax.models.quantum.layers`. Decoding keeps the last 8 input states of
each block: constant memory, any length.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from vfejax.models import kernel_products
from vfejax.models.blocks import Stack, check_choice, check_options, normal
from vfejax.models.intermediates import Watched, WatchFn, unseen
from vfejax.models.protocol import positions_of, pure
from vfejax.models.quantum.config import QuantumTransformerConfig
from vfejax.models.quantum.layers import WINDOW, GivensEmbedding, Measurement, QuantumBlock
from vfejax.numerics import at_least_float32
from vfejax.quantum import density
from vfejax.types import Array, Batch, Prediction, PyTree, SequenceModel

__all__ = ["Memory", "QuantumTransformerConfig", "build", "decohered_difference"]


class Memory(NamedTuple):
    """Input states of every block at the last 8 positions, packed, ``[blocks, b, 8, d, d]``, and
    the number of tokens read.
    """

    states: Array
    position: Array


class QuantumTransformer(Watched):
    """The weights of a quantum causal transformer, and what it computes with them; :func:`build`
    checks the options.

    Args:
        config: the model's options.
        vocab_size: number of tokens.
        length: tokens after which the factors of H repeat.
        counts: how often each token occurs in the training text, ``[vocab_size]``; None for no
            dephasing of frequent tokens.
        dtype: that of the projections: float32, float64 or bfloat16.
        rngs: where first weights come from.
    """

    def __init__(
        self,
        config: QuantumTransformerConfig,
        vocab_size: int,
        length: int,
        counts: ArrayLike | None = None,
        *,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        linear = partial(
            kernel_products.linear,
            use_bias=False,
            kernel_init=normal(0.02),
            dtype=dtype,
            param_dtype=at_least_float32(dtype),
            rngs=rngs,
        )
        self.config, self.dtype = config, dtype
        self.max_length: int | None = None
        self.tokens = GivensEmbedding(vocab_size, config.dim, counts, dtype=dtype, rngs=rngs)
        self.values = linear(config.dim, config.width)
        self.blocks = Stack(
            lambda rngs: QuantumBlock(config, length, dtype=dtype, rngs=rngs),
            config.blocks,
            rngs=rngs,
        )
        self.norm = nnx.LayerNorm(
            config.width,
            use_bias=False,
            dtype=dtype,
            param_dtype=at_least_float32(dtype),
            rngs=rngs,
        )
        self.output = linear(config.width, vocab_size)

    def _read(
        self, batch: Batch, memory: Memory, positions: Array, watch_fn: WatchFn = unseen
    ) -> tuple[Array, Memory, Measurement, Any]:
        """Logits ``[b, n, v]`` of the next tokens, the memory after the batch, what the blocks
        measured, and what is seen of them.
        """
        count = batch.tokens.shape[1]
        places = memory.position + jnp.arange(count, dtype=jnp.int32)
        rho = self.tokens(batch.tokens)
        x = self.values(density.populations(rho).astype(self.dtype))

        def step(block: QuantumBlock, carry: PyTree, past: Array) -> tuple[PyTree, PyTree]:
            x, rho = carry
            carry, past, found = block(x, rho, past, places, positions, batch.mask)
            return carry, (past, found, watch_fn(carry[0]))

        (x, _), (states, found, seen) = self.blocks.scan(step, (x, rho), memory.states)
        memory = Memory(states, memory.position + count)
        return self.output(self.norm(x)), memory, found, seen

    def _forward(
        self, batch: Batch, key: Array | None, watch_fn: WatchFn
    ) -> tuple[Prediction, Any]:
        del key  # nothing is random
        memory = self.init_decode(batch.tokens.shape[0])
        logits, _, found, seen = self._read(batch, memory, positions_of(batch), watch_fn)
        return Prediction(logits, {}, {}, found), seen

    def init_decode(self, batch_size: int) -> Memory:
        config = self.config
        dtype = self.tokens.angles[...].dtype
        states = jnp.zeros((config.blocks, batch_size, WINDOW, config.dim, config.dim), dtype)
        return Memory(states, jnp.zeros((), jnp.int32))

    def decode(self, state: Memory, tokens: Array) -> tuple[Array, Memory]:
        position = state.position[None, None]
        logits, state, *_ = self._read(Batch(tokens[:, None]), state, position)
        return logits[:, 0], state


def _summary(
    config: QuantumTransformerConfig, measured: Measurement
) -> tuple[dict[str, Array], dict[str, Array]]:
    """Means over measured states and blocks, and the weighted free energy as a loss term."""
    states = jnp.maximum(jnp.sum(measured.states), 1)
    found = {
        name: jnp.sum(values) / states
        for name, values in measured._asdict().items()
        if name != "states"
    }
    weight = config.free_energy_weight
    return {"free_energy_term": weight * found["free_energy_nats"]} if weight else {}, found


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
        dtype: that of the projections: float32, float64 or bfloat16. States are in single
            precision, or in double for float64.
        counts: how often each token occurs in the training text, ``[vocab_size]``: frequent ones
            lose coherence. They only decide the value of a parameter, so a model whose weights are
            read back may be built with any counts; None for a model without it.

    Raises:
        ValueError: for numbers that do not fit, naming the option.
    """
    check_options(config, blocks=1, dim=2, width=1, hidden=1, measure_every=1)
    check_options(config, free_energy_weight=0)
    check_choice(config, "mixing", ("convex", "dephasing"))
    if counts is not None and jnp.shape(counts) != (vocab_size,):
        raise ValueError(
            f"counts must be [vocab_size = {vocab_size}], got shape {jnp.shape(counts)}"
        )
    return pure(
        lambda rngs: QuantumTransformer(config, vocab_size, length, counts, dtype=dtype, rngs=rngs),
        summarize=lambda statistics: _summary(config, statistics),
    )


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

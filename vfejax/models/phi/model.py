"""A Phi model: the transformer whose checkpoints carry that name.

Attention and feed-forward layer of a block read one and the same layer norm, and both are added to
the residual stream,

    y = norm(x),    x <- x + W_o attend(turn(W_q y), turn(W_k y), W_v y) + W_2 gelu(W_1 y),

with biases everywhere. Only the first channels of a head turn with the position, several heads of
queries may share one of keys and values, and queries and keys may be normalised head by head.

Source: Li et al., Textbooks are all you need II: phi-1.5 technical report (2023), as PyTorch
transformers computes it (``PhiForCausalLM``, with the tanh form of the gelu).
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.attention.depth_fusion import FUSIONS
from vfejax.models import kernel_products
from vfejax.models.blocks import Stack, embedding, normal
from vfejax.models.cache import append
from vfejax.models.intermediates import Watched, WatchFn
from vfejax.models.phi.attention import Mixer, first_fusion, mixer
from vfejax.models.phi.config import PhiConfig, Segment, Toroidal, segments
from vfejax.models.protocol import positions_of, pure
from vfejax.numerics import at_least_float32
from vfejax.types import Array, Batch, Prediction, SequenceModel

__all__ = ["Memory", "Phi", "build"]


class Memory(NamedTuple):
    """Keys and values read so far, ``[layers, b, max_length, kv_heads, c]`` for every segment, and
    how many there are.
    """

    keys: tuple[Array, ...]
    values: tuple[Array, ...]
    position: Array


def _norm(config: PhiConfig, width: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    return nnx.LayerNorm(
        width,
        epsilon=config.epsilon,
        use_fast_variance=False,
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        rngs=rngs,
    )


class _Block(nnx.Module):
    """One layer; its attention is ordinary where ``toroidal`` is None."""

    def __init__(
        self, config: PhiConfig, toroidal: Toroidal | None, *, dtype: jnp.dtype, rngs: nnx.Rngs
    ):
        dim, kv_dim = config.dim, config.kv_heads * config.head_dim
        linear = partial(
            kernel_products.linear,
            kernel_init=normal(0.02),
            dtype=dtype,
            param_dtype=at_least_float32(dtype),
            rngs=rngs,
        )
        norm = partial(_norm, config, dtype=dtype, rngs=rngs)
        self.config, self.toroidal = config, toroidal
        self.norm = norm(dim)
        self.query, self.out = linear(dim, dim), linear(dim, dim)
        self.key, self.value = linear(dim, kv_dim), linear(dim, kv_dim)
        if config.qk_norm:
            self.query_norm, self.key_norm = norm(config.head_dim), norm(config.head_dim)
        self.mlp_in, self.mlp_out = linear(dim, config.hidden), linear(config.hidden, dim)
        fusion = first_fusion(config, toroidal, rngs.params())
        self.fusion = nnx.List([nnx.Param(weight) for weight in fusion])

    @property
    def mixer(self) -> Mixer:
        """The attention of the layer."""
        return mixer(self.config, self.toroidal)

    def fused(self, answer: Array) -> Array:
        """The heads' answers, with the platters of each token mixed."""
        if self.toroidal is None:
            return answer
        weights = tuple(weight[...] for weight in self.fusion)
        return FUSIONS[self.toroidal.fusion].apply(weights, answer, self.toroidal.depth)

    def project(self, y: Array, positions: Array) -> tuple[Array, Array, Array]:
        """Turned queries ``[b, n, heads, c]``, turned keys and values ``[b, n, kv_heads, c]`` of
        normalised tokens at ``positions [b, n]``.
        """
        shape = (*y.shape[:-1], -1, self.config.head_dim)
        query, key, value = (f(y).reshape(shape) for f in (self.query, self.key, self.value))
        if self.config.qk_norm:
            query, key = self.query_norm(query), self.key_norm(key)
        turn = self.mixer.turn
        return turn(query, positions), turn(key, positions), value

    def shared(self, x: Array) -> Array:
        """Keys or values for every head of queries, ``[b, m, heads, c]``."""
        return jnp.repeat(x, self.config.heads // self.config.kv_heads, axis=2)

    def finish(self, x: Array, y: Array, answer: Array) -> Array:
        """The rest of the block, once every head has its answer ``[b, n, heads, c]``."""
        attended = self.out(self.fused(answer).reshape(*x.shape[:-1], -1))
        return x + attended + self.mlp_out(nnx.gelu(self.mlp_in(y), approximate=True))


class Phi(Watched):
    """The weights of a Phi model, and what it computes with them.

    Args:
        config: the model's options.
        dtype: that of the arithmetic: float32, float64 or bfloat16.
        rngs: where first weights come from.
    """

    def __init__(self, config: PhiConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self.config, self.dtype, self.max_length = config, dtype, config.length
        self.embedding = embedding(config.vocab_size, config.dim, dtype=dtype, rngs=rngs)
        self.segments = nnx.List([self._stack(segment, rngs) for segment in segments(config)])
        self.norm = _norm(config, config.dim, dtype=dtype, rngs=rngs)
        self.head = _Head(config, dtype=dtype, rngs=rngs)

    def _stack(self, segment: Segment, rngs: nnx.Rngs) -> Stack:
        def create(rngs: nnx.Rngs) -> _Block:
            return _Block(self.config, segment.toroidal, dtype=self.dtype, rngs=rngs)

        return Stack(create, len(segment.layers), rngs=rngs)

    def _logits(self, x: Array) -> Array:
        return self.head(self.norm(x), self.embedding.embedding[...])

    def _embedded(self, tokens: Array) -> Array:
        # Not nnx.Embed's own call, which converts the whole table when its dtype is another.
        return jnp.take(self.embedding.embedding[...], tokens, axis=0).astype(self.dtype)

    def _forward(
        self, batch: Batch, key: Array | None, watch_fn: WatchFn
    ) -> tuple[Prediction, Any]:
        del key  # nothing is random
        positions = jnp.broadcast_to(positions_of(batch), batch.tokens.shape)

        def step(block: _Block, x: Array, _: None) -> tuple[Array, Any]:
            y = block.norm(x)
            query, keys, values = block.project(y, positions)
            answer = block.mixer.attend(query, block.shared(keys), block.shared(values))
            x = block.finish(x, y, answer)
            return x, watch_fn(x)

        x, seen = self._embedded(batch.tokens), []
        for stack in self.segments:
            x, layers = stack.scan(step, x)
            seen.append(layers)
        return Prediction(self._logits(x), {}, {}), jax.tree.map(
            lambda *parts: jnp.concatenate(parts), *seen
        )

    def init_decode(self, batch_size: int) -> Memory:
        config = self.config
        shape = (batch_size, self.max_length, config.kv_heads, config.head_dim)

        def zeros() -> tuple[Array, ...]:
            layers = (len(segment.layers) for segment in segments(config))
            return tuple(jnp.zeros((number, *shape), self.dtype) for number in layers)

        return Memory(zeros(), zeros(), jnp.zeros((), jnp.int32))

    def read(self, state: Memory, tokens: Array) -> tuple[Array, Memory]:
        """Logits ``[b, v]`` after further tokens ``[b, n]`` of each sequence, and the memory with
        them.
        """
        start = state.position
        places = start + jnp.arange(tokens.shape[1], dtype=start.dtype)
        positions = jnp.broadcast_to(places[None], tokens.shape)

        def step(
            block: _Block, x: Array, layer: tuple[Array, Array]
        ) -> tuple[Array, tuple[Array, Array]]:
            y = block.norm(x)
            query, key, value = block.project(y, positions)
            keys, values = append(layer, (key, value), start)
            answer = block.mixer.read(query, block.shared(keys), block.shared(values), start)
            return block.finish(x, y, answer), (keys, values)

        x, memory = self._embedded(tokens), []
        for stack, *layers in zip(self.segments, state.keys, state.values, strict=True):
            x, layer = stack.scan(step, x, tuple(layers))
            memory.append(layer)
        keys, values = zip(*memory, strict=True)
        return self._logits(x[:, -1:])[:, 0], Memory(keys, values, start + tokens.shape[1])

    def decode(self, state: Memory, tokens: Array) -> tuple[Array, Memory]:
        return self.read(state, tokens[:, None])


class _Head(nnx.Module):
    """Logits: a matrix, or the token embedding, and a bias."""

    def __init__(self, config: PhiConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        weights = at_least_float32(dtype)
        self.dtype, shape = dtype, (config.dim, config.vocab_size)
        first = None if config.tied else normal(0.02)(rngs.params(), shape, weights)
        self.kernel = None if first is None else nnx.Param(first)
        self.bias = nnx.Param(jnp.zeros(config.vocab_size, weights))

    def __call__(self, x: Array, embedding: Array) -> Array:
        kernel = embedding.T if self.kernel is None else self.kernel[...]
        return x @ kernel.astype(self.dtype) + self.bias[...].astype(self.dtype)


def build(config: PhiConfig) -> SequenceModel:
    """The model with these options, which ``model.config`` holds. Weights may have another
    precision than its arithmetic.

    >>> import jax
    >>> from vfejax.models.phi.config import from_json
    >>> small = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1}
    >>> model = build(from_json({"model_type": "phi", "vocab_size": 11} | small))
    >>> params = model.init(jax.random.key(0))
    >>> model.apply(params, jnp.ones((1, 3), int)).logits.shape
    (1, 3, 11)
    """
    model = pure(lambda rngs: Phi(config, dtype=jnp.dtype(config.dtype), rngs=rngs))
    return model._replace(config=config)

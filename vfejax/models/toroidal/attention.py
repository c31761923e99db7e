"""Attention on a torus in place of ``nnx.MultiHeadAttention``, in flax models of others.

:mod:`vfejax.models.toroidal.function` says what differs from flax's attention.
"""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.attention import windows
from vfejax.attention.depth_fusion import FUSIONS, Fusion
from vfejax.models.toroidal.function import attention_fn, one_batch, shared_heads
from vfejax.models.toroidal.torus import Torus, attend, stream, turned
from vfejax.models.toroidal.weights import TorusWeights
from vfejax.types import Array

__all__ = ["ToroidalAttention"]


class ToroidalAttention(nnx.MultiHeadAttention):
    """``nnx.MultiHeadAttention`` on a torus: the same arguments, the same weights under the same
    names, and slopes and fusion beside them.

    With one platter, no slope and ``Torus(..., encoding=None)`` it is flax's attention. Weights of
    a flax module are taken over by ``nnx.update(new, nnx.state(old, nnx.Param))``.

    Decoding keeps a ring buffer: after ``init_cache(shape)`` and with ``decode=True`` every call
    reads one token ``[batch..., 1, features]`` and the last ``window`` before it (the circumference
    without a window), however many there were. ``shape`` gives the batch; its length is not read.

    Args:
        num_heads, in_features, qkv_features, out_features, num_kv_heads, in_kv_features: as
            ``nnx.MultiHeadAttention`` takes them.
        torus: its size, who reads whom, and how places turn queries and keys.
        slopes: nats lost per turn of the ring, a sequence: of one number for all heads, one for
            each head of a platter, or one for each head; empty for no distance bias.
        learn_slopes: whether slopes learn; they stay positive then.
        fusion: how platters read each other's answers.
        rank: of a fusion that has one.
        rngs: where first weights come from.
        options: all others of ``nnx.MultiHeadAttention`` but ``attention_fn``.

    Raises:
        ValueError: for a torus that does not fit the heads, naming the argument.

    >>> layer = ToroidalAttention(4, 16, torus=Torus(8, depth=2), decode=False, rngs=nnx.Rngs(0))
    >>> layer(jnp.ones((1, 8, 16))).shape
    (1, 8, 16)
    """

    def __init__(
        self,
        num_heads: int,
        in_features: int,
        qkv_features: int | None = None,
        out_features: int | None = None,
        num_kv_heads: int | None = None,
        in_kv_features: int | None = None,
        *,
        torus: Torus,
        slopes: Sequence[float] = (),
        learn_slopes: bool = True,
        fusion: Fusion = FUSIONS["none"],
        rank: int = 4,
        rngs: nnx.Rngs,
        **options: Any,
    ):
        super().__init__(
            num_heads,
            in_features,
            qkv_features,
            out_features,
            num_kv_heads,
            in_kv_features,
            rngs=rngs,
            **options,
        )
        self.torus = torus
        if learn_slopes and not all(slope > 0 for slope in slopes):
            raise ValueError(f"slopes must be positive to be learned, got {tuple(slopes)}")
        if not all(0 <= slope < math.inf for slope in slopes):
            raise ValueError(f"slopes must not be negative, and finite, got {tuple(slopes)}")
        self.torus_weights = TorusWeights(
            tuple(slopes) * num_heads if len(slopes) == 1 else tuple(slopes),
            fusion,
            learn_slopes=learn_slopes,
            depth=torus.depth,
            dim=self.qkv_features,
            rank=rank,
            param_dtype=self.param_dtype,
            rngs=rngs,
        )
        head = jax.ShapeDtypeStruct((1, 1, num_heads, self.head_dim), jnp.float32)
        slope = self.torus_weights.slope()
        jax.eval_shape(lambda x: attend(torus, x, x, x, slope), head)

    @property
    def attention_fn(self) -> Callable[..., Array]:
        """What flax's call computes with queries, keys and values."""
        weights = self.torus_weights
        return attention_fn(self.torus, slope=weights.slope(), fuse_fn=weights.fuse)

    @attention_fn.setter
    def attention_fn(self, function: Callable[..., Array]) -> None:
        # flax's constructor assigns its default, which has no place here.
        if function is not nnx.dot_product_attention:
            raise ValueError(f"attention_fn must not be given: it is the torus', got {function}")

    def __call__(
        self,
        inputs_q: Array,
        inputs_k: Array | None = None,
        inputs_v: Array | None = None,
        *,
        mask: Array | None = None,
        decode: bool | None = None,
        **options: Any,
    ) -> Array:
        """Attention of a sequence to itself, or of its next token to the last ones.

        Args:
            inputs_q: ``[batch..., n, features]``; one token, n = 1, where it decodes.
            inputs_k: what keys are made of; ``inputs_q`` by default.
            inputs_v: what values are made of; ``inputs_k`` by default.
            mask: ``[batch..., heads, n, n]``, True where a query may read a key; None where it
                decodes.
            decode: whether to read one token; what the constructor was told by default.
            options: all others of ``nnx.MultiHeadAttention``; none of them counts in decoding.

        Returns:
            ``[batch..., n, out_features]``.

        Raises:
            ValueError: for what does not fit, and for decoding with a mask or without a cache.
        """
        if not (self.decode if decode is None else decode):
            return super().__call__(
                inputs_q, inputs_k, inputs_v, mask=mask, decode=False, **options
            )
        inspect.signature(super().__call__).bind(inputs_q, **options)  # refuses a misspelt name
        if mask is not None:
            raise ValueError(f"mask must be None where it decodes, got {mask.shape}")
        inputs_k = inputs_q if inputs_k is None else inputs_k
        inputs_v = inputs_k if inputs_v is None else inputs_v
        query, key, value = self.query(inputs_q), self.key(inputs_k), self.value(inputs_v)
        if self.query_ln is not None and self.key_ln is not None:
            query, key = self.query_ln(query), self.key_ln(key)
        return self.out(self._next(query, key, value))

    def _next(self, query: Array, key: Array, value: Array) -> Array:
        """What the heads answer to the next token, which then stands in the ring buffer."""
        if self.cached_key is None or self.cached_value is None or self.cache_index is None:
            raise ValueError("the cache must be made by init_cache before decoding, got none")
        if query.shape[-3] != 1:
            raise ValueError(f"inputs_q must hold one token where it decodes, got {query.shape}")
        ring = self.cached_key[...], self.cached_value[...]
        if math.prod(query.shape[:-3]) != ring[0].shape[0]:
            raise ValueError(
                f"inputs_q must hold the {ring[0].shape[0]} sequences of the cache, got "
                f"{query.shape[:-3]}"
            )
        queries, keys, values = (
            one_batch(shared_heads(x, self.num_heads), 3).astype(ring[0].dtype)
            for x in (query, key, value)
        )
        reading = stream(self.torus, self.torus_weights.slope())
        state = reading.init((queries, keys, values))
        state = state._replace(ring=ring, position=self.cache_index[...])
        here = windows.places(state, 1)
        queries, keys = turned(self.torus, queries, here), turned(self.torus, keys, here)
        state, answer = reading.step(state, (queries, keys, values))
        self.cached_key[...], self.cached_value[...] = state.ring
        self.cache_index[...] = state.position
        return self.torus_weights.fuse(answer.values).astype(value.dtype).reshape(query.shape)

    def init_cache(
        self, input_shape: Sequence[int], dtype: jax.typing.DTypeLike = jnp.float32
    ) -> None:
        """Make an empty ring buffer, of ``window`` places for each sequence.

        Args:
            input_shape: ``[batch..., n, features]``, of which the batch counts.
            dtype: of the keys and values that are kept.
        """
        shape = (math.prod(input_shape[:-2]), 1, self.num_heads, self.head_dim)
        token: Any = jax.ShapeDtypeStruct(shape, dtype)
        state = stream(self.torus, None).init((token, token, token))
        self.cached_key, self.cached_value = map(nnx.Cache, state.ring)
        self.cache_index = nnx.Cache(state.position)

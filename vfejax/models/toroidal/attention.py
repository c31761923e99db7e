"""Attention on a torus for flax models of others: a module in place of ``nnx.MultiHeadAttention``,
and a function for the ``attention_fn`` that flax's modules take.

Both have flax's layouts: arrays ``[batch..., n, heads, c]``, masks ``[batch..., heads, n, m]`` that
are True (or not 0) where a query may read a key. Three things differ from flax. Queries and keys
are those of one sequence, of the same length. A query that may read nothing gets 0, not the mean of
all values. A ``bias`` of all pairs is refused: the torus makes its own.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from vfejax.attention import windows
from vfejax.attention.depth_fusion import FUSIONS, Fusion
from vfejax.attention.pattern import Pattern
from vfejax.attention.softmax import softmax
from vfejax.attention.tiles import logits
from vfejax.attention.toroidal import Method, dense
from vfejax.models.toroidal.torus import Torus, attend, read_weights, stream, turned
from vfejax.models.toroidal.weights import TorusWeights
from vfejax.types import Array

__all__ = ["ToroidalAttention", "attention_fn"]


def attention_fn(
    torus: Torus,
    *,
    slope: Array | float | None = None,
    fuse_fn: Callable[[Array], Array] | None = None,
) -> Callable[..., Array]:
    """A function that flax's attention modules take as their ``attention_fn``.

    Args:
        torus: its size, who reads whom, and how places turn queries and keys.
        slope: nats lost per turn of the ring, not negative: a number, ``[h / D]`` or ``[h]``; None
            for no distance bias.
        fuse_fn: what platters make of each other's answers ``[b, n, h, c]``, such as
            ``partial(depth_fusion.mean, depth=2)``; None for nothing.

    Returns:
        ``attend(query, key, value, bias=None, mask=None, ...) -> [batch..., n, h, v]`` with the
        arguments of ``flax.nnx.dot_product_attention``. Fewer heads of keys and values than of
        queries are shared in groups, as flax does. Dropout of the weights needs the method
        :func:`vfejax.attention.toroidal.dense`. ``precision`` is not read, as in flax's own.

    >>> module = nnx.MultiHeadAttention(
    ...     num_heads=4,
    ...     in_features=16,
    ...     attention_fn=attention_fn(Torus(circumference=8, depth=2), slope=4.0),
    ...     decode=False,
    ...     rngs=nnx.Rngs(0),
    ... )
    >>> x = jax.random.normal(jax.random.key(0), (1, 8, 16))
    >>> rolled = module(jnp.roll(x, 3, axis=1))  # a torus has no first place
    >>> bool(jnp.allclose(rolled, jnp.roll(module(x), 3, axis=1), atol=1e-5))
    True
    """

    def apply(
        query: Array,
        key: Array,
        value: Array,
        bias: Array | None = None,
        mask: Array | None = None,
        broadcast_dropout: bool = True,
        dropout_rng: Array | None = None,
        dropout_rate: float = 0.0,
        deterministic: bool = False,
        dtype: jax.typing.DTypeLike | None = None,
        precision: jax.lax.PrecisionLike = None,
        module: nnx.Module | None = None,
        promote_dtype: Callable[..., Any] = dtypes.promote_dtype,
        is_causal: bool = False,
        input_positions: Array | None = None,
    ) -> Array:
        del precision
        query, key, value = promote_dtype((query, key, value), dtype=dtype)
        _check(query, key, value, bias)
        batch, heads = query.shape[:-3], query.shape[-2]
        query, key, value = (_one_batch(_shared(x, heads), 3) for x in (query, key, value))
        mask, places = _as_mask(mask, batch), _as_positions(input_positions, batch)
        method = torus.method
        if dropout_rate > 0 and not deterministic:
            method = _dropping(torus, dropout_rng, dropout_rate, broadcast_dropout)
        if module is not None:
            weights = read_weights(
                torus, query, key, slope, mask=mask, positions=places, causal=is_causal
            )
            weights = jnp.moveaxis(jnp.sum(weights, axis=-2), 2, 1)
            weights = weights.reshape(*batch, *weights.shape[1:])
            module.sow(nnx.Intermediate, "attention_weights", weights)
        answer = attend(
            torus,
            query,
            key,
            value,
            slope,
            mask=mask,
            positions=places,
            causal=is_causal,
            method=method,
        )
        answer = answer if fuse_fn is None else fuse_fn(answer)
        return answer.reshape(*batch, *answer.shape[1:])

    return apply


def _check(query: Array, key: Array, value: Array, bias: Array | None) -> None:
    if bias is not None:
        raise ValueError(
            "bias must be None: a torus makes its own from distances, and a mask says who may read "
            f"whom; got {bias.shape}"
        )
    if query.ndim < 3 or key.shape[:-2] != query.shape[:-2] or value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            "query, key and value must be [batch..., n, heads, c] of one sequence, got "
            f"{query.shape}, {key.shape} and {value.shape}"
        )


def _one_batch(x: Array, axes: int) -> Array:
    """All axes but the last ones joined in one."""
    return x.reshape(math.prod(x.shape[: x.ndim - axes]), *x.shape[x.ndim - axes :])


def _shared(x: Array, heads: int) -> Array:
    """Heads of keys or values ``[..., n, heads, c]``, each for a group of queries."""
    if heads % x.shape[-2]:
        raise ValueError(f"key and value heads must divide the {heads} of the query, got {x.shape}")
    return jnp.repeat(x, heads // x.shape[-2], axis=-2)


def _as_mask(mask: Array | None, batch: tuple[int, ...]) -> Array | None:
    """flax's mask ``[batch..., heads, n, m]`` as bool with one axis for the batch."""
    if mask is None:
        return None
    mask = mask.astype(bool).reshape((1,) * max(len(batch) + 3 - mask.ndim, 0) + mask.shape)
    if math.prod(mask.shape[:-3]) > 1:
        mask = jnp.broadcast_to(mask, (*batch, *mask.shape[-3:]))
    return _one_batch(mask, 3)


def _as_positions(positions: Array | None, batch: tuple[int, ...]) -> Array | None:
    if positions is None or positions.ndim == 1:
        return positions
    return _one_batch(jnp.broadcast_to(positions, (*batch, positions.shape[-1])), 1)


def _dropping(torus: Torus, key: Array | None, rate: float, shared: bool) -> Method:
    """The dense method with a share of the weights left out, the same for all heads and sequences
    if ``shared``.
    """
    if torus.method is not dense:
        raise ValueError(f"dropout_rate must be 0 for a method other than dense, got {rate}")
    if key is None:
        raise ValueError("dropout_rng must be given to drop weights, got None")

    def method(query: Array, keys: Array, values: Array, pattern: Pattern) -> Array:
        weights = softmax(*logits(query, keys, pattern))
        shape = (1, 1, *weights.shape[2:]) if shared else weights.shape
        kept = jax.random.bernoulli(key, 1 - rate, shape)
        weights = jnp.where(kept, weights / jnp.asarray(1 - rate, weights.dtype), 0)
        answer = jnp.einsum(
            "bgnm,bgmv->bgnv",
            weights.astype(values.dtype),
            values,
            preferred_element_type=weights.dtype,
        )
        return answer.astype(values.dtype)

    return method


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
        slopes: nats lost per turn of the ring: one number, one for each head of a platter, or one
            for each head; empty for no distance bias.
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
        queries, keys, values = (
            _one_batch(_shared(x, self.num_heads), 3).astype(ring[0].dtype)
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

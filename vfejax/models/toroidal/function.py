"""Attention on a torus as the ``attention_fn`` that flax's modules take.

Arrays are ``[batch..., n, heads, c]`` and masks ``[batch..., heads, n, m]``, True (or not 0) where
a query may read a key, as flax has them. Three things differ from ``nnx.dot_product_attention``.
Queries and keys are those of one sequence, of the same length. A query that may read nothing gets
0, not the mean of all values. A ``bias`` of all pairs is refused: the torus makes its own.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from flax.nnx.nn import dtypes

from vfejax.attention.pattern import Pattern
from vfejax.attention.softmax import softmax
from vfejax.attention.tiles import logits
from vfejax.attention.toroidal import Method, dense
from vfejax.models.toroidal.torus import Torus, attend, read_weights
from vfejax.types import Array

__all__ = ["attention_fn", "one_batch", "shared_heads"]


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
        query, key, value = (one_batch(shared_heads(x, heads), 3) for x in (query, key, value))
        mask, places = _as_mask(mask, batch), _as_positions(input_positions, batch)
        method = torus.method
        if dropout_rate > 0 and not deterministic:
            method = _dropping(torus, dropout_rng, dropout_rate, broadcast_dropout)
        whom: dict[str, Any] = {"mask": mask, "positions": places, "causal": is_causal}
        if module is not None:
            _sow(module, read_weights(torus, query, key, slope, **whom), batch)
        answer = attend(torus, query, key, value, slope, method=method, **whom)
        answer = answer if fuse_fn is None else fuse_fn(answer)
        return answer.reshape(*batch, *answer.shape[1:])

    return apply


def _sow(module: nnx.Module, weights: Array, batch: tuple[int, ...]) -> None:
    """Leave weights ``[b, n, h, D, m]`` where flax does: what is read of a token, on whatever
    platter.
    """
    weights = jnp.moveaxis(jnp.sum(weights, axis=-2), 2, 1)
    weights = weights.reshape(*batch, *weights.shape[1:])
    module.sow(nnx.Intermediate, "attention_weights", weights)


def _check(query: Array, key: Array, value: Array, bias: Array | None) -> None:
    if bias is not None:
        raise ValueError(
            "bias must be None: a torus makes its own from distances, and a mask says who may read "
            f"whom; got {bias.shape}"
        )
    if query.ndim < 3 or key.shape[:-2] != query.shape[:-2] or value.shape[:-1] != key.shape[:-1]:
        raise ValueError(
            "query, key and value must be [batch..., n, heads, c] of one sequence, got "
            f"{query.shape}, {key.shape} and {value.shape}; to decode token by token, take "
            "ToroidalAttention"
        )


def one_batch(x: Array, axes: int) -> Array:
    """All axes but the last ones joined in one.

    Args:
        x: ``[batch..., ...]``.
        axes: how many of the last axes stay.

    >>> one_batch(jnp.ones((2, 3, 4, 5)), 2).shape
    (6, 4, 5)
    """
    return x.reshape(math.prod(x.shape[: x.ndim - axes]), *x.shape[x.ndim - axes :])


def shared_heads(x: Array, heads: int) -> Array:
    """Heads of keys or values, each repeated for the group of queries that read it.

    Args:
        x: ``[..., n, k, c]``, with k a divisor of ``heads``.
        heads: number of query heads.

    Returns:
        ``[..., n, heads, c]``.

    Raises:
        ValueError: when k does not divide ``heads``.

    >>> shared_heads(jnp.array([[[1.0], [2.0]]]), 4).ravel().tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
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
    return one_batch(mask, 3)


def _as_positions(positions: Array | None, batch: tuple[int, ...]) -> Array | None:
    if positions is None or positions.ndim == 1:
        return positions
    return one_batch(jnp.broadcast_to(positions, (*batch, positions.shape[-1])), 1)


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

"""The keys and values that a model with attention remembers while it decodes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.models.blocks import attend
from vfejax.types import Array

__all__ = ["Cache", "append", "empty", "read_next"]


class Cache(NamedTuple):
    """Keys and values read so far, ``[layers, b, max_length, heads, c]``, and how many there
    are.
    """

    keys: Array
    values: Array
    position: Array


def empty(shape: tuple[int, int, int, int, int], dtype: jax.typing.DTypeLike) -> Cache:
    """A cache before the first token.

    >>> empty((2, 1, 8, 4, 16), jnp.float32).keys.shape
    (2, 1, 8, 4, 16)
    """
    # Two arrays, not one twice: a cache can be donated.
    return Cache(jnp.zeros(shape, dtype), jnp.zeros(shape, dtype), jnp.zeros((), jnp.int32))


def append(
    layer: tuple[Array, Array], entries: tuple[Array, Array], position: Array
) -> tuple[Array, Array]:
    """Keys and values of a layer with those of further tokens.

    Args:
        layer: keys and values so far, ``[b, max_length, heads, c]``.
        entries: keys and values of n tokens, ``[b, n, heads, c]``.
        position: how many tokens came before, an integer ``[]``; at most ``max_length - n``.

    Returns:
        Keys and values, ``[b, max_length, heads, c]``.

    >>> layer, token = (jnp.zeros((1, 3, 1, 1)),) * 2, jnp.ones((1, 1, 1, 1))
    >>> append(layer, (token, 2 * token), jnp.asarray(1))[1].ravel().tolist()
    [0.0, 2.0, 0.0]
    """
    keys, values = (
        jax.lax.dynamic_update_slice_in_dim(old, entry.astype(old.dtype), position, axis=1)
        for old, entry in zip(layer, entries, strict=True)
    )
    return keys, values


def read_next(
    projected: tuple[Array, Array, Array], layer: tuple[Array, Array], position: Array
) -> tuple[Array, tuple[Array, Array]]:
    """What the heads of one layer answer to the next token: it reads itself and all before it.

    Args:
        projected: query, key and value of the token, ``[b, 1, heads, c]``.
        layer: keys and values of the layer so far, ``[b, max_length, heads, c]``.
        position: how many tokens came before, an integer ``[]``.

    Returns:
        The answers ``[b, 1, heads, c]``, and keys and values with those of the token.

    >>> token, layer = jnp.ones((1, 1, 1, 2)), (jnp.zeros((1, 3, 1, 2)),) * 2
    >>> answer, _ = read_next((token, token, token), layer, jnp.asarray(0))
    >>> answer.tolist()
    [[[[1.0, 1.0]]]]
    """
    query, key, value = projected
    keys, values = append(layer, (key, value), position)
    seen = (jnp.arange(keys.shape[1], dtype=position.dtype) <= position)[None]
    return attend(query, keys, values, seen), (keys, values)

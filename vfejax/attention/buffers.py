"""Ring buffers: the last tokens of a stream, in memory that does not grow.

Arrays are ``[b, g, slots, ...]``. The token at place t of its sequence is written to slot ``t mod
slots``, over the one that is ``slots`` places older. Nothing is ever moved.
"""

import jax
import jax.numpy as jnp

from vfejax.types import Array, PyTree

__all__ = ["held_places", "push", "put", "replaced"]


def held_places(count: Array, slots: int) -> Array:
    """Place in the sequence of the token in each slot; negative for a slot still empty.

    Args:
        count: tokens written so far, integer ``[b]``.
        slots: slots of the ring.

    Returns:
        ``[b, slots]``, in the dtype of ``count``.

    >>> held_places(jnp.array([2, 6]), 4).tolist()
    [[0, 1, -2, -1], [4, 5, 2, 3]]
    """
    last = count[:, None] - 1
    behind = jnp.mod(
        last - jnp.arange(slots, dtype=count.dtype)[None], jnp.asarray(slots, count.dtype)
    )
    return last - behind


def push(buffer: PyTree, tokens: PyTree, count: Array) -> PyTree:
    """The buffer after a chunk of tokens; of a chunk longer than the ring, its last part is kept.

    Args:
        buffer: arrays ``[b, g, slots, ...]``.
        tokens: the same tree of arrays ``[b, g, n, ...]``.
        count: tokens written before, integer ``[b]``.

    >>> push(jnp.zeros((1, 1, 3)), jnp.array([[[4.0, 5.0]]]), jnp.array([2])).tolist()
    [[[5.0, 0.0, 4.0]]]
    """

    def write(old: Array, new: Array) -> Array:
        slots, n = old.shape[2], new.shape[2]
        kept = min(n, slots)
        places = count[:, None] + jnp.arange(n - kept, n, dtype=count.dtype)[None]
        return put(old, new[:, :, n - kept :], jnp.mod(places, jnp.asarray(slots, count.dtype)))

    return jax.tree.map(write, buffer, tokens)


def put(buffer: Array, tokens: Array, slots: Array) -> Array:
    """Write tokens to slots; those whose slot does not exist are left out.

    Args:
        buffer: ``[b, g, slots, ...]``.
        tokens: ``[b, g, n, ...]``.
        slots: integer ``[b, n]``, different within a sequence and not negative.

    >>> put(jnp.zeros((1, 1, 2)), jnp.array([[[4.0, 5.0]]]), jnp.array([[1, 2]])).tolist()
    [[[0.0, 4.0]]]
    """
    return jax.vmap(lambda old, new, at: old.at[:, at].set(new, mode="drop"))(
        buffer, tokens.astype(buffer.dtype), slots
    )


def replaced(buffer: PyTree, tokens: PyTree, count: Array) -> PyTree:
    """The tokens that fall out of the ring while a chunk of n is written, in order of their places
    ``count - slots`` to ``count - slots + n - 1``; zeros, or what the buffer began with, before the
    first token.

    Args:
        buffer: arrays ``[b, g, slots, ...]``, before the chunk.
        tokens: the chunk, the same tree of arrays ``[b, g, n, ...]``.
        count: tokens written before, integer ``[b]``.

    Returns:
        The tree of arrays ``[b, g, n, ...]``.

    >>> replaced(jnp.array([[[4.0, 3.0]]]), jnp.array([[[5.0, 6.0, 7.0]]]), jnp.array([5])).tolist()
    [[[3.0, 4.0, 5.0]]]
    """

    def read(old: Array, new: Array) -> Array:
        slots, n = old.shape[2], new.shape[2]
        from_ring = min(n, slots)
        places = count[:, None] + jnp.arange(from_ring, dtype=count.dtype)[None]
        at = jnp.mod(places, jnp.asarray(slots, count.dtype))
        oldest = jax.vmap(lambda row, where: row[:, where])(old, at)
        return jnp.concatenate([oldest, new[:, :, : n - from_ring].astype(old.dtype)], axis=2)

    return jax.tree.map(read, buffer, tokens)

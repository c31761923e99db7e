"""The attention of a Phi layer: how queries and keys turn, and what a query reads."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.attention.rope import rotary
from vfejax.models.blocks import attend
from vfejax.models.phi.config import PhiConfig
from vfejax.types import Array

__all__ = ["Mixer", "causal"]


class Mixer(NamedTuple):
    """The attention of a layer as pure functions.

    Attributes:
        turn: ``turn(x [b, n, heads, c], positions [b, n]) -> [b, n, heads, c]``: queries or keys,
            turned by their positions.
        attend: ``attend(query, key, value)``, all ``[b, n, heads, c]``: every token reads itself
            and those before.
        read: ``read(query [b, n, heads, c], keys, values [b, m, heads, c], start)``: the same for
            tokens at the places ``start`` to ``start + n - 1``, from keys and values at 0 to m - 1.
    """

    turn: Callable[[Array, Array], Array]
    attend: Callable[[Array, Array, Array], Array]
    read: Callable[[Array, Array, Array, Array], Array]


def causal(config: PhiConfig) -> Mixer:
    """The attention that Phi models are trained with."""

    def turn(x: Array, positions: Array) -> Array:
        turned = rotary(x[..., : config.rotary], positions, base=config.base)
        return jnp.concatenate([turned, x[..., config.rotary :]], axis=-1)

    def read(query: Array, keys: Array, values: Array, start: Array) -> Array:
        places = start + jnp.arange(query.shape[1], dtype=start.dtype)
        seen = jnp.arange(keys.shape[1], dtype=start.dtype)[None, :] <= places[:, None]
        return attend(query, keys, values, seen)

    return Mixer(turn, lambda q, k, v: read(q, k, v, jnp.zeros((), jnp.int32)), read)

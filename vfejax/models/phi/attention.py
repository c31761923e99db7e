"""The attention of a Phi layer: rotary positions, masks and the attention method."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.attention import encodings
from vfejax.attention.depth_fusion import FUSIONS
from vfejax.attention.pattern import Pattern
from vfejax.attention.rope import Encoding, rotary, rotate
from vfejax.attention.toroidal import axial_attention, dense, toroidal_attention
from vfejax.geometry.torus import circular_distance, linear_distance
from vfejax.models.blocks import attend
from vfejax.models.phi.config import PhiConfig, Toroidal
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["Mixer", "causal", "check_encodings", "first_fusion", "mixer", "toroidal"]

_DISTANCES = {"circular": circular_distance, "linear": linear_distance}


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


def _encoding(config: PhiConfig, options: Toroidal, ring: int, depth: int) -> Encoding:
    """The rates of the channels that turn; standard and snapped ones follow the base of the
    weights.
    """
    channels, base = config.rotary, config.base
    return {
        "standard": lambda: encodings.standard(channels, depth, base),
        "snapped": lambda: encodings.snapped(channels, ring, depth, base),
        "geometric": lambda: encodings.geometric(channels, ring, depth),
        "mixed": lambda: encodings.mixed(channels, ring, depth),
    }[options.encoding]()


def toroidal(config: PhiConfig, options: Toroidal) -> Mixer:
    """Causal attention on a torus (:mod:`vfejax.attention.toroidal`), without the depth fusion that
    follows it.

    Args:
        config: the options of the model.
        options: those of the attention.

    Raises:
        ValueError: for an encoding that has no room on the ring or in the channels that turn.
    """
    ring = config.length if options.circumference is None else options.circumference
    slope = options.slope or None
    is_joint = options.attention == "joint"
    # Inside a platter depth cancels, so that every channel is left to the sequence.
    depth = options.depth if is_joint else 1
    encoding = _encoding(config, options, ring, depth)

    def turn(x: Array, positions: Array) -> Array:
        turned = rotate(x[..., : config.rotary], positions, encoding, depth)
        return jnp.concatenate([turned, x[..., config.rotary :]], axis=-1)

    def whole(query: Array, key: Array, value: Array) -> Array:
        return (toroidal_attention if is_joint else axial_attention)(
            query,
            key,
            value,
            depth=options.depth,
            slope=slope,
            circumference=ring,
            causal=True,
            window=options.window,
            distance_fn=_DISTANCES[options.distance],
        )

    return Mixer(turn, whole, _reader(options, ring, depth, slope))


def _reader(
    options: Toroidal, ring: int, depth: int, slope: float | None
) -> Callable[[Array, Array, Array, Array], Array]:
    """``read`` of a :class:`Mixer`: the attention of tokens that come behind others. ``depth`` is
    that of the platters that meet.
    """

    def read(query: Array, keys: Array, values: Array, start: Array) -> Array:
        group, dtype = query.shape[2] // depth, at_least_float32(query.dtype)
        pattern = Pattern(
            start + jnp.arange(query.shape[1], dtype=start.dtype)[None],
            jnp.arange(keys.shape[1], dtype=start.dtype)[None],
            slope=None if slope is None else jnp.full((group, depth), slope, dtype),
            mask=None,
            depth=depth,
            circumference=ring,
            distance_fn=_DISTANCES[options.distance],
            causal=True,
            window=options.window,
            is_counted=False,
        )
        answer = dense(_flat(query, depth), _flat(keys, depth), _flat(values, depth), pattern)
        answer = answer.reshape(query.shape[0], group, query.shape[1], depth, query.shape[3])
        return jnp.moveaxis(answer, 1, 3).reshape(query.shape)

    return read


def check_encodings(config: PhiConfig) -> None:
    """Raise ValueError for a swapped attention whose encoding has no room on its ring or in the
    channels that turn.

    Args:
        config: the options of the model.
    """
    for options in filter(None, config.swapped):
        toroidal(config, options)


def _flat(x: Array, depth: int) -> Array:
    """``[b, n, D g, c]`` to ``[b, g, n D, c]``: the tokens of all platters on one axis."""
    batch, n, heads, channels = x.shape
    grouped = jnp.moveaxis(x.reshape(batch, n, depth, heads // depth, channels), 3, 1)
    return grouped.reshape(batch, heads // depth, n * depth, channels)


def mixer(config: PhiConfig, options: Toroidal | None) -> Mixer:
    """The attention of a layer: ordinary for None."""
    return causal(config) if options is None else toroidal(config, options)


def first_fusion(config: PhiConfig, options: Toroidal | None, key: Array) -> tuple[Array, ...]:
    """First weights of a layer's depth fusion, in float32; none for ordinary attention and for most
    fusions.

    Args:
        config: the options of the model.
        options: those of the attention on a torus; None for ordinary attention.
        key: random key.
    """
    if options is None:
        return ()
    return FUSIONS[options.fusion].init(key, config.dim, options.rank, jnp.float32)

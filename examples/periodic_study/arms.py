"""One small encoder, and the ways to tell it about positions that the study compares.

The encoder has two blocks of attention and a feed-forward layer on root-mean-square norms, and
predicts a symbol for every place. All arms share everything but positions: they are the library's
:func:`vfejax.attention.toroidal.toroidal_attention` with other arguments. Heads have as many
channels as the ring has places, so that rates which fit the ring can express every function of a
distance round it.
"""

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.attention.depth_fusion import FUSIONS
from vfejax.attention.encodings import geometric, standard
from vfejax.attention.rope import Encoding, rotate
from vfejax.attention.toroidal import axial_attention, toroidal_attention
from vfejax.geometry.torus import circular_distance, linear_distance

__all__ = ["ARMS", "LENGTH", "Arm", "apply", "init", "num_parameters", "sinusoids"]

LENGTH = 16  # N, places of the ring
DIM, HEADS, CHANNELS, HIDDEN, BLOCKS = 32, 4, 16, 64, 2
RANK = 4  # of the fusion
SHORT_BASE = (LENGTH / (2 * math.pi)) ** (CHANNELS / (CHANNELS - 2))  # slowest turn: one in N


class Arm(NamedTuple):
    """A way to tell the encoder about positions.

    Attributes:
        title: for tables.
        encoding: how queries and keys turn, or None.
        attention: the library's function, without a slope.
        distance: what the learnt slopes multiply, or None for no bias.
        depth: D, number of platters.
        fusion: name in :data:`vfejax.attention.depth_fusion.FUSIONS`.
        is_absolute: whether sinusoids are added to the symbols.
        is_rolled: whether sequences are rolled at random in training.
    """

    title: str
    encoding: Encoding | None = None
    attention: Callable[..., jax.Array] = toroidal_attention
    distance: Callable[[jax.Array, int], jax.Array] | None = None
    depth: int = 1
    fusion: str = "none"
    is_absolute: bool = False
    is_rolled: bool = False


INTEGERS = geometric(CHANNELS, LENGTH)
ARMS: dict[str, Arm] = {
    "none": Arm("no position"),
    "sinusoidal": Arm("sinusoidal", is_absolute=True),
    "rotary": Arm("rotary", standard(CHANNELS)),
    "rotary-short": Arm("rotary, short base", standard(CHANNELS, base=SHORT_BASE)),
    "rotary-alibi": Arm("rotary + ALiBi", standard(CHANNELS), distance=linear_distance),
    "rotary-rolled": Arm("rotary, rolled in training", standard(CHANNELS), is_rolled=True),
    "integers": Arm("integer rates only", INTEGERS),
    "bias": Arm("circular bias only", distance=circular_distance),
    "toroidal": Arm("toroidal, D = 1", INTEGERS, distance=circular_distance),
    "axial": Arm(
        "toroidal, D = 4 axial, low-rank fusion",
        INTEGERS,  # depth cancels inside a platter: all pairs turn with the ring
        axial_attention,
        circular_distance,
        4,
        "low-rank",
    ),
    "axial-attention": Arm(
        "toroidal, D = 4 axial, attention fusion",
        INTEGERS,
        axial_attention,
        circular_distance,
        4,
        "attention",
    ),
    "joint": Arm(
        "toroidal, D = 4 joint",
        geometric(CHANNELS, LENGTH, depth=4),
        distance=circular_distance,
        depth=4,
    ),
}


def sinusoids(length: int, dim: int) -> np.ndarray:
    """Sines and cosines of the position at rates from 1 down to 1e-4, ``[length, dim]``."""
    angles = np.arange(length)[:, None] * 1e4 ** (-np.arange(0, dim, 2) / dim)
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1)


def _init_block(key: jax.Array, arm: Arm) -> dict:
    """First weights of a block; what the fusion costs, the feed-forward layer gives up."""
    inner = HEADS * CHANNELS
    keys = jax.random.split(key, 5)
    fusion = FUSIONS[arm.fusion].init(keys[4], inner, RANK, jnp.float32)
    hidden = HIDDEN - round(sum(x.size for x in fusion) / (2 * DIM))
    shapes = {
        "look": (DIM, 3 * inner),
        "merge": (inner, DIM),
        "up": (DIM, hidden),
        "down": (hidden, DIM),
    }
    block: dict = {
        name: jax.random.normal(k, shape, jnp.float32) / shape[0] ** 0.5
        for k, (name, shape) in zip(keys, shapes.items(), strict=False)
    }
    if arm.distance is not None:
        # ALiBi's: 2^(-8 k / h) logits per place, here per turn of the ring.
        rates = 2.0 ** (-8 * np.arange(1, HEADS + 1) / HEADS)
        block["log_slope"] = jnp.asarray(np.log(LENGTH * rates), jnp.float32)
    return block | {"fusion": fusion}


def init(key: jax.Array, arm: Arm, num_symbols: int) -> dict:
    """First weights of the encoder."""
    start, end, key_blocks = jax.random.split(key, 3)
    return {
        "embed": jax.random.normal(start, (num_symbols + 1, DIM), jnp.float32),
        "read": jax.random.normal(end, (DIM, num_symbols), jnp.float32) / DIM**0.5,
        "blocks": jax.vmap(lambda k: _init_block(k, arm))(jax.random.split(key_blocks, BLOCKS)),
    }


def num_parameters(params: dict) -> int:
    """Numbers that are trained."""
    return sum(x.size for x in jax.tree.leaves(params))


def _norm(x: jax.Array) -> jax.Array:
    return x * jax.lax.rsqrt(jnp.mean(x**2, axis=-1, keepdims=True) + 1e-6)


def _attend(block: dict, arm: Arm, x: jax.Array) -> jax.Array:
    batch, length, _ = x.shape
    looks = jnp.reshape(x @ block["look"], (batch, length, 3, HEADS, CHANNELS))
    query, key, value = looks[:, :, 0], looks[:, :, 1], looks[:, :, 2]
    if arm.encoding is not None:
        across = arm.depth if arm.encoding.depth.any() else 1
        turn = partial(rotate, positions=jnp.arange(length), encoding=arm.encoding, depth=across)
        query, key = turn(query), turn(key)
    answer = arm.attention(
        query,
        key,
        value,
        depth=arm.depth,
        slope=None if arm.distance is None else jnp.exp(block["log_slope"]),
        circumference=length,
        distance_fn=arm.distance or circular_distance,
    )
    answer = FUSIONS[arm.fusion].apply(block["fusion"], answer, arm.depth)
    return jnp.reshape(answer, (batch, length, -1)) @ block["merge"]


def apply(params: dict, arm: Arm, tokens: jax.Array) -> jax.Array:
    """Logits ``[b, n, V]`` of the symbol at every place.

    Args:
        params: from :func:`init`.
        arm: the same.
        tokens: symbols, integers ``[b, n]``; V where hidden.
    """
    x = params["embed"][tokens]
    if arm.is_absolute:
        x = x + jnp.asarray(sinusoids(*x.shape[1:]), x.dtype)[None]

    def layer(x: jax.Array, block: dict) -> tuple[jax.Array, None]:
        x = x + _attend(block, arm, _norm(x))
        return x + jax.nn.gelu(_norm(x) @ block["up"]) @ block["down"], None

    return _norm(jax.lax.scan(layer, x, params["blocks"])[0]) @ params["read"]

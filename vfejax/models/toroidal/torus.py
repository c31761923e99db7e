"""A torus as one value, for the attention layers on it: its size, its masks, and its rotary
encoding.

A :class:`Torus` holds no arrays and can be compared and hashed, so that a flax module may keep it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from vfejax.attention.encodings import geometric
from vfejax.attention.rope import Encoding, rotate
from vfejax.attention.streaming import Stream, axial_window, toroidal_window
from vfejax.attention.toroidal import Method, axial_attention, dense, toroidal_attention
from vfejax.geometry.torus import circular_distance
from vfejax.types import Array

__all__ = [
    "AXIAL",
    "JOINT",
    "DepthMode",
    "EncodingFn",
    "Torus",
    "attend",
    "read_weights",
    "stream",
    "turned",
]


EncodingFn = Callable[[int, int, int], Encoding]
"""``(channels, circumference, depth) -> Encoding``; see
``ENCODINGS`` of :mod:`vfejax.attention.encodings`.
"""


class DepthMode(NamedTuple):
    """Which platters a query reads.

    Attributes:
        attention: :func:`vfejax.attention.toroidal.toroidal_attention`, or one with its arguments.
        window: the same as a stream, such as :func:`vfejax.attention.streaming.toroidal_window`.
        meets: whether platters meet. Where they do not, depth cancels in every product, and the
            encoding leaves all channels to the ring.
    """

    attention: Callable[..., Array]
    window: Callable[..., Stream]
    meets: bool


JOINT = DepthMode(toroidal_attention, toroidal_window, meets=True)
"""Every query reads all platters."""

AXIAL = DepthMode(axial_attention, axial_window, meets=False)
"""Every query reads its own platter."""


class Torus(NamedTuple):
    """How heads attend on a torus; all but their weights.

    Attributes:
        circumference: places of the ring, N.
        depth: number of platters D, a divisor of the number of heads.
        mode: :data:`JOINT` or :data:`AXIAL`.
        encoding: makes the rotary encoding; None for no rotary positions.
        distance_fn: distance along the ring, from offset and circumference.
        causal: whether a query reads only its own place and those before.
        window: how far a query reads (see :func:`vfejax.attention.toroidal.toroidal_attention`).
        method: how attention is computed.
    """

    circumference: int
    depth: int = 1
    mode: DepthMode = JOINT
    encoding: EncodingFn | None = geometric
    distance_fn: Callable[[Array, int], Array] = circular_distance
    causal: bool = False
    window: int | None = None
    method: Method = dense


def turned(torus: Torus, x: Array, positions: Array) -> Array:
    """Queries or keys turned by their places.

    Args:
        torus: for the encoding.
        x: ``[b, n, h, c]``.
        positions: integers ``[n]`` or ``[b, n]``.
    """
    if torus.encoding is None:
        return x
    depth = torus.depth if torus.mode.meets else 1
    encoding = torus.encoding(x.shape[-1], torus.circumference, depth)
    return rotate(x, positions, encoding, depth)


def attend(
    torus: Torus,
    query: Array,
    key: Array,
    value: Array,
    slope: Array | float | None,
    *,
    mask: Array | None = None,
    positions: Array | None = None,
    causal: bool = False,
    method: Method | None = None,
) -> Array:
    """Attention on the torus to queries and keys that are not turned yet.

    Args:
        torus: its size and who reads whom.
        query: ``[b, n, h, c]``.
        key: ``[b, n, h, c]``.
        value: ``[b, n, h, v]``.
        slope: nats lost per turn of the ring, a number, ``[h / D]`` or ``[h]``; None for no
            distance bias.
        mask: True where a query may read a key; 4 axes that broadcast to ``[b, h, n, n]``.
        positions: place of every token, integers ``[n]`` or ``[b, n]``; by default 0, 1, 2, ...
        causal: reads only the past, also on a torus that is not causal.
        method: another one than the torus has.

    Returns:
        ``[b, n, h, v]``; 0 for a query that may read nothing.

    Raises:
        ValueError: for shapes, dtypes or numbers that do not fit, naming the argument.

    >>> x = jnp.arange(8.0).reshape(1, 4, 1, 2)
    >>> attend(Torus(4, causal=True), x, x, x, 8.0).shape
    (1, 4, 1, 2)
    """
    places = jnp.arange(query.shape[1], dtype=jnp.int32) if positions is None else positions
    return torus.mode.attention(
        turned(torus, query, places),
        turned(torus, key, places),
        value,
        depth=torus.depth,
        slope=slope,
        circumference=torus.circumference,
        causal=torus.causal or causal,
        window=torus.window,
        mask=mask,
        positions=positions,
        distance_fn=torus.distance_fn,
        method=torus.method if method is None else method,
    )


def read_weights(
    torus: Torus,
    query: Array,
    key: Array,
    slope: Array | float | None,
    *,
    mask: Array | None = None,
    positions: Array | None = None,
    causal: bool = False,
    method: Method | None = None,
) -> Array:
    """The weight with which every query reads every token: what it answers when the value of each
    token is a unit vector of its own.

    Args:
        torus: its size and who reads whom.
        query: ``[b, n, h, c]``, not turned yet.
        key: ``[b, n, h, c]``.
        slope: as :func:`attend` takes it.
        mask: as :func:`attend` takes it.
        positions: place of every token, integers ``[n]`` or ``[b, n]``; by default 0, 1, 2, ...
        causal: reads only the past, also on a torus that is not causal.
        method: another one than the torus has.

    Returns:
        ``[b, n, h, D, n]``: the platter of the key before its place; a query of axial attention
        has one platter to read, ``[b, n, h, 1, n]``. Rows sum to 1.

    >>> x = jnp.zeros((1, 3, 2, 4))
    >>> weights = read_weights(Torus(8, depth=2, causal=True), x, x, None)
    >>> weights[0, 1, 0].tolist()
    [[0.25, 0.25, 0.0], [0.25, 0.25, 0.0]]
    """
    batch, n, heads, _ = query.shape
    platters = torus.depth if torus.mode.meets else 1
    units = jnp.eye(n * platters, dtype=query.dtype).reshape(n, platters, 1, n * platters)
    shape = (batch, n, platters, heads // platters, n * platters)
    value = jnp.broadcast_to(units[None], shape).reshape(batch, n, heads, n * platters)
    weights = attend(
        torus,
        query,
        key,
        value,
        slope,
        mask=mask,
        positions=positions,
        causal=causal,
        method=method,
    )
    return jnp.moveaxis(weights.reshape(batch, n, heads, n, platters), -1, -2)


def stream(torus: Torus, slope: Array | float | None) -> Stream:
    """The same attention as a stream with a ring buffer of ``window`` places, or of the
    circumference without one.

    Its tokens are turned by the caller (:func:`turned`), at the places that
    :func:`vfejax.attention.windows.places` says.

    Args:
        torus: its size; what it says of causality is taken as given.
        slope: as :func:`attend` takes it.

    >>> token = (jnp.ones((1, 1, 2, 4)),) * 3
    >>> stream(Torus(8, window=3), None).init(token).ring[0].shape
    (1, 2, 3, 1, 4)
    """
    return torus.mode.window(
        depth=torus.depth,
        slope=slope,
        circumference=torus.circumference,
        window=torus.circumference if torus.window is None else torus.window,
        distance_fn=torus.distance_fn,
    )

"""Attention on a torus: tokens on a ring, in platters, with a bias by their distance.

A sequence of N tokens is a ring, and the heads of a token are dealt out to D platters: platter k
owns heads ``k h/D`` to ``(k + 1) h/D - 1`` (the grouped layout), so that a torus of N D tokens is
made of the projections of ordinary attention. The score of a query at place i on platter k and a
key at place j on platter l is

    s = <q(i, k), k(j, l)> / c^(1/2) - slope (distance(i - j) + |k - l| / D).

Queries and keys are expected turned by their places (:mod:`vfejax.attention.rope`). In *joint*
attention (:func:`toroidal_attention`) every query reads all platters, at D times the cost of
ordinary attention; in *axial* attention (:func:`axial_attention`) it reads its own, at the ordinary
cost, and the platters are mixed afterwards (:mod:`vfejax.attention.depth_fusion`). With D = 1 and
without a bias both are ordinary attention.

Conventions. A mask is True where a query may attend to a key; mask, window and causality are all
to be met. A query with nothing to attend to answers 0, with zero gradient.
"""

from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp

from vfejax.attention._arguments import check_projections, head_slopes
from vfejax.attention.pattern import Pattern
from vfejax.attention.softmax import softmax
from vfejax.attention.tiles import logits
from vfejax.geometry.torus import circular_distance, platter_distance
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = [
    "Method",
    "axial_attention",
    "dense",
    "toroidal_attention",
    "toroidal_distance",
]


class Method(Protocol):
    """How the attention of every head over all tokens of the torus is computed.

    Args:
        query: ``[b, g, m, c]``: heads first, tokens of all platters on one axis.
        key: ``[b, g, m, c]``.
        value: ``[b, g, m, v]``.
        pattern: who may attend to whom, and at what bias.

    Returns:
        ``[b, g, m, v]``, in the dtype of the values.
    """

    def __call__(self, query: Array, key: Array, value: Array, pattern: Pattern, /) -> Array: ...


def toroidal_distance(n: int, depth: int) -> Array:
    """Distance of every two tokens of a full torus,

        ``min(|i - j|, n - |i - j|) / n + |k - l| / depth``.

    A metric, the same for every roll of the ring, at most
    :func:`vfejax.geometry.torus.diameter`. Attention never stores it.

    Args:
        n: places of the ring.
        depth: number of platters.

    Returns:
        Floating ``[n, depth, n, depth]``.

    Raises:
        ValueError: for a ring without places or a stack without platters.

    >>> toroidal_distance(4, 2)[0, 0, 3].tolist()
    [0.25, 0.75]
    """
    places, platters = jnp.arange(n), jnp.arange(depth)
    along = circular_distance(places[:, None] - places[None, :], n)
    across = platter_distance(platters[:, None] - platters[None, :], depth)
    return along[:, None, :, None] + across[None, :, None, :]


def dense(query: Array, key: Array, value: Array, pattern: Pattern) -> Array:
    """Softmax attention by the array of all scores: the definition, with memory of all pairs.

    Args:
        query: ``[b, g, m, c]``.
        key: ``[b, g, m, c]``.
        value: ``[b, g, m, v]``.
        pattern: who may attend to whom, and at what bias.

    Returns:
        ``[b, g, m, v]``, in the dtype of the values; sums of half precision are kept in float32.

    >>> from vfejax.geometry.torus import circular_distance
    >>> places = jnp.arange(3)[None]
    >>> ring = Pattern(places, places, None, None, 1, 3, circular_distance, True, None, True)
    >>> zeros, value = jnp.zeros((1, 1, 3, 2)), jnp.array([[[[2.0], [4.0], [9.0]]]])
    >>> dense(zeros, zeros, value, ring)[0, 0, :, 0].tolist()
    [2.0, 3.0, 5.0]
    """
    real = at_least_float32(query.dtype)
    scores, allowed = logits(query, key, pattern)
    weights = softmax(scores, allowed).astype(value.dtype)
    answer = jnp.einsum("bgnm,bgmv->bgnv", weights, value, preferred_element_type=real)
    return answer.astype(value.dtype)


def toroidal_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    depth: int,
    slope: Array | float | None,
    circumference: int,
    causal: bool = False,
    window: int | None = None,
    mask: Array | None = None,
    positions: Array | None = None,
    distance_fn: Callable[[Array, int], Array] = circular_distance,
    method: Method = dense,
) -> Array:
    """Joint attention: every query reads the keys of all platters.

    Head p of every platter belongs together: the ``n depth`` tokens of ``h / depth`` heads attend
    to one another.

    Args:
        query: turned queries in the grouped layout, floating ``[b, n, h, c]``.
        key: turned keys, ``[b, n, h, c]``.
        value: values, ``[b, n, h, v]``.
        depth: number of platters D, a divisor of h. Masks and causality do not depend on it.
        slope: logits lost per unit of distance, not negative: a number, one per head of a platter
            ``[h / depth]``, or one per head ``[h]`` that counts for its queries. None for no
            distance bias, which is not computed then.
        circumference: places of the ring N, as configured; at least the length of the sequence,
            except for a causal window.
        causal: whether a query reads only keys at its own place and before.
        window: how far a query reads. Without causality, keys at most ``window`` places away round
            the ring, either way; with it, the last ``window`` keys including its own place. At most
            N.
        mask: bool with 4 axes that broadcast to ``[b, h, n, n]``: True where the query of a head
            may attend to the key of the place, on any platter.
        positions: place of every token, integer ``[n]`` or ``[b, n]``; by default 0, 1, 2, ...
        distance_fn: distance along the sequence, from offset and circumference; by default around
            the ring. Causal language models take :func:`vfejax.geometry.torus.linear_distance`.
        method: how it is computed; :func:`dense` by default.

    Returns:
        ``[b, n, h, v]`` in the dtype of the values; 0 for a query without keys.

    Raises:
        ValueError: for shapes, dtypes or numbers that do not fit, naming the argument.

    >>> query = key = jnp.zeros((1, 4, 2, 2))
    >>> value = jnp.arange(8.0).reshape(1, 4, 2, 1)
    >>> near = toroidal_attention(query, key, value, depth=2, slope=1e3, circumference=4)
    >>> bool(jnp.allclose(near, value))  # a steep bias leaves every token alone
    True
    >>> rolled = toroidal_attention(
    ...     query, key, jnp.roll(value, 1, axis=1), depth=2, slope=0.5, circumference=4
    ... )
    >>> straight = toroidal_attention(query, key, value, depth=2, slope=0.5, circumference=4)
    >>> bool(jnp.allclose(rolled, jnp.roll(straight, 1, axis=1)))
    True
    """
    check_projections(query, key, value, depth)
    batch, n, heads, _ = query.shape
    group = heads // depth
    slopes = head_slopes(slope, query, depth)
    allowed = _four_axes(mask, query)
    if allowed is not None:
        # Heads are numbered platter by platter: [b, D g, n, m] to [b, g, D, n, m].
        owners = (depth, group) if allowed.shape[1] > 1 else (1, 1)
        allowed = jnp.moveaxis(allowed.reshape(allowed.shape[0], *owners, *allowed.shape[2:]), 1, 2)
    pattern = Pattern(
        *_places(positions, query, circumference, causal, window),
        slope=None if slopes is None else slopes.reshape(depth, group).T,
        mask=allowed,
        depth=depth,
        circumference=circumference,
        distance_fn=distance_fn,
        causal=causal,
        window=window,
        is_counted=positions is None,
    )

    def flatten(x: Array) -> Array:
        """``[b, n, D g, c]`` to ``[b, g, n D, c]``."""
        x = x.reshape(batch, n, depth, group, x.shape[-1])
        return jnp.moveaxis(x, 3, 1).reshape(batch, group, n * depth, x.shape[-1])

    answer = method(flatten(query), flatten(key), flatten(value), pattern)
    answer = answer.reshape(batch, group, n, depth, value.shape[-1])
    return jnp.moveaxis(answer, 1, 3).reshape(value.shape)


def axial_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    depth: int,
    slope: Array | float | None,
    circumference: int,
    causal: bool = False,
    window: int | None = None,
    mask: Array | None = None,
    positions: Array | None = None,
    distance_fn: Callable[[Array, int], Array] = circular_distance,
    method: Method = dense,
) -> Array:
    """Axial attention: every query reads the keys of its own platter, at the cost of ordinary
    attention.

    Platters meet in the depth fusion that follows (:mod:`vfejax.attention.depth_fusion`).

    Args:
        query: turned queries in the grouped layout, floating ``[b, n, h, c]``.
        key: turned keys, ``[b, n, h, c]``.
        value: values, ``[b, n, h, v]``.
        depth: number of platters D, a divisor of h.
        slope: logits lost per unit of distance, not negative: a number, one per head of a platter
            ``[h / depth]``, or one per head ``[h]``. None for no distance bias.
        circumference: places of the ring N, as configured; at least the length of the sequence,
            except for a causal window.
        causal: whether a query reads only keys at its own place and before.
        window: how far a query reads. Without causality, keys at most ``window`` places away round
            the ring, either way; with it, the last ``window`` keys including its own place. At most
            N.
        mask: bool with 4 axes that broadcast to ``[b, h, n, n]``: True where the query of a head
            may attend to the key of the place.
        positions: place of every token, integer ``[n]`` or ``[b, n]``; by default 0, 1, 2, ...
        distance_fn: distance along the sequence, from offset and circumference; by default around
            the ring.
        method: how it is computed; :func:`dense` by default.

    Returns:
        ``[b, n, h, v]`` in the dtype of the values; 0 for a query without keys.

    Raises:
        ValueError: for shapes, dtypes or numbers that do not fit, naming the argument.

    >>> query = key = jnp.zeros((1, 4, 2, 2))
    >>> value = jnp.arange(8.0).reshape(1, 4, 2, 1)
    >>> answer = axial_attention(query, key, value, depth=2, slope=None, circumference=4)
    >>> answer[0, 0, :, 0].tolist()  # the mean over the ring, of each platter
    [3.0, 4.0]
    """
    check_projections(query, key, value, depth)
    # Heads of one platter that never meet those of another: one platter of all heads.
    return toroidal_attention(
        query,
        key,
        value,
        depth=1,
        slope=head_slopes(slope, query, depth),
        circumference=circumference,
        causal=causal,
        window=window,
        mask=mask,
        positions=positions,
        distance_fn=distance_fn,
        method=method,
    )


def _four_axes(mask: Array | None, query: Array) -> Array | None:
    """The mask, checked: it broadcasts to ``[b, h, n, n]``."""
    if mask is None:
        return None
    batch, n, heads, _ = query.shape
    wanted = (batch, heads, n, n)
    fits = mask.ndim == 4 and all(
        size in (1, full) for size, full in zip(mask.shape, wanted, strict=True)
    )
    if mask.dtype != bool or not fits:
        raise ValueError(
            f"mask must be bool with 4 axes that broadcast to [b, h, n, n] = {wanted}, got "
            f"{mask.dtype} {mask.shape}; a padding mask [b, n] enters as mask[:, None, None, :]"
        )
    return mask


def _places(
    positions: Array | None, query: Array, circumference: int, causal: bool, window: int | None
) -> tuple[Array, Array]:
    """Places of queries and keys, ``[b | 1, n]`` each, once the sizes are checked."""
    batch, n = query.shape[:2]
    if circumference < 1:
        raise ValueError(f"circumference must be at least 1, got {circumference}")
    least = 1 if causal else 0
    if window is not None and not least <= window <= circumference:
        raise ValueError(
            f"window must be {least} to the circumference {circumference}, got {window}"
        )
    if n > circumference and not (causal and window is not None):
        raise ValueError(
            f"a sequence must have at most {circumference} tokens, the circumference, got {n}; "
            "longer ones need a causal window"
        )
    if positions is None:
        places = jnp.arange(n, dtype=jnp.int32)
    elif not jnp.issubdtype(positions.dtype, jnp.integer) or positions.shape not in (
        (n,),
        (batch, n),
    ):
        raise ValueError(
            f"positions must be integer [n] or [b, n] = {(batch, n)}, got {positions.dtype} "
            f"{positions.shape}"
        )
    else:
        # Offsets of places without a sign, or of few bits, would leave the range of their type.
        narrow = jnp.iinfo(positions.dtype).bits < 32 or positions.dtype.kind == "u"
        places = positions.astype(jnp.result_type(int)) if narrow else positions
    places = places[None] if places.ndim == 1 else places
    return places, places

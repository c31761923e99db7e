"""Calibration of activations: the ranges that their grids should cover.

A range that is fixed beforehand wastes most codes: features of a resolvent may be as large as
``1 / Im z`` and are mostly far smaller. So their magnitudes are counted on data, in bins whose
edges are powers of ``2^(1/8)`` and need no range, and the limit of the grid is read from the
counts: the largest magnitude, a quantile, or where rounding and cutting off together cost least.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["Magnitudes", "least_error", "merge", "none_seen", "observe", "pooled", "quantile"]

_PER_OCTAVE = 8
_LOWEST, _OCTAVES = -32, 64  # of the bins: the first also counts what is smaller, the last the rest
_BINS = _PER_OCTAVE * _OCTAVES
_EDGES = 2.0 ** (np.arange(1, _BINS + 1) / _PER_OCTAVE + _LOWEST)  # upper ones
_CENTRES = _EDGES * 2.0 ** (-0.5 / _PER_OCTAVE)


class Magnitudes(NamedTuple):
    """What was seen of some channels.

    Attributes:
        largest: magnitude ``[c]``; NaN once a NaN was seen.
        counts: int32 ``[c, bins]``, how many magnitudes fell into each bin.
    """

    largest: Array
    counts: Array


def none_seen(channels: int, dtype: DTypeLike = jnp.float32) -> Magnitudes:
    """Nothing yet, of so many channels.

    >>> none_seen(3).largest.tolist()
    [0.0, 0.0, 0.0]
    """
    return Magnitudes(jnp.zeros(channels, dtype), jnp.zeros((channels, _BINS), jnp.int32))


def observe(seen: Magnitudes, x: Array, mask: Array | None = None) -> Magnitudes:
    """Count one batch more.

    Args:
        seen: so far; fewer than 2^31 numbers in all.
        x: real floating ``[..., c]``.
        mask: True where numbers count, ``[...]``; None when all do. Padding should not.

    Returns:
        With the batch.

    Raises:
        ValueError: when shapes do not fit.

    >>> seen = observe(none_seen(2), jnp.asarray([[1.0, 0.5], [-3.0, 0.0]]))
    >>> seen.largest.tolist(), seen.counts.sum(axis=1).tolist()
    ([3.0, 0.5], [2, 2])
    """
    channels = seen.largest.shape[0]
    if x.shape[-1:] != (channels,):
        raise ValueError(f"x must be [..., {channels}] like the channels seen, got {x.shape}")
    if mask is not None and mask.shape != x.shape[:-1]:
        raise ValueError(f"mask must be {x.shape[:-1]} to fit x, got {mask.shape}")
    # Half precision has fewer logarithms than there are bins.
    size = jnp.abs(x.astype(at_least_float32(x.dtype))).reshape(-1, channels)
    counted = jnp.ones(size.shape[0], bool) if mask is None else mask.reshape(-1)
    size = jnp.where(counted[:, None], size, jnp.zeros((), size.dtype))
    # NaN and infinity are seen by the largest.
    octave = jnp.clip(jnp.log2(size) - _LOWEST, 0, _OCTAVES)
    place = jnp.where(size <= 0, 0, jnp.ceil(octave * _PER_OCTAVE) - 1)
    place = jnp.nan_to_num(place).astype(jnp.int32).clip(0, _BINS - 1)
    ones = jnp.broadcast_to(counted[:, None], size.shape).astype(jnp.int32)
    largest = jnp.maximum(seen.largest, jnp.max(size, axis=0, initial=0).astype(seen.largest.dtype))
    return Magnitudes(largest, seen.counts.at[jnp.arange(channels)[None], place].add(ones))


def merge(first: Magnitudes, second: Magnitudes) -> Magnitudes:
    """What two of them saw together, as if one had seen it all.

    >>> one = observe(none_seen(1), jnp.asarray([[2.0]]))
    >>> merge(one, one).counts.sum().tolist()
    2
    """
    largest = jnp.maximum(first.largest, second.largest)
    return Magnitudes(largest, first.counts + second.counts)


def pooled(seen: Magnitudes) -> Magnitudes:
    """All channels as one.

    >>> pooled(observe(none_seen(2), jnp.asarray([[1.0, 0.5]]))).largest.tolist()
    [1.0]
    """
    largest = jnp.max(seen.largest, keepdims=True)
    return Magnitudes(largest, jnp.sum(seen.counts, axis=0, keepdims=True, dtype=jnp.int32))


def quantile(seen: Magnitudes, share: ArrayLike) -> Array:
    """Magnitudes that a share of the numbers does not exceed, ``[c]``: the upper edge of a bin, so
    up to 9 % too large, and never above the largest.

    Args:
        seen: at least one number of each channel.
        share: between 0 and 1.

    Returns:
        The limits; NaN where a NaN or an infinity was seen.

    Raises:
        ValueError: for a share beyond, where its value is known.

    >>> seen = observe(none_seen(1), jnp.arange(1.0, 101.0)[:, None])
    >>> 90 <= float(quantile(seen, 0.9)[0]) <= 90 * 1.1
    True
    """
    known = not isinstance(share, jax.core.Tracer)
    if known and not np.all((np.asarray(share) >= 0) & (np.asarray(share) <= 1)):
        raise ValueError(f"share must lie between 0 and 1, got {share}")
    dtype = seen.largest.dtype
    total = jnp.cumsum(seen.counts, axis=-1, dtype=jnp.int32).astype(dtype)
    reached = total >= jnp.asarray(share, dtype) * total[:, -1:]
    return _limit(seen, jnp.argmax(reached, axis=-1))


def least_error(seen: Magnitudes, bits: int) -> Array:
    """Limits ``[c]`` of grids of ``2^bits - 1`` levels around zero with the least squared error.

    Beyond the limit L a magnitude m is off by ``m - L``; within it by ``step^2 / 12`` in the mean
    square, ``step = L / (2^(bits - 1) - 1)``; below half a step it becomes 0.

    Args:
        seen: at least one number of each channel.
        bits: of the codes, 2 to 8.

    Returns:
        The limits; NaN where a NaN or an infinity was seen.

    Raises:
        ValueError: for other bits.

    >>> seen = observe(none_seen(1), jnp.asarray([[1.0]] * 100 + [[3.0]]))
    >>> (least_error(seen, 8) > 2.9).tolist(), (least_error(seen, 2) < 1.1).tolist()
    ([True], [True])
    """
    if not 2 <= bits <= 8:
        raise ValueError(f"bits must lie between 2 and 8, got {bits}")
    dtype = seen.largest.dtype
    return _limit(seen, jax.vmap(lambda counts: _best_bin(counts, bits, dtype))(seen.counts))


def _best_bin(counts: Array, bits: int, dtype: DTypeLike) -> Array:
    """The bin ``[]`` of one channel whose upper edge is the limit of least error."""
    limit, centre = jnp.asarray(_EDGES, dtype), jnp.asarray(_CENTRES, dtype)
    step = limit / (2 ** (bits - 1) - 1)
    share = counts.astype(dtype) / jnp.maximum(jnp.sum(counts, dtype=jnp.int32), 1).astype(dtype)
    moments = jnp.stack([share, share * centre, share * centre**2])
    up_to = jnp.cumsum(moments, axis=-1)
    above = up_to[:, -1:] - up_to
    # The last bin whose centre is below half a step: none of the first limits.
    last = np.searchsorted(_CENTRES, _EDGES / (2**bits - 2)) - 1
    small = jnp.where(jnp.asarray(last >= 0)[None], up_to[:, np.maximum(last, 0)], 0)
    rounding = small[2] + (up_to[0] - small[0]) * step**2 / 12
    cutting = above[2] - 2 * limit * above[1] + limit**2 * above[0]
    return jnp.argmin(rounding + cutting)


def _limit(seen: Magnitudes, place: Array) -> Array:
    """The upper edges of bins, and NaN for what is not finite."""
    edge = jnp.minimum(jnp.asarray(_EDGES, seen.largest.dtype)[place], seen.largest)
    return jnp.where(jnp.isfinite(seen.largest), edge, jnp.nan)

"""Encodings of a torus: the rates at which pairs of channels turn along the ring and across the
platters.

Products of queries and keys are unchanged when every token rolls along a ring of N tokens exactly
if each rate is an integer number of turns, ``omega_m = 2 pi n_m / N``. N is the configured
circumference, never the length of a sequence. Depth does not wrap, so its rates may be any numbers.

``ENCODINGS`` is the table of encodings that models and tests read. A new one is a function
``(channels, circumference, depth) -> Encoding`` and one line in the table.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.attention.frequencies import LARGEST_CIRCUMFERENCE, nearest_turns, spaced
from vfejax.attention.rope import Encoding, standard_angles
from vfejax.types import Array

__all__ = ["ENCODINGS", "geometric", "mixed", "snapped", "standard"]


def _encoding(
    along: Callable[[Array, jnp.dtype], Array], sequence: np.ndarray, depth: np.ndarray
) -> Encoding:
    """An encoding from the angles of the sequence, ``(positions, dtype) -> [..., n, pairs]``."""

    def angles(
        positions: Array, platters: Array, dtype: jax.typing.DTypeLike | None = None, /
    ) -> Array:
        real = jnp.dtype(jnp.result_type(float) if dtype is None else dtype)
        across = platters.astype(real)[:, None] * jnp.asarray(depth, real)[None]
        return along(positions, real)[..., None, :] + jnp.expand_dims(
            across, tuple(range(positions.ndim))
        )

    return Encoding(angles, sequence, depth)


def _residues(positions: Array, turns: np.ndarray, circumference: int) -> Array:
    """``n_m i mod N``, int32 ``[..., n, pairs]``, exact: i is read in digits so short that no
    product overflows.
    """
    if not jnp.issubdtype(positions.dtype, jnp.integer):
        raise ValueError(f"positions must be integers, got {positions.dtype}")
    if jnp.iinfo(positions.dtype).bits < 32:
        positions = positions.astype(jnp.int32)
    place = positions % jnp.asarray(circumference, positions.dtype)
    place = place.astype(jnp.int32)[..., None]
    numbers = jnp.expand_dims(jnp.asarray(turns, jnp.int32), tuple(range(place.ndim - 1)))
    length = circumference.bit_length()
    bits = 30 - length
    residue = jnp.zeros((), jnp.int32)
    for digit in reversed(range(-(-length // bits))):
        part = (place >> (bits * digit)) & ((1 << bits) - 1)
        residue = ((residue << bits) + numbers * part) % circumference
    return residue


def _periodic(turns: np.ndarray, circumference: int, depth: np.ndarray) -> Encoding:
    """The encoding with ``turns [s]`` on the ring, 0 in the remaining pairs, and these rates per
    platter ``[pairs]``.
    """
    turns = np.concatenate([turns, np.zeros(depth.size - turns.size, np.int64)])
    circumference = int(circumference)  # NumPy's own integers would widen those of the places
    unit = 2 * np.pi / circumference

    def along(positions: Array, dtype: jnp.dtype) -> Array:
        return _residues(positions, turns, circumference).astype(dtype) * jnp.asarray(unit, dtype)

    return _encoding(along, unit * turns, depth)


def _num_pairs(channels: int, depth: int) -> int:
    if depth < 1:
        raise ValueError(f"depth must be at least 1, got {depth}")
    least = 2 if depth == 1 else 4
    if channels < least or channels % 2:
        raise ValueError(
            f"channels must be even and at least {least} for depth {depth}, got {channels}"
        )
    return channels // 2


def _split(num_pairs: int, depth: int) -> np.ndarray:
    """Rates per platter ``[pairs]``: 0 in the pairs of the sequence, ``pi m / D`` with distinct
    integers m in the last quarter, of at most D.
    """
    count = 0 if depth == 1 else min(max(1, (num_pairs + 2) // 4), depth, num_pairs - 1)
    rates = np.zeros(num_pairs)
    if count:
        rates[-count:] = np.pi * spaced(count, depth) / depth
    return rates


def _check_ring(num_pairs: int, circumference: int) -> None:
    """Refuse a ring with fewer numbers of turns than pairs."""
    if not 2 <= circumference <= LARGEST_CIRCUMFERENCE or circumference % 1:
        raise ValueError(
            f"circumference must be a whole number from 2 to {LARGEST_CIRCUMFERENCE}, got "
            f"{circumference}"
        )
    room = circumference // 2
    if num_pairs > room:
        raise ValueError(
            f"{num_pairs} pairs of channels need as many distinct integers in [1, circumference / "
            f"2], which are {room} for circumference {circumference}: take circumference >= "
            f"{2 * num_pairs} or channels <= {2 * room}"
        )


def geometric(channels: int, circumference: int, depth: int = 1) -> Encoding:
    """Integer numbers of turns from N/2 to 1, geometrically spaced as far as they stay distinct.

    ``omega_m = 2 pi n_m / N`` with the descending integers of
    :func:`vfejax.attention.frequencies.spaced`; the last, 1, is coprime to N. With D > 1 the last
    quarter of the pairs, at most D of them, belongs to depth instead: ``phi_m = pi m / D`` with
    distinct integers m in [1, D]. No pair turns with both.

    Args:
        channels: c of each head, even; at least 4 for depth > 1.
        circumference: N, tokens on the ring.
        depth: D, number of platters.

    Raises:
        ValueError: for an odd number of channels, and for more pairs of the sequence than integers
            in [1, N/2].

    >>> (geometric(8, 64).sequence * 64 / (2 * np.pi)).round(6).tolist()
    [32.0, 10.0, 3.0, 1.0]
    >>> encoding = geometric(8, 64, depth=2)
    >>> (encoding.sequence != 0).tolist(), (encoding.depth / np.pi).tolist()
    ([True, True, True, False], [0.0, 0.0, 0.0, 0.5])
    """
    rates = _split(_num_pairs(channels, depth), depth)
    count = int(np.sum(rates == 0))
    _check_ring(count, circumference)
    return _periodic(spaced(count, circumference // 2), circumference, rates)


def snapped(channels: int, circumference: int, depth: int = 1, base: float = 10_000.0) -> Encoding:
    """The standard encoding with each rate moved to the nearest free integer number of turns.

    ``omega_j = 2 pi n_j / N`` with the distinct integers n_j in [1, N/2] that have the least sum of
    squared distances to ``N base^(-2 j / c) / (2 pi)``, one of them coprime to N. With D > 1 depth
    has the slowest pairs, which move the most. For weights that were trained with the standard one.

    Args:
        channels: c of each head, even; at least 4 for depth > 1.
        circumference: N, tokens on the ring.
        depth: D, number of platters; its pairs are those of :func:`geometric`.
        base: that of the weights.

    Raises:
        ValueError: for an odd number of channels, and for more pairs of the sequence than integers
            in [1, N/2].

    >>> (snapped(8, 64).sequence * 64 / (2 * np.pi)).round(6).tolist()  # 10.2, 1.02, 0.1, 0.01
    [10.0, 3.0, 2.0, 1.0]
    """
    rates = _split(_num_pairs(channels, depth), depth)
    count = int(np.sum(rates == 0))
    _check_ring(count, circumference)
    wanted = circumference * base ** (-2 * np.arange(count) / channels) / (2 * np.pi)
    return _periodic(nearest_turns(wanted, circumference), circumference, rates)


def mixed(channels: int, circumference: int, depth: int = 1) -> Encoding:
    """Every pair turns with the sequence and with depth, at rates made orthogonal by Gram-Schmidt.

    ``omega`` is that of :func:`geometric` at depth 1. ``phi_m = pi (1 + m mod D) / D`` loses its
    component along omega,

        phi <- phi - omega <phi, omega> / <omega, omega>.

    Depth does not wrap, so that its rates need not be integers; omega stays an integer number of
    turns.

    Args:
        channels: c of each head, even; at least 4 for depth > 1.
        circumference: N, tokens on the ring.
        depth: D, number of platters.

    Raises:
        ValueError: for an odd number of channels, and for more pairs than integers in [1, N/2].

    >>> encoding = mixed(8, 64, depth=2)
    >>> abs(round(float(encoding.sequence @ encoding.depth), 6))
    0.0
    """
    num_pairs = _num_pairs(channels, depth)
    _check_ring(num_pairs, circumference)
    turns = spaced(num_pairs, circumference // 2)
    if depth == 1:
        return _periodic(turns, circumference, np.zeros(num_pairs))
    rates = np.pi * (1 + np.arange(num_pairs) % depth) / depth
    return _periodic(turns, circumference, rates - turns * (rates @ turns) / (turns @ turns))


def standard(channels: int, depth: int = 1, base: float = 10_000.0) -> Encoding:
    """The rates ``omega_j = base^(-2 j / c)`` of existing weights.

    They are not periodic: a roll of the tokens changes products of queries and keys. With D > 1
    depth has the slowest pairs, as in :func:`geometric`. Inside a platter (axial attention) depth
    cancels: there, take depth 1 here, which leaves every pair to the sequence.

    Args:
        channels: c of each head, even; at least 4 for depth > 1.
        depth: D, number of platters.
        base: slowest wavelength in tokens, divided by 2 pi.

    Raises:
        ValueError: for an odd number of channels.

    Source: Su et al., RoFormer: Enhanced transformer with rotary position embedding (2021).

    >>> standard(4).sequence.round(6).tolist()
    [1.0, 0.01]
    """
    rates = _split(_num_pairs(channels, depth), depth)
    sequence = np.where(rates == 0, base ** (-np.arange(0, channels, 2) / channels), 0.0)

    def along(positions: Array, dtype: jnp.dtype) -> Array:
        angles = standard_angles(positions, channels, base=base, dtype=dtype)
        return jnp.where(sequence[(None,) * positions.ndim] == 0, 0.0, angles)

    return _encoding(along, sequence, rates)


ENCODINGS: dict[str, Callable[[int, int, int], Encoding]] = {
    "geometric": geometric,
    "snapped": snapped,
    "mixed": mixed,
    "standard": lambda channels, circumference, depth: standard(channels, depth),
}

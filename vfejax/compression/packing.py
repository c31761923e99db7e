"""Bit packing: codes of a few bits, one after the other without a gap."""

from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np

from vfejax.types import Array

__all__ = ["pack", "packed_length", "unpack"]

_Bytes = TypeVar("_Bytes", Array, np.ndarray)


def packed_length(count: int, bits: int) -> int:
    """Bytes of ``count`` packed codes: ``ceil(count bits / 8)``.

    >>> packed_length(3, bits=3)
    2
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"bits must lie between 1 and 8, got {bits}")
    return -(-count * bits // 8)


def pack(codes: _Bytes, bits: int) -> _Bytes:
    """Codes in ``bits`` each: bit ``j`` of code ``i`` is bit ``i bits + j`` of the result, lowest
    bits first, and the last byte is filled up with zeros.

    Args:
        codes: uint8 of any shape, in C order, below ``2^bits``. Higher bits are refused in a NumPy
            array, and left out of a JAX array, whose values a compiled function does not see.
        bits: 1 to 8.

    Returns:
        uint8 ``[ceil(n bits / 8)]``; a NumPy array for a NumPy array.

    Raises:
        ValueError: for codes that are not uint8 or too large, and for other bits.

    >>> pack(jnp.asarray([1, 2, 3], jnp.uint8), bits=4).tolist()
    [33, 3]
    """
    packed_length(codes.size, bits)
    _check_bytes("codes", codes)
    if isinstance(codes, np.ndarray) and codes.size and codes.max() >> bits:
        raise ValueError(f"codes must be below {2**bits} for {bits} bits, got {codes.max()}")
    xp = _library(codes)
    planes = xp.unpackbits(codes.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return xp.packbits(planes.reshape(-1), bitorder="little")


def unpack(packed: _Bytes, bits: int, count: int) -> _Bytes:
    """The codes that :func:`pack` packed.

    Args:
        packed: uint8 ``[ceil(count bits / 8)]``.
        bits: of a code, 1 to 8.
        count: number of codes.

    Returns:
        uint8 ``[count]``; a NumPy array for a NumPy array.

    Raises:
        ValueError: for other bits, and for bytes that are not uint8 or another number than the
            codes take.

    >>> unpack(jnp.asarray([33, 3], jnp.uint8), bits=4, count=3).tolist()
    [1, 2, 3]
    """
    needed = packed_length(count, bits)
    _check_bytes("packed", packed)
    if packed.shape != (needed,):
        raise ValueError(
            f"packed must be [{needed}] for {count} codes of {bits} bits, got {packed.shape}"
        )
    xp = _library(packed)
    planes = xp.unpackbits(packed, count=count * bits, bitorder="little")
    return xp.packbits(planes.reshape(count, bits), axis=1, bitorder="little").reshape(count)


def _library(array: Array | np.ndarray) -> Any:
    return np if isinstance(array, np.ndarray) else jnp


def _check_bytes(name: str, array: Array | np.ndarray) -> None:
    if array.dtype != jnp.uint8:
        raise ValueError(f"{name} must be uint8, got {array.dtype}")

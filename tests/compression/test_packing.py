"""Packed codes against the digits of one long integer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression.packing import pack, packed_length, unpack

each_width = pytest.mark.parametrize("bits", range(1, 9))


def _long_integer(codes, bits):
    """Code i is digit i, to the base 2^bits, of a number that is written down byte by byte."""
    number = sum(int(code) << (bits * i) for i, code in enumerate(codes))
    return np.frombuffer(number.to_bytes(-(-len(codes) * bits // 8), "little"), np.uint8)


@each_width
def test_every_length_is_packed_without_a_gap_and_comes_back(bits, rng):
    for count in [*range(18), 1001]:
        codes = rng.integers(0, 2**bits, count, dtype=np.uint8)
        packed = pack(codes, bits)
        np.testing.assert_array_equal(packed, _long_integer(codes, bits), strict=True)
        assert packed.size == packed_length(count, bits)
        np.testing.assert_array_equal(unpack(packed, bits, count), codes, strict=True)


@each_width
def test_compiled_packing_is_that_of_numpy(bits, rng):
    codes = rng.integers(0, 2**bits, (3, 7), dtype=np.uint8)
    packed, back = jax.jit(lambda x: (pack(x, bits), unpack(pack(x, bits), bits, 21)))(codes)
    np.testing.assert_array_equal(packed, pack(codes, bits), strict=True)
    np.testing.assert_array_equal(back, codes.reshape(-1), strict=True)


def test_bad_input_is_named():
    codes = np.asarray([1, 2, 9], np.uint8)
    with pytest.raises(ValueError, match="codes must be below 8 for 3 bits, got 9"):
        pack(codes, 3)
    with pytest.raises(ValueError, match="codes must be uint8, got int64"):
        pack(codes.astype(np.int64), 4)
    for bits in (0, 9):
        with pytest.raises(ValueError, match=f"bits must lie between 1 and 8, got {bits}"):
            pack(codes, bits)
    for packed in (np.zeros(1, np.uint8), jnp.zeros(3, jnp.uint8)):
        with pytest.raises(ValueError, match=r"packed must be \[2\] for 3 codes of 4 bits, got"):
            unpack(packed, 4, 3)

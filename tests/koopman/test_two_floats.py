"""Two floats hold some 45 bits, whatever the compiler does with their products."""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.koopman import _two_floats as two


def split(x):
    high = np.float32(x)
    return two.TwoFloats(jnp.asarray(high), jnp.asarray(np.float32(x - high)))


def value(x):
    return np.float64(x.high) + np.float64(x.low)


def test_arithmetic_is_right_to_45_bits(rng):
    x, y = rng.normal(size=(2, 1 << 12)) * 10.0 ** rng.integers(-6, 7, size=(2, 1 << 12))
    wide_x, wide_y = split(x), split(y)
    x, y = value(wide_x), value(wide_y)

    @jax.jit
    def compute(x, y):
        square = two.multiply(x, x)
        pair = two.add(x, y), two.subtract(x, y)
        return pair, two.multiply(x, y), two.divide(x, y), two.square_root(square), two.total(x)

    pair, product, quotient, length, total = compute(wide_x, wide_y)
    for found, expected in zip(pair, (x + y, x - y), strict=True):
        assert np.max(np.abs(value(found) - expected) / np.maximum(np.abs(x), np.abs(y))) < 2**-46
    for found, expected in ((product, x * y), (quotient, x / y), (length, np.abs(x))):
        assert np.max(np.abs(value(found) / expected - 1)) < 2**-44
        # The parts do not overlap.
        assert np.all(np.abs(found.low) <= 2**-23 * np.abs(found.high))
    assert abs(value(total) - x.sum()) < 2**-44 * np.abs(x).sum()

"""Products of integers against the same codes multiplied in double precision."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression.integer_products import activation_codes, int8_matmul
from vfejax.compression.quantize import Scheme, dequantize, quantize

SCHEME = Scheme(8, 0)


@jax.jit
def _products(x, kernel):
    """The kernel read back, codes and their steps by row, and the product."""
    found = quantize(kernel, SCHEME)
    step = jnp.max(jnp.abs(x), axis=-1, keepdims=True) / 127
    back = dequantize(found, SCHEME, dtype=x.dtype)
    return back, activation_codes(x, step), step, int8_matmul(x, found, SCHEME)


def test_the_product_is_that_of_the_codes(dtype, rng):
    x, kernel = rng.standard_normal((2, 3, 40)), rng.standard_normal((40, 5))
    results = _products(x.astype(dtype), kernel.astype(dtype))
    assert results[-1].dtype == dtype
    back, codes, step, found = (np.asarray(result, np.float64) for result in results)
    exact = codes @ back * step
    # The sum is exact, and three products are rounded.
    np.testing.assert_allclose(found, exact, rtol=4 * float(jnp.finfo(dtype).eps))
    # Codes of seven bits and a sign on both sides: about 1 %.
    assert np.linalg.norm(found - x @ kernel) < 0.015 * np.linalg.norm(x @ kernel)


def test_sums_beyond_float16_are_no_infinity():
    """40 products of 127^2 are 645,160; 65,504 is the largest number."""
    x, kernel = jnp.ones((1, 40), jnp.float16), jnp.ones((40, 2), jnp.float16)
    found = _products(x, kernel)[-1]
    assert found.dtype == jnp.float16
    np.testing.assert_allclose(found.astype(np.float32), 40.0, rtol=1e-3)


def test_a_fixed_step_and_steps_of_channels(rng):
    x = (rng.uniform(-1, 1, (50, 16)) * np.geomspace(0.01, 1, 16)).astype(np.float32)
    kernel = (rng.standard_normal((16, 4)) / np.geomspace(0.01, 1, 16)[:, None]).astype(np.float32)
    steps = np.abs(x).max(0) / 127

    @jax.jit
    def both(x, kernel):
        whole = int8_matmul(x, quantize(kernel, SCHEME), SCHEME, jnp.asarray(steps.max()))
        folded = quantize(kernel * steps[:, None], SCHEME)
        return whole, int8_matmul(x / steps[None], folded, SCHEME, 1)

    exact = x @ kernel
    whole, channels = (np.linalg.norm(y - exact) / np.linalg.norm(exact) for y in both(x, kernel))
    assert whole < 0.2
    assert channels < 0.01


def test_a_row_that_is_not_finite_is_nan_and_others_are_not(rng):
    x = np.ones((4, 40), np.float32)
    x[0, 3], x[1, 3], x[2] = np.nan, np.inf, 0
    found = _products(x, rng.standard_normal((40, 5)).astype(np.float32))[-1]
    np.testing.assert_array_equal(np.isnan(found).all(1), [True, True, False, False])
    np.testing.assert_array_equal(found[2], np.zeros(5, np.float32))


def test_bad_input_is_named():
    found = jax.eval_shape(lambda w: quantize(w, SCHEME), jnp.ones((4, 2)))
    for scheme in (Scheme(8, 64), Scheme(8, 0, symmetric=False)):
        with pytest.raises(ValueError, match="scheme must be symmetric and of group 0, got"):
            int8_matmul(jnp.ones((1, 4)), found, scheme)
    with pytest.raises(ValueError, match=r"x must be \[..., n\] to fit codes \[n, m\], got"):
        int8_matmul(jnp.ones((1, 5)), found, SCHEME)

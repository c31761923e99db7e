"""Calibrated limits against the numbers themselves, and on the features of a resolvent."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression import calibrate
from vfejax.compression.integer_products import activation_codes
from vfejax.spectral.resolvent import left_resolvent_diagonal

_observe = jax.jit(calibrate.observe)
_quantile = jax.jit(calibrate.quantile)
_least_error = jax.jit(calibrate.least_error, static_argnums=1)


def _error(x, limit, bits):
    """Squared error relative to the power, on the grid with that limit."""
    top = 2 ** (bits - 1) - 1
    step = limit / top
    return np.sum((np.clip(np.round(x / step), -top, top) * step - x) ** 2) / np.sum(x**2)


def test_a_stream_in_any_order_and_on_any_device_is_seen_as_one_batch(rng):
    x = rng.standard_normal((4, 6, 3)).astype(np.float32)
    mask = rng.uniform(size=(4, 6)) < 0.7
    start = calibrate.none_seen(3)
    whole = _observe(start, x[mask])
    first, second = (_observe(start, x[part], mask[part]) for part in (slice(2), slice(2, 4)))
    merged = calibrate.merge(second, first)
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), merged, whole)
    in_turn = _observe(first, x[2:], mask[2:])
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), in_turn, whole)
    np.testing.assert_array_equal(whole.largest, np.abs(x[mask]).max(0))
    np.testing.assert_array_equal(whole.counts.sum(1), np.full(3, mask.sum()))


def test_quantiles_are_those_of_the_numbers_up_to_the_width_of_a_bin(rng):
    x = rng.standard_normal((4000, 2)).astype(np.float32) * np.float32([1e-6, 1e6])
    seen = _observe(calibrate.none_seen(2), x)
    # Activations of half precision are told apart as well as all others.
    half = jnp.asarray(x, jnp.bfloat16)
    chex.assert_trees_all_equal(
        _observe(calibrate.none_seen(2), half),
        _observe(calibrate.none_seen(2), half.astype(jnp.float32)),
    )
    for share in (0.1, 0.5, 0.99, 1.0):
        exact = np.quantile(np.abs(x), share, axis=0, method="inverted_cdf")
        found = np.asarray(_quantile(seen, share))
        # Up to the next power of 2^(1/8); a number on an edge may fall on either side.
        assert np.all(found >= exact * (1 - 1e-5))
        assert np.all(found <= exact * 2**0.125 * (1 + 1e-5))


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_the_limit_of_least_error_is_within_a_tenth_of_the_best(bits, rng):
    columns = [rng.standard_normal(4000), rng.laplace(size=4000), rng.uniform(-1, 1, 4000)]
    x = np.stack(columns, axis=-1).astype(np.float32)
    limits = np.asarray(_least_error(_observe(calibrate.none_seen(3), x), bits))
    for channel, limit in zip(x.T, limits, strict=True):
        best = min(_error(channel, limit, bits) for limit in np.geomspace(0.2, 1, 60) * 12)
        # Bins are 9 % wide: half of that in the step is 9 % in the square of the error.
        assert _error(channel, limit, bits) <= best * 1.09


def test_all_channels_as_one(rng):
    x = rng.standard_normal((50, 4)).astype(np.float32)
    one = _observe(calibrate.none_seen(1), x.reshape(-1, 1))
    pooled = calibrate.pooled(_observe(calibrate.none_seen(4), x))
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), pooled, one)


def test_a_range_that_is_fixed_beforehand_ruins_the_features_of_a_resolvent(rng):
    """Potential within 3, hopping 1, Im z = 1: features are of size 0.4, their clamp 10."""

    @jax.jit
    def measure(diagonal):
        hopping = jnp.ones((8, 4, 31), jnp.float32)
        resolvent = left_resolvent_diagonal(
            diagonal, hopping, hopping, jnp.asarray(1j, "complex64")
        )
        features = jnp.concatenate([resolvent.real, resolvent.imag], axis=1).swapaxes(1, 2)
        seen = calibrate.observe(calibrate.none_seen(8), features)
        four, eight = (calibrate.least_error(seen, bits) for bits in (4, 8))
        codes = activation_codes(features, (eight / 127).reshape(1, 1, -1))
        return features, codes, four, eight, calibrate.least_error(calibrate.pooled(seen), 8)

    found = measure(rng.uniform(-3, 3, (8, 4, 32)).astype(np.float32))
    x, codes, four, eight, pooled = (np.asarray(a, np.float64) for a in found)

    def relative(limit, bits):
        return np.sqrt(_error(x, limit, bits))

    assert relative(10.0, 4) > 0.9  # the clamp in four bits
    assert relative(127.0, 8) > 0.75  # codes of eight bits with a step of 1
    assert relative(10.0, 8) > 0.05  # the clamp in eight bits
    assert relative(four, 4) < 0.1
    assert relative(eight, 8) < 0.006
    assert relative(pooled, 8) < 0.008
    error = np.linalg.norm(codes * eight / 127 - x) / np.linalg.norm(x)
    # A few of 2048 codes are rounded otherwise where float32 divides.
    np.testing.assert_allclose(error, relative(eight, 8), rtol=1e-3)


def test_nan_infinity_and_zero_have_clear_limits(dtype):
    x = jnp.asarray([[jnp.nan, jnp.inf, 0.0, 1.0], [1.0, 1.0, 0.0, -2.0]], dtype)
    seen = _observe(calibrate.none_seen(4, dtype), x)
    for limit in (_quantile(seen, 1.0), _least_error(seen, 8)):
        np.testing.assert_array_equal(limit, np.asarray([np.nan, np.nan, 0, 2], dtype), strict=True)
    unseen = _observe(calibrate.none_seen(4, dtype), x, jnp.asarray([False, True]))
    np.testing.assert_array_equal(unseen.largest, np.asarray([1, 1, 0, 2], dtype))


def test_bad_input_is_named():
    seen = calibrate.none_seen(2)
    with pytest.raises(ValueError, match=r"x must be \[..., 2\] like the channels seen, got"):
        calibrate.observe(seen, jnp.ones((4, 3)))
    with pytest.raises(ValueError, match=r"mask must be \(4,\) to fit x, got \(2,\)"):
        calibrate.observe(seen, jnp.ones((4, 2)), jnp.ones(2, bool))
    with pytest.raises(ValueError, match="bits must lie between 2 and 8, got 1"):
        calibrate.least_error(seen, 1)
    for share in (99.9, -0.1, float("nan")):
        with pytest.raises(ValueError, match="share must lie between 0 and 1, got"):
            calibrate.quantile(seen, share)

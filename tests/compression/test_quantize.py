"""Group quantisation: its error, the numbers it returns as they are, its gradient, its edges."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression.quantize import Quantized, Scheme, dequantize, fake_quantize, quantize

SCHEMES = [
    *(Scheme(bits, 8) for bits in range(2, 9)),
    *(Scheme(bits, 8, False) for bits in (2, 4, 8)),
]
each_scheme = pytest.mark.parametrize("scheme", SCHEMES, ids=str)
LEAST = 2.0**-24  # step of the subnormal numbers of float16


@cache
def _compiled(scheme):
    """Codes, what they stand for, the same with a gradient, and that gradient."""

    @jax.jit
    def everything(x):
        found = quantize(x, scheme, -1)
        fake, pull = jax.vjp(partial(fake_quantize, scheme=scheme, axis=-1), x)
        return found, dequantize(found, scheme, -1, x.dtype), fake, pull(jnp.ones_like(x))[0]

    return everything


def _weights(rng, dtype="float32"):
    """Groups of eight of very different sizes, the last of each row a short one."""
    return (rng.standard_normal((12, 20)) * np.geomspace(1e-4, 1e4, 12)[:, None]).astype(dtype)


def _of_each_weight(per_group, like):
    return np.repeat(np.asarray(per_group, np.float64), 8, axis=-1)[..., : like.shape[-1]]


@each_scheme
def test_error_is_half_a_step_and_only_the_largest_weights_are_cut_off(scheme, rng):
    x = _weights(rng)
    found, back, _, _ = jax.device_get(_compiled(scheme)(x))
    x, back, top = np.asarray(x, np.float64), np.asarray(back, np.float64), 2**scheme.bits - 1
    step = np.abs(_of_each_weight(found.scale, x))
    # The quotient by the step is rounded before it is rounded to a code.
    within = np.abs(x - back) <= step / 2 * (1 + 2**scheme.bits * np.finfo(np.float32).eps)
    ends = (found.codes == 0) | (found.codes == top)
    assert np.all(within | (ends & (np.abs(x) > np.abs(back))))
    assert found.codes.dtype == np.uint8
    assert found.codes.max() <= top


@each_scheme
def test_search_leaves_less_error_than_the_grid_that_reaches_the_largest_weight(scheme, rng):
    x = _weights(rng)
    _, back, _, _ = _compiled(scheme)(x)
    # Whole groups, with the size of their row taken out.
    size = np.geomspace(1e-4, 1e4, 12)[:, None]
    x, found = ((np.asarray(a, np.float64) / size)[:, :16].reshape(24, 8) for a in (x, back))
    step = np.abs(x).max(-1, keepdims=True) / (2 ** (scheme.bits - 1) - 1)
    plain = np.round(x / step) * step
    # A symmetric grid in its direction has this one's levels and one more: a fifth less error in 4
    # bits and more in fewer.
    assert np.sum((found - x) ** 2) < np.sum((plain - x) ** 2) * (0.8 if scheme.bits <= 4 else 1)


def test_two_bits_of_normal_weights_have_an_eighth_of_their_power_as_error(rng):
    """A grid of -1, 0, 1 that reaches the largest has half of it; the best four levels would have
    0.1175 (Max, Quantizing for minimum distortion, 1960).
    """
    x = rng.standard_normal((64, 2000)).astype(np.float32)
    rounded = jax.jit(lambda x: fake_quantize(x, Scheme(bits=2)))(x)
    # 2000 groups: a standard error of 0.0005.
    assert 0.1175 < np.mean((rounded - x) ** 2) < 0.130


@each_scheme
def test_numbers_of_a_grid_return_as_they_are(scheme, rng):
    """For all scales of float16, subnormal and negative ones too."""
    top = 2**scheme.bits - 1
    codes = rng.integers(0, top + 1, (12, 20), dtype=np.uint8)
    exponents = rng.uniform(-24, 15, (12, 3))
    scale = ((2.0**exponents) * (rng.choice([-1, 1], (12, 3)))).astype(np.float16)
    codes[:, ::8] = 0
    if scheme.symmetric:
        codes[::2, ::8] = top
        zero = None
    else:
        scale = np.abs(scale)
        codes[:, 1::8] = top
        zero = rng.integers(0, top + 1, (12, 3), dtype=np.uint8)
    for dtype in ("float32", "float64") if scheme.bits == 8 else ("float32",):
        grid = Quantized(jnp.asarray(codes), jnp.asarray(scale), zero)
        x = dequantize(grid, scheme, -1, dtype)
        _, back, fake, _ = _compiled(scheme)(x)
        np.testing.assert_array_equal(back, x, strict=True)
        np.testing.assert_array_equal(fake, x, strict=True)


@each_scheme
def test_training_sees_the_numbers_of_the_file_and_weights_beyond_the_grid_get_no_gradient(
    scheme, rng
):
    x = _weights(rng)
    found, back, fake, gradient = _compiled(scheme)(x)
    np.testing.assert_array_equal(fake, back, strict=True)
    np.testing.assert_array_equal(dequantize(found, scheme, -1), back, strict=True)
    zero = 2.0 ** (scheme.bits - 1) if scheme.symmetric else _of_each_weight(found.zero, x)
    place = np.asarray(x, np.float64) / _of_each_weight(found.scale, x) + zero
    inside = (place > -0.5) & (place < 2**scheme.bits - 0.5)
    np.testing.assert_array_equal(gradient, inside)


def test_some_weights_of_two_bits_are_beyond_the_grid_and_none_of_eight(rng):
    x = _weights(rng)
    assert 0 < np.mean(_compiled(Scheme(2, 8, False))(x)[3] == 0) < 0.3
    assert np.all(_compiled(Scheme(8, 8, False))(x)[3] == 1)


def test_derivatives_of_both_modes_agree(rng):
    x, change = rng.standard_normal((2, 64)).astype(np.float32)
    rounding = partial(fake_quantize, scheme=Scheme(2), axis=-1)
    along, back = jax.jit(
        lambda x: (jax.jvp(rounding, (x,), (change,))[1], jax.vjp(rounding, x)[1](change)[0])
    )(x)
    np.testing.assert_array_equal(along, back)
    assert 0 < np.sum(along == 0) < 20


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_a_group_is_quantised_alone_wherever_it_lies(axis, rng):
    """Along each axis, with a short last group, as an array of its own."""
    x = rng.standard_normal((6, 6, 6)).astype(np.float32)
    scheme = Scheme(3, 4, symmetric=axis == 1)

    @jax.jit
    def both(x):
        parts = jnp.split(x, [4], axis)
        alone = [quantize(part, scheme._replace(group=0), axis) for part in parts]
        return quantize(x, scheme, axis), jax.tree.map(lambda *a: jnp.concatenate(a, axis), *alone)

    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), *both(x))


@pytest.mark.parametrize("symmetric", [True, False])
def test_zero_nan_and_infinity_have_clear_answers(symmetric, dtype):
    bad = [[0.0, 0.0], [np.nan, 1.0], [np.inf, 1.0], [-np.inf, 1.0], [0.9375, 0.0]]
    x = np.repeat(np.asarray(bad, dtype), 4, axis=1)
    found, back, fake, gradient = jax.device_get(_compiled(Scheme(4, 8, symmetric))(x))
    expected = np.asarray([0, np.nan, np.nan, np.nan, 0.9375])
    np.testing.assert_array_equal(back[:, 0], expected.astype(dtype), strict=True)
    np.testing.assert_array_equal(np.isnan(back[:, 7]), np.isnan(expected))
    np.testing.assert_array_equal(np.isnan(found.scale[:, 0]), np.isnan(expected))
    np.testing.assert_array_equal(fake, back)
    assert np.all(np.isfinite(gradient))
    assert found.scale[0, 0] == 0


@pytest.mark.parametrize("bits", [3, 8])
def test_scales_beyond_float16_become_the_nearest_that_it_has(bits, dtype):
    steps = 2 ** (bits - 1)
    x = np.asarray(
        [[3e38, -1e38], [1e30, 1.0], [1.4 * steps * LEAST, 0.0], [0.9 * LEAST, 0.0], [1e-30, 0]],
        dtype,
    )
    x = np.repeat(x, 4, axis=1)
    found, back, _, _ = jax.device_get(_compiled(Scheme(bits, 8))(x))
    np.testing.assert_array_equal(np.abs(found.scale[:2, 0]), np.float16(65504))
    np.testing.assert_array_equal(back[:2, 0], np.full(2, 65504 * steps, dtype))
    # Too small for 11 digits: half of a step of 2^-24 or of twice that.
    np.testing.assert_allclose(back[2:, 0], x[2:, 0], rtol=0, atol=LEAST)
    np.testing.assert_array_equal(back[3:, 0], np.asarray([LEAST, 0], dtype))


def test_half_precision_keeps_its_dtype():
    x = jnp.linspace(-1, 1, 8).astype(jnp.bfloat16)
    rounded = jax.jit(partial(fake_quantize, scheme=Scheme(8, 8), axis=-1))(x)
    assert rounded.dtype == jnp.bfloat16
    # Half a step of 2 / 256, and half a digit of bfloat16.
    np.testing.assert_allclose(
        rounded.astype(jnp.float32), x.astype(jnp.float32), rtol=0, atol=1 / 256 + 1 / 512
    )


def test_an_empty_axis_has_no_groups():
    found = jax.eval_shape(lambda x: quantize(x, Scheme()), jnp.zeros((0, 3)))
    assert (found.codes.shape, found.scale.shape) == ((0, 3), (0, 3))
    assert jax.eval_shape(lambda q: dequantize(q, Scheme()), found).shape == (0, 3)


def test_bad_input_is_named():
    x = jnp.ones((4, 4))
    with pytest.raises(ValueError, match="bits must be a whole number between 2 and 8, got 1"):
        quantize(x, Scheme(bits=1))
    with pytest.raises(ValueError, match=r"whole number between 2 and 8, got 4\.5"):
        quantize(x, Scheme(bits=4.5))
    with pytest.raises(ValueError, match="group must be a number of weights, or 0"):
        quantize(x, Scheme(group=-1))
    with pytest.raises(ValueError, match=r"axis must be one of an array of shape \(4, 4\), got 2"):
        fake_quantize(x, Scheme(), 2)
    with pytest.raises(ValueError, match="x must be real and floating, got int64"):
        quantize(jnp.ones((4, 4), int), Scheme())
    found = Quantized(jnp.zeros((4, 4), jnp.uint8), jnp.ones((2, 4), jnp.float16))
    with pytest.raises(ValueError, match=r"scale must be float16 of shape \(1, 4\), got float16"):
        dequantize(found, Scheme(group=4))
    with pytest.raises(ValueError, match="zero must be given without symmetry"):
        dequantize(found, Scheme(group=2, symmetric=False))
    with pytest.raises(ValueError, match="codes must be uint8"):
        dequantize(found._replace(codes=found.codes.astype(int)), Scheme(group=2))

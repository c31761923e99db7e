"""Rounding beside qwix, whose scales reach half a step beyond the largest weight of a channel."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression.quantize import Quantized, Scheme, dequantize, fake_quantize

SHAPE = (48, 24)
# Squared error of a column relative to its power by qwix 0.1.8 (absmax), mean over the columns of
# the weights below: whole columns, and groups of 16.
RECORDED = {(8, 48): 3.5762e-05, (8, 16): 2.8553e-05, (4, 48): 0.0108865, (4, 16): 0.0083284}


def _weights():
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def _error(x, y):
    return float(np.mean(np.sum((y - x) ** 2, axis=0) / np.sum(x**2, axis=0)))


@pytest.mark.parametrize(("bits", "group"), RECORDED)
def test_error_is_below_that_recorded_of_qwix(bits, group):
    x = _weights()
    found = jax.jit(lambda x: fake_quantize(x, Scheme(bits, group)))(x)
    # A seventh to a third less: no code is left over, and scales are searched.
    assert 0.6 * RECORDED[bits, group] < _error(x, np.asarray(found)) < 0.9 * RECORDED[bits, group]


@pytest.mark.slow
@pytest.mark.parametrize(("bits", "group"), RECORDED)
@pytest.mark.usefixtures("library_promotion")
def test_codes_of_qwix_are_read_as_qwix_reads_them(bits, group):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what qwix imports
        qwix = pytest.importorskip("qwix")

    x, half = _weights(), 2 ** (bits - 1)
    theirs = qwix.quantize(
        jnp.asarray(x),
        f"int{bits}",
        channelwise_axes=[1],
        tiled_axes={0: group},
        scale_dtype=jnp.float16,
    )
    back = np.asarray(qwix.dequantize(theirs), np.float32)
    codes = (np.asarray(theirs.qvalue, np.int32) + half).astype(np.uint8)
    scheme = Scheme(bits, group)
    read = dequantize(Quantized(jnp.asarray(codes), theirs.scale), scheme)
    # qwix multiplies in float16.
    np.testing.assert_allclose(back, read, rtol=2.0**-11)
    np.testing.assert_allclose(_error(x, np.asarray(read)), RECORDED[bits, group], rtol=1e-3)

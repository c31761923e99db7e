"""Delay coordinates: what noise does to an operator, and intervals from held-out errors."""

import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.koopman import delays, operators, spectrum
from vfejax.koopman.streaming import Factor

NUM_DELAYS = 4


def _noisy_oscillation(variance):
    """Statistics of delay coordinates of two series that turn together, in the limit of many rows:
    exactly their covariance, with white noise on every row.
    """
    lags = np.arange(NUM_DELAYS + 1)
    phase = np.array([0.0, 1.0])
    angle = -0.6 * lags[:, None, None, None] + phase[None, :, None, None]
    other = -0.6 * lags[None, None, :, None] + phase[None, None, None, :]
    size = 2 * (NUM_DELAYS + 1)
    signal = 0.5 * np.cos(angle - other).reshape(size, size)
    whole = signal + variance * np.eye(size)
    # The newest row is the first: now begins one row later.
    columns = [*range(2, size), *range(size - 2)]
    both = whole[np.ix_(columns, columns)]
    values, vectors = np.linalg.eigh(both)
    root = np.linalg.qr((np.sqrt(np.maximum(values, 0.0)) * vectors).T)[1]
    dim = size - 2
    return Factor(
        *map(jnp.asarray, (root[:dim, :dim], root[:dim, dim:], root[dim:, dim:])), jnp.array(1.0)
    )


def test_noise_does_not_bias_the_window_and_biases_the_others():
    factor = _noisy_oscillation(0.2)
    true = np.exp(np.array([0.6j, -0.6j]))
    found = np.linalg.eigvals(np.asarray(delays.total_least_squares(factor, 2, 2)))
    # Eigenvectors of a covariance whose gap is 2: rounding of float64.
    assert spectrum.directed_hausdorff_distance(true, found) < 1e-12
    np.testing.assert_allclose(np.sort(np.abs(found))[:-2], 0.0, rtol=0, atol=1e-7)
    least = np.linalg.eigvals(np.asarray(operators.ridge(factor)))
    shared = np.linalg.eigvals(np.asarray(operators.total_least_squares(factor, 2)))
    assert spectrum.directed_hausdorff_distance(true, least) > 0.02
    assert spectrum.directed_hausdorff_distance(true, shared) > 1e-3


def test_bad_arguments_are_named():
    factor = _noisy_oscillation(0.1)
    with pytest.raises(ValueError, match=r"rank must be in 1 \.\. 8, the dimension, got 9"):
        delays.total_least_squares(factor, 9, 2)
    with pytest.raises(ValueError, match="num_series must divide 8, the dimension, got 3"):
        delays.total_least_squares(factor, 2, 3)
    cut = factor._replace(cross=factor.cross[:, :3], residual=factor.residual[:3, :3])
    with pytest.raises(ValueError, match="must have one dimension, got 8 and 3"):
        delays.total_least_squares(cut, 2, 2)
    for probability in (0.0, 1.0, np.nan):
        with pytest.raises(ValueError, match="probability must be between 0 and 1, got"):
            delays.half_widths(np.ones(3), probability)


def test_intervals_hold_a_new_error_as_often_as_they_say():
    rng = np.random.default_rng(0)
    # Skewed and heavy-tailed: nothing is assumed of the distribution.
    draws = rng.standard_t(3, size=(40, 4000)) ** 3
    half = delays.half_widths(draws[:-1], 0.9)
    inside = np.mean(np.abs(draws[-1]) <= half)
    # ceil(40 x 0.9) = 36 of 40 places; four standard deviations of 4000 draws.
    assert abs(inside - 0.9) < 4 * np.sqrt(0.9 * 0.1 / 4000)


def test_few_errors_are_stretched_and_missing_ones_left_out():
    errors = np.array([[1.0, np.nan], [-2.0, np.nan], [np.nan, np.nan]])
    half = delays.half_widths(errors, 0.95)
    # The larger of two stands for 2/3: quantiles 1.96 and 0.967.
    np.testing.assert_allclose(half[0], 2.0 * 1.959964 / 0.967422, rtol=1e-6)
    assert np.isnan(half[1])
    assert np.isnan(delays.half_widths(np.zeros((0, 2)), 0.5)).tolist() == [True, True]

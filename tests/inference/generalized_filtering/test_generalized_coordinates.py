"""Generalised coordinates against closed forms, NumPy and finite differences."""

import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from vfejax.inference.generalized_filtering import embedded_samples, smooth_noise
from vfejax.inference.generalized_filtering import generalized_coordinates as gc
from vfejax.numerics import matvec

ORDERS = [1, 2, 3, 6]


def test_covariance_of_order_three_is_the_published_one(dtype):
    s = jnp.asarray(0.7, dtype)
    a, b = 1 / (2 * 0.7**2), 3 / (4 * 0.7**4)
    expected = np.array([[1, 0, -a], [0, a, 0], [-a, 0, b]], dtype)
    # Rounding of a few products.
    for value in (
        smooth_noise.temporal_covariance(3, s),
        jax.jit(lambda s: smooth_noise.temporal_covariance(3, s))(s),
    ):
        chex.assert_trees_all_close(value, expected, rtol=8 * jnp.finfo(dtype).eps)
        assert value.dtype == dtype


@pytest.mark.slow
def test_covariance_is_that_of_derivatives_of_the_autocorrelation():
    def rho(h):
        return jnp.exp(-(h**2) / (4 * 0.8**2))

    derivatives = []
    for _ in range(7):
        derivatives.append(float(rho(0.0)))
        rho = jax.grad(rho)
    expected = [[(-1) ** i * derivatives[i + j] for j in range(4)] for i in range(4)]
    # Nested derivatives of an exponential add terms of both signs.
    np.testing.assert_allclose(
        smooth_noise.temporal_covariance(4, 0.8), expected, rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("order", ORDERS)
def test_precision_is_the_inverse_of_the_covariance(order, dtype):
    precision = smooth_noise.temporal_precision(order, jnp.asarray(0.6, dtype))
    exact = np.linalg.inv(np.asarray(smooth_noise.temporal_covariance(order, 0.6), np.float64))
    # No cancellation: rounding alone in both precisions; NumPy's inverse has a condition of 1e6.
    tolerance = 1e-9 if dtype == jnp.float64 else 32 * jnp.finfo(dtype).eps
    chex.assert_trees_all_close(precision.astype(float), exact, rtol=tolerance, atol=1e-8)


@pytest.mark.parametrize("order", ORDERS)
def test_log_determinant_has_its_closed_form(order):
    _, expected = np.linalg.slogdet(np.asarray(smooth_noise.temporal_precision(order, 0.9)))
    np.testing.assert_allclose(
        smooth_noise.temporal_log_det(order, 0.9), expected, rtol=0, atol=1e-10
    )


def test_embedding_is_exact_for_polynomials(rng):
    coefficients = rng.normal(size=5)
    times = np.arange(12) * 0.3
    series = np.polynomial.polynomial.polyval(times, coefficients)
    path = embedded_samples.embed(jnp.asarray(series)[:, None], 5, 0.3, window=7, lag=2)
    for k in range(5):
        derivative = np.polynomial.polynomial.polyder(coefficients, k)
        expected = np.polynomial.polynomial.polyval(times, derivative)[4:-2]
        # Differences of order k divide rounding by dt^k.
        np.testing.assert_allclose(path[:, k, 0], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_online_embedding_equals_the_batch(rng, dtype):
    series = jnp.asarray(rng.normal(size=(9, 2)), dtype)
    batch = embedded_samples.embed(series, 3, 0.5, window=5, lag=1)
    online = embedded_samples.embedding(3, 0.5, window=5, lag=1)
    _, paths = jax.lax.scan(online.step, online.init(2, dtype), series)
    assert jnp.isnan(paths[:4]).all()
    chex.assert_trees_all_close(paths[4:], batch, rtol=64 * jnp.finfo(dtype).eps)


def test_covariance_of_embedded_white_noise_is_that_of_its_polynomial():
    operator = embedded_samples.embedding_operator(3, np.array([-1.0, 0.0, 1.0, 2.0]))
    covariance = embedded_samples.embedded_covariance(3, 1.0, 0.0, window=4, lag=2)
    np.testing.assert_allclose(covariance, operator @ operator.T, rtol=0, atol=1e-14)


def test_embedded_covariance_of_very_smooth_noise_is_that_of_its_derivatives():
    covariance = embedded_samples.embedded_covariance(3, 0.01, 1.0)
    # The polynomial errs by (dt / s)^2 = 1e-4 times numbers of order 1.
    np.testing.assert_allclose(
        covariance, smooth_noise.temporal_covariance(3, 1.0), rtol=0, atol=1e-3
    )


def _curved(x, v):
    return jnp.stack([x[0] * x[1] + v[0], jnp.sin(x[1]) * x[0]])


@pytest.mark.slow
def test_exact_derivatives_agree_and_are_those_of_the_path(rng):
    x, v = jnp.asarray(rng.normal(size=(4, 2))), jnp.asarray(rng.normal(size=(4, 1)))
    by_taylor, by_jvp = gc.by_taylor(_curved, x, v), gc.by_jvp(_curved, x, v)
    # The factorials of jet are exponentials of logarithms.
    chex.assert_trees_all_close(by_taylor, by_jvp, rtol=1e-10, atol=1e-10)
    factorials = np.array([math.factorial(k) for k in range(4)])
    times = 1e-2 * np.arange(-3, 4)
    powers = times[:, None] ** np.arange(4) / factorials
    values = jax.vmap(_curved)(
        jnp.asarray(powers @ np.asarray(x)), jnp.asarray(powers @ np.asarray(v))
    )
    differences = embedded_samples.embedding_operator(4, times) @ np.asarray(values)
    # Differences of third order at 1e-2: truncation 1e-4 times derivatives of order 7.
    np.testing.assert_allclose(by_jvp, differences, rtol=0.02, atol=0.02)


@pytest.mark.slow
def test_local_linearity_is_exact_for_linear_functions(rng):
    matrix = jnp.asarray(rng.normal(size=(2, 2)))
    x = jnp.asarray(rng.normal(size=(4, 2)))

    def function(x):
        return jnp.matmul(matrix, x)

    for derivatives_fn in (gc.by_taylor, gc.by_jvp, gc.locally_linear):
        # The factorials of jet are exponentials of logarithms.
        chex.assert_trees_all_close(derivatives_fn(function, x), x @ matrix.T, rtol=1e-10)


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        smooth_noise.temporal_covariance(0, 1.0)
    with pytest.raises(ValueError, match=r"offsets must be \[window\] with window >= 3"):
        embedded_samples.embedding_operator(3, [0.0, 1.0])
    with pytest.raises(ValueError, match="lag must be from 0 to window - 1 = 2, got 3"):
        embedded_samples.embedding(3, 1.0, lag=3)
    with pytest.raises(ValueError, match="at least window = 4 samples, got 2"):
        embedded_samples.embed(jnp.zeros((2, 1)), 4, 1.0)
    with pytest.raises(ValueError, match=r"series must be \[t, o\]"):
        embedded_samples.embed(jnp.zeros(5), 2, 1.0)


@pytest.mark.parametrize("smoothness", [0.0, -1.0])
def test_noise_without_a_path_is_refused(smoothness):
    for covariance in (smooth_noise.temporal_covariance, smooth_noise.temporal_precision):
        with pytest.raises(ValueError, match=f"smoothness must be above 0, got {smoothness}"):
            covariance(3, smoothness)
    with pytest.raises(ValueError, match=r"smoothness must be at least 0, got -1\.0"):
        embedded_samples.embedded_covariance(3, 1.0, -1.0)


def test_a_smoothness_that_is_nan_stays_nan():
    assert np.isnan(embedded_samples.embedded_covariance(3, 1.0, np.nan)).all()


def test_paths_advance_by_the_exponential_of_the_shift(rng):
    paths = [jnp.asarray(rng.normal(size=(4, 2))), jnp.asarray(rng.normal(size=(2, 3)))]
    matrix = scipy.linalg.expm(-0.7 * np.asarray(gc.shift_matrix(paths)))
    flat = np.concatenate([np.ravel(path) for path in paths])
    found = [gc.advance(path, -0.7) for path in paths]
    np.testing.assert_allclose(
        np.concatenate([np.ravel(path) for path in found]), matrix @ flat, rtol=1e-13, atol=1e-14
    )


def test_derivatives_along_a_linear_flow_are_powers_of_it(rng):
    sensor, flow, x = rng.normal(size=(1, 3)), rng.normal(size=(3, 3)), rng.normal(size=3)
    found = gc.along_flow(
        lambda x: matvec(jnp.asarray(sensor), x),
        lambda x: matvec(jnp.asarray(flow), x),
        jnp.asarray(x),
        4,
    )
    expected = [sensor @ np.linalg.matrix_power(flow, k) @ x for k in range(4)]
    np.testing.assert_allclose(found, expected, rtol=1e-12)

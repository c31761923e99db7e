"""Roots of covariances: equal to the covariance form, and right in float32 where that is not."""

import chex
import jax
import numpy as np
import pytest
from helpers.chain_oracle import joint_gaussian

from vfejax.inference.chains import sampling, square_root
from vfejax.inference.chains.linear_gaussian import LinearGaussian

N, O, T = 3, 2, 6


def model_of(rng):
    corner = np.diag([0.5, 0.2, 0.0])
    return LinearGaussian(
        rng.normal(size=N),
        np.diag([1.0, 0.0, 2.0]),
        rng.normal(size=(T - 1, N, N)) / N**0.5,
        corner,
        rng.normal(size=(O, N)),
        np.eye(O) + 0.3,
        transition_offset=rng.normal(size=N),
    )


@jax.jit
def run(model, y, mask):
    smoothed = square_root.square_root_smoother(model, y, mask)
    back, filtered = square_root.backward_chain(model, y, mask)
    draws = sampling.sample_paths(jax.random.key(1), back, 4000)
    return smoothed, filtered, draws


def cov(root):
    return np.asarray(root) @ np.asarray(root).swapaxes(-1, -2)


@pytest.mark.slow
def test_equals_the_joint_gaussian_and_so_do_its_paths(rng):
    """Noise in two directions, a part of the first state known, entries missing."""
    model, y = model_of(rng), rng.normal(size=(T, O))
    mask = rng.random((T, O)) < 0.7
    smoothed, filtered, draws = run(model, y, mask)
    exact = joint_gaussian(model, y, mask)
    chex.assert_trees_all_close(
        (smoothed.mean, cov(smoothed.chol), smoothed.log_evidence),
        (exact.mean, exact.cov, exact.log_evidence),
        rtol=1e-12,
        atol=1e-12,
    )
    chex.assert_trees_all_close(smoothed.filtered, filtered, rtol=1e-14, atol=1e-14)
    for i in (0, T - 2):
        upto = joint_gaussian(model, y, mask, upto=i + 1)
        np.testing.assert_allclose(filtered.mean[i], upto.mean[i], rtol=0, atol=1e-12)
        np.testing.assert_allclose(cov(filtered.chol[i]), upto.cov[i], rtol=0, atol=1e-12)
    draws = np.asarray(draws)
    # 4000 draws: a mean is right to a sixtieth of a standard deviation; five of these.
    scale = np.sqrt(np.diagonal(exact.cov, axis1=1, axis2=2))
    assert np.all(np.abs(draws.mean(axis=0) - exact.mean) <= 0.08 * scale + 1e-7)
    away = draws - exact.mean
    pairs = np.einsum("sin,sim->inm", away[:, 1:], away[:, :-1]) / len(draws)
    np.testing.assert_allclose(pairs, exact.cross_cov, rtol=0, atol=0.12 * exact.cov.max())


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32"])
def test_single_precision_with_variances_ten_orders_apart(dtype, rng):
    """The variance 1e-6 that is left of 1e4 is below the rounding of the covariance form."""
    model = model_of(rng)._replace(
        initial_cov=1e4 * np.eye(N), transition_cov=1e-6 * np.eye(N), emission_cov=1e-6 * np.eye(O)
    )
    y = rng.normal(size=(T, O))
    single = jax.tree.map(lambda x: np.asarray(x, dtype), model)
    smoothed, *_ = run(single, y.astype(dtype), np.ones((T, O), bool))
    chex.assert_type(smoothed.chol, dtype)
    double, *_ = run(model, y, np.ones((T, O), bool))
    # Roots are right to roundings of the largest one, 1e2, times their number.
    np.testing.assert_allclose(cov(smoothed.chol), cov(double.chol), rtol=0, atol=3e-6)
    np.testing.assert_allclose(smoothed.log_evidence, double.log_evidence, rtol=2e-2)


def test_filter_equals_the_joint_gaussian(rng):
    model, y = model_of(rng), rng.normal(size=(T, O))
    filtered = jax.jit(square_root.square_root_filter)(model, y)
    exact = joint_gaussian(model, y)
    np.testing.assert_allclose(filtered.mean[-1], exact.mean[-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(cov(filtered.chol[-1]), exact.cov[-1], rtol=0, atol=1e-12)
    np.testing.assert_allclose(filtered.log_evidence, exact.log_evidence, rtol=1e-12)

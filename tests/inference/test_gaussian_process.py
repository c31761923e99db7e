"""The exact posterior against Kalman filters and scalar formulas."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from vfejax.inference import gaussian_process as gp
from vfejax.inference import nonlinear_filters as nf
from vfejax.problems import linear_convolution as lc


def test_transition_equals_scipy(rng):
    drift = rng.normal(size=(3, 3))
    step, hold = gp.transition(drift, 0.7)
    np.testing.assert_allclose(step, scipy.linalg.expm(drift * 0.7), rtol=1e-12)
    expected = np.linalg.solve(drift, scipy.linalg.expm(drift * 0.7) - np.eye(3))
    np.testing.assert_allclose(hold, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.slow
def test_white_noise_gives_the_kalman_filter_and_smoother(rng):
    num = 12
    paths = lc.convolution_paths(num, 0.0, state_precision=10.0, num_substeps=3)
    data = lc.simulate(rng, paths, 2, 0.0, output_precision=20.0)
    step, hold = gp.transition(lc.DRIFT, 1.0)
    control = np.zeros((num, 2))
    control[:-1] = paths.mean[1:, :2] - paths.mean[:-1, :2] @ step.T
    model = nf.NonlinearGaussian(
        jnp.zeros(2),
        1e-12 * jnp.eye(2),
        lambda x, u: jnp.matmul(jnp.asarray(step), x) + u,
        jnp.asarray(hold @ hold.T / 10.0),
        lambda x, u: jnp.matmul(jnp.asarray(lc.EMISSION), x),
        jnp.eye(4) / 20.0,
    )
    observations = jnp.asarray(data.observations[1])
    emission = np.pad(lc.EMISSION, ((0, 0), (0, 1)))
    noise = np.eye(4) / 20.0, np.eye(num)
    for kalman, window in (
        (nf.extended_kalman_filter, (None, 0)),
        (nf.extended_kalman_smoother, (None, None)),
    ):
        exact = gp.posterior(paths, emission, noise, data.observations, window)
        result = kalman(model, observations, jnp.asarray(control))
        # The first state of the filter has a variance of 1e-12.
        np.testing.assert_allclose(exact.mean[1, :, :2], result.mean, rtol=0, atol=1e-9)
        deviation = jnp.sqrt(jnp.diagonal(result.cov, axis1=1, axis2=2))
        np.testing.assert_allclose(exact.deviation[1:, :2], deviation[1:], rtol=1e-6)


@pytest.mark.parametrize("smoothness", [0.0, 0.5])
def test_draws_have_the_covariance_of_the_prior_and_the_posterior_is_calibrated(smoothness):
    rng = np.random.default_rng(8)
    paths = lc.convolution_paths(10, smoothness, state_precision=4.0, num_substeps=2)
    data = lc.simulate(rng, paths, 4000, smoothness, output_precision=100.0)
    states = np.concatenate([data.states, data.causes], axis=-1)
    expected = np.einsum("ir,jr->ij", paths.root[7], paths.root[7])
    # 4000 draws: 2 percent.
    np.testing.assert_allclose(np.cov(states[:, 7].T), expected, rtol=0, atol=0.1 * expected.max())
    noise = np.eye(4) / 100.0, lc.noise_kernel(10, smoothness)
    emission = np.pad(lc.EMISSION, ((0, 0), (0, 1)))
    exact = gp.posterior(paths, emission, noise, data.observations)
    found = np.sqrt(np.mean((exact.mean - states)[:, 1:, :2] ** 2, axis=0))
    np.testing.assert_allclose(found, exact.deviation[1:, :2], rtol=0.06)


def test_grids_must_fit():
    with pytest.raises(ValueError, match=r"one grid of t \* 2 points, got 3 points"):
        gp.linear_paths(
            [[0.0]],
            [[1.0]],
            1.0,
            2,
            initial=([0.0], [[1.0]]),
            causes=(np.zeros((3, 1)), np.eye(3)),
            noise=([[1.0]], np.eye(3)),
        )


def test_covariances_must_be_semidefinite():
    with pytest.raises(ValueError, match=r"covariance of noise must be positive semidefinite.* -1"):
        gp.linear_paths(
            [[0.0]],
            [[1.0]],
            1.0,
            1,
            initial=([0.0], [[1.0]]),
            causes=(np.zeros((2, 1)), np.eye(2)),
            noise=([[-1.0]], np.eye(2)),
        )

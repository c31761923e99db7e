"""The embedded problem and its baselines: exact without noise, gauge invariant, and the best fit
is the best.
"""

import chex
import numpy as np
import pytest

from vfejax.geometry import grid
from vfejax.problems import sensor_network


def network(seed=0, num_agents=12, **options):
    observations, truth = sensor_network.simulate(
        np.random.default_rng(seed), num_agents, dtype=np.dtype("float64"), **options
    )
    return observations, truth, sensor_network.mean_observations(observations)


def some_rotation(rng):
    return sensor_network.nearest_rotation(rng.standard_normal((3, 3)))


def test_nearest_rotation_is_proper_and_nearest(rng):
    matrices = rng.standard_normal((20, 3, 3))
    rotations = sensor_network.nearest_rotation(matrices)
    np.testing.assert_allclose(
        rotations @ np.swapaxes(rotations, -1, -2),
        np.broadcast_to(np.eye(3), (20, 3, 3)),
        rtol=0,
        atol=1e-14,
    )
    np.testing.assert_allclose(np.linalg.det(rotations), 1.0, rtol=1e-13)
    others = sensor_network.nearest_rotation(rng.standard_normal((500, 3, 3)))
    best = np.einsum("nij,nij->n", rotations, matrices)
    assert np.all(best[:, None] >= np.einsum("mij,nij->nm", others, matrices))


def test_measurements_follow_the_model():
    observations, truth, _ = network(num_agents=50, num_observations=40, noise_std=0.3)
    clean = np.einsum("nij,lj->nli", truth.rotations, truth.landmarks).reshape(50, 1, 9)
    noise = np.asarray(observations.values) - clean
    # 18000 draws: the standard deviation is known to 0.3 / sqrt(2 * 18000) = 0.0016; five of those.
    assert abs(noise.std() - 0.3) < 0.008
    assert abs(noise.mean()) < 5 * 0.3 / np.sqrt(noise.size)


def test_without_noise_everything_is_recovered_exactly():
    _, truth, measured = network(noise_std=1e-13)
    fit = sensor_network.maximum_likelihood(measured)
    assert sensor_network.landmark_errors(fit.landmarks, truth.landmarks) < 1e-11
    # An arctangent of a residual sine: the angle is good to the rounding of the rotation matrices.
    assert sensor_network.relative_rotation_errors(fit.rotations, truth.rotations).max() < 1e-10
    assert sensor_network.pairwise_registration_errors(measured, truth.rotations).max() < 1e-10


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_maximum_likelihood_fits_better_than_the_truth_and_than_one_sensor(seed):
    _, truth, measured = network(seed)
    fit = sensor_network.maximum_likelihood(measured)
    at_truth = np.sum((measured - np.einsum("nij,lj->nli", truth.rotations, truth.landmarks)) ** 2)
    assert fit.residual < at_truth
    alone = np.sqrt(np.mean(sensor_network.landmark_errors(measured, truth.landmarks) ** 2))
    assert sensor_network.landmark_errors(fit.landmarks, truth.landmarks) < alone
    # A stationary point: no single rotation and no landmark can be improved.
    again = sensor_network.maximum_likelihood(measured, num_starts=12)
    np.testing.assert_allclose(again.residual, fit.residual, rtol=1e-9)


def test_errors_do_not_see_the_global_gauge(rng):
    _, truth, measured = network()
    gauge = some_rotation(rng)
    guess = truth.rotations @ sensor_network.nearest_rotation(
        np.eye(3) + 0.2 * rng.standard_normal((12, 3, 3))
    )
    errors = sensor_network.relative_rotation_errors(guess, truth.rotations)
    np.testing.assert_allclose(
        sensor_network.relative_rotation_errors(guess @ gauge, truth.rotations),
        errors,
        rtol=0,
        atol=1e-12,
    )
    landmarks = sensor_network.landmark_errors(measured, truth.landmarks)
    np.testing.assert_allclose(
        sensor_network.landmark_errors(measured @ gauge.T, truth.landmarks),
        landmarks,
        rtol=0,
        atol=1e-12,
    )


def test_relative_rotation_error_is_the_angle_put_in():
    angle = 0.3
    turn = np.array(
        [[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    truth = np.broadcast_to(np.eye(3), (3, 3, 3))
    estimate = np.stack([np.eye(3), turn, np.eye(3)])
    np.testing.assert_allclose(
        sensor_network.relative_rotation_errors(estimate, truth),
        [angle, 0, angle],
        rtol=0,
        atol=1e-15,
    )


def test_fields_have_one_orientation_and_landmarks_that_vary():
    ring = grid.ring(6)
    observations, truth, measured = network(points=np.asarray(ring.points), num_observations=2)
    chex.assert_shape(observations.values, (12, 2, 6, 9))
    chex.assert_shape(truth.landmarks, (6, 3, 3))
    chex.assert_shape(measured, (12, 6, 3, 3))
    assert np.ptp(truth.landmarks, axis=0).max() > 0.1


def test_one_sensor_has_no_relative_rotations():
    _, truth, measured = network(num_agents=1)
    between = sensor_network.relative_rotation_errors(truth.rotations, truth.rotations)
    pairwise = sensor_network.pairwise_registration_errors(measured, truth.rotations)
    chex.assert_shape([between, pairwise], (0,))
    assert sensor_network.maximum_likelihood(measured).residual < 1e-20


@pytest.mark.parametrize("name", ["num_agents", "num_landmarks", "num_observations"])
def test_an_empty_network_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        network(**{name: 0})

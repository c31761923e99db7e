"""Scenes: the data are those of the truth, and the baseline that needs no flow tells them apart."""

import chex
import numpy as np
import pytest

from vfejax.problems import scenes, sensor_network


def test_measurements_are_the_turned_landmarks_of_ones_own_scene(rng, dtype):
    observations, truth = scenes.simulate(rng, 7, 3, num_landmarks=4, noise_std=0.0, dtype=dtype)
    chex.assert_shape(observations.values, (7, 4, 12))
    chex.assert_type(observations.values, dtype)
    seen = np.asarray(observations.values, np.float64).reshape(7, 4, 4, 3)
    expected = np.einsum("nij,nlj->nli", truth.rotations, truth.landmarks[truth.labels])
    np.testing.assert_allclose(
        seen, np.broadcast_to(expected[:, None], seen.shape), rtol=0, atol=8 * np.finfo(dtype).eps
    )
    np.testing.assert_allclose(
        truth.rotations @ truth.rotations.swapaxes(-1, -2),
        np.broadcast_to(np.eye(3), (7, 3, 3)),
        rtol=0,
        atol=1e-14,
    )
    assert sorted(np.bincount(truth.labels)) == [2, 2, 3]


def test_noise_and_contrast_have_the_stated_size(rng):
    observations, truth = scenes.simulate(
        rng, 300, 100, num_landmarks=20, noise_std=0.3, contrast=0.7
    )
    values = np.asarray(observations.values, np.float64)
    # Means over some thousands of numbers, to three standard errors.
    np.testing.assert_allclose(values.std(axis=1, ddof=1).mean() / 0.3, 0.92, rtol=0, atol=0.02)
    np.testing.assert_allclose(truth.landmarks.std(axis=0, ddof=1).mean(), 0.7, rtol=0, atol=0.03)
    assert observations.noise_chol[0, 0] == np.float32(0.3)


@pytest.mark.parametrize(
    ("name", "least"),
    [("num_agents", 1), ("num_scenes", 1), ("num_landmarks", 1), ("num_observations", 1)],
)
def test_an_empty_problem_is_refused(name, least, rng):
    with pytest.raises(ValueError, match=f"{name} must be at least {least}, got 0"):
        scenes.simulate(rng, **{name: 0})


def test_a_scene_without_sensors_is_refused(rng):
    with pytest.raises(ValueError, match="num_agents must be at least num_scenes = 4, got 3"):
        scenes.simulate(rng, 3, 4)


def test_registration_tells_scenes_apart_whatever_the_orientation(rng):
    observations, truth = scenes.simulate(rng, 12, 3, noise_std=1e-4)
    distance = scenes.registration_distances(sensor_network.mean_observations(observations))
    same = truth.labels[:, None] == truth.labels
    # Rounded to float32, and noise of 1e-4.
    assert distance[same].max() < 1e-3 < 0.1 < distance[~same].min()
    np.testing.assert_allclose(distance, distance.T, rtol=0, atol=1e-7)


def test_cooling_is_geometric(dtype):
    temperature = scenes.cooling(np.array([0.0, 0.25, 0.5, 1.0], dtype), 16.0, 1.0)
    chex.assert_type(temperature, dtype)
    chex.assert_trees_all_close(temperature, np.array([16.0, 8.0, 4.0, 1.0], dtype), rtol=1e-6)

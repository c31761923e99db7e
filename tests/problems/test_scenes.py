"""Scenes: the data are those of the truth, the scores are the textbook's, and the baselines find
groups that are plain to see.
"""

import itertools

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
        seen, np.broadcast_to(expected[:, None], seen.shape), atol=8 * np.finfo(dtype).eps
    )
    np.testing.assert_allclose(
        truth.rotations @ truth.rotations.swapaxes(-1, -2),
        np.broadcast_to(np.eye(3), (7, 3, 3)),
        atol=1e-14,
    )
    assert sorted(np.bincount(truth.labels)) == [2, 2, 3]


def test_noise_and_contrast_have_the_stated_size(rng):
    observations, truth = scenes.simulate(
        rng, 300, 100, num_landmarks=20, noise_std=0.3, contrast=0.7
    )
    values = np.asarray(observations.values, np.float64)
    # Means over some thousands of numbers, to three standard errors.
    np.testing.assert_allclose(values.std(axis=1, ddof=1).mean() / 0.3, 0.92, atol=0.02)
    np.testing.assert_allclose(truth.landmarks.std(axis=0, ddof=1).mean(), 0.7, atol=0.03)
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
    np.testing.assert_allclose(distance, distance.T, atol=1e-7)


def test_cooling_is_geometric(dtype):
    temperature = scenes.cooling(np.array([0.0, 0.25, 0.5, 1.0], dtype), 16.0, 1.0)
    chex.assert_type(temperature, dtype)
    chex.assert_trees_all_close(temperature, np.array([16.0, 8.0, 4.0, 1.0], dtype), rtol=1e-6)


def by_counting_pairs(a, b):
    """The index from its definition, pair by pair."""
    pairs = list(itertools.combinations(range(len(a)), 2))
    first = np.array([a[i] == a[j] for i, j in pairs])
    second = np.array([b[i] == b[j] for i, j in pairs])
    chance = first.sum() * second.sum() / len(pairs)
    return ((first & second).sum() - chance) / ((first.sum() + second.sum()) / 2 - chance)


def test_the_rand_index_is_that_of_all_pairs(rng):
    for _ in range(5):
        a, b = rng.integers(0, 4, (2, 15))
        index = scenes.adjusted_rand_index(a, b)
        np.testing.assert_allclose(index, by_counting_pairs(a, b), rtol=1e-12)
        assert index == scenes.adjusted_rand_index(b, a)
        # Names of groups do not matter.
        assert index == scenes.adjusted_rand_index(np.array([7, 3, -1, 5])[a], b)


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        # The values that scikit-learn documents for adjusted_rand_score.
        ([0, 0, 1, 2], [0, 0, 1, 1], 0.5714285714285714),
        ([0, 0, 1, 1], [0, 1, 0, 1], -0.5),
        ([0, 0, 0, 0], [0, 1, 2, 3], 0.0),
        ([0, 1, 2], [5, 6, 4], 1.0),
        ([1, 1, 1], [0, 0, 0], 1.0),
        ([3], [0], 1.0),
    ],
)
def test_the_rand_index_of_known_partitions(a, b, expected):
    np.testing.assert_allclose(scenes.adjusted_rand_index(a, b), expected, rtol=1e-14)


def test_the_rand_index_of_random_partitions_is_zero_on_average(rng):
    truth = np.arange(40) % 4
    index = [scenes.adjusted_rand_index(truth, rng.permutation(truth)) for _ in range(400)]
    # Three standard errors of the mean.
    assert abs(np.mean(index)) < 3 * np.std(index) / 20


@pytest.mark.parametrize(("a", "b"), [([], []), ([0, 1], [0]), ([[0]], [[0]])])
def test_labels_that_do_not_fit_are_refused(a, b):
    with pytest.raises(ValueError, match="labels must be two arrays of one shape"):
        scenes.adjusted_rand_index(a, b)


def blocks(rng, sizes, within, between):
    """Divergences with planted groups, in random order."""
    truth = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    same = truth[:, None] == truth
    return np.where(same, within, between) * rng.uniform(0.7, 1.0, same.shape), truth


@pytest.mark.parametrize(
    ("sizes", "within", "between"),
    [
        ((5, 5), 1.0, 20.0),
        ((3, 8, 4, 5), 0.01, 2.0),
        ((4, 4, 4), 0.0, np.inf),
        ((6, 1), 1.0, 50.0),
        ((9,), 1.0, 1.0),
    ],
)
def test_spectral_clustering_finds_planted_groups(sizes, within, between, rng):
    divergences, truth = blocks(rng, sizes, within, between)
    found = scenes.spectral_clustering(divergences, len(sizes), np.random.default_rng(0))
    assert scenes.adjusted_rand_index(found, truth) == 1.0
    _, first = np.unique(found, return_index=True)
    assert np.all(np.diff(first) > 0)  # numbered by first appearance


def test_spectral_clustering_follows_a_ring_that_no_mean_splits():
    """Two concentric rings: neighbours are near, and k-means on the points would cut them."""
    angle = 2 * np.pi * np.arange(30) / 30
    points = np.concatenate([r * np.stack([np.cos(angle), np.sin(angle)], -1) for r in (1.0, 2.0)])
    squares = np.sum((points[:, None] - points[None]) ** 2, axis=-1)
    found = scenes.spectral_clustering(squares, 2, np.random.default_rng(0), scale=0.1)
    assert scenes.adjusted_rand_index(found, np.repeat([0, 1], 30)) == 1.0


def test_the_diagonal_and_the_smaller_direction_do_not_count(rng):
    divergences, _ = blocks(rng, (4, 4), 1.0, 9.0)
    other = np.tril(divergences, -1) + np.tril(divergences, -1).T
    other = other + 1e3 * np.eye(8) - np.triu(0.5 * other, 1)
    expected = scenes.spectral_clustering(divergences, 2, np.random.default_rng(0), scale=2.0)
    found = scenes.spectral_clustering(other, 2, np.random.default_rng(0), scale=2.0)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("divergences", "options", "message"),
    [
        (np.ones((2, 3)), {}, "divergences must have shape"),
        (np.ones((0, 0)), {}, "divergences must have shape"),
        (-np.ones((3, 3)), {}, "divergences must be at least 0"),
        (np.full((3, 3), np.nan), {}, "divergences must be at least 0"),
        (np.ones((3, 3)), {"num_clusters": 4}, "num_clusters must be from 1 to 3, got 4"),
        (np.ones((3, 3)), {"num_clusters": 0}, "num_clusters must be from 1 to 3, got 0"),
        (np.ones((3, 3)), {"scale": 0.0}, "scale must be positive, got 0"),
    ],
)
def test_what_cannot_be_clustered_is_refused(divergences, options, message):
    with pytest.raises(ValueError, match=message):
        scenes.spectral_clustering(
            divergences, **{"num_clusters": 2, "rng": np.random.default_rng(0), **options}
        )

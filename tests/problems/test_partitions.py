"""Scores of partitions are the textbook's, and clusters that are plain to see are found."""

import itertools

import numpy as np
import pytest

from vfejax.problems.partitions import adjusted_rand_index, spectral_clustering


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
        index = adjusted_rand_index(a, b)
        np.testing.assert_allclose(index, by_counting_pairs(a, b), rtol=1e-12)
        assert index == adjusted_rand_index(b, a)
        # Names of groups do not matter.
        assert index == adjusted_rand_index(np.array([7, 3, -1, 5])[a], b)


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
    np.testing.assert_allclose(adjusted_rand_index(a, b), expected, rtol=1e-14)


def test_the_rand_index_of_random_partitions_is_zero_on_average(rng):
    truth = np.arange(40) % 4
    index = [adjusted_rand_index(truth, rng.permutation(truth)) for _ in range(400)]
    # Three standard errors of the mean.
    assert abs(np.mean(index)) < 3 * np.std(index) / 20


@pytest.mark.parametrize(("a", "b"), [([], []), ([0, 1], [0]), ([[0]], [[0]])])
def test_labels_that_do_not_fit_are_refused(a, b):
    with pytest.raises(ValueError, match="labels must be two arrays of one shape"):
        adjusted_rand_index(a, b)


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
    found = spectral_clustering(divergences, len(sizes), np.random.default_rng(0))
    assert adjusted_rand_index(found, truth) == 1.0
    _, first = np.unique(found, return_index=True)
    assert np.all(np.diff(first) > 0)  # numbered by first appearance


def test_spectral_clustering_follows_a_ring_that_no_mean_splits():
    """Two concentric rings: neighbours are near, and k-means on the points would cut them."""
    angle = 2 * np.pi * np.arange(30) / 30
    points = np.concatenate([r * np.stack([np.cos(angle), np.sin(angle)], -1) for r in (1.0, 2.0)])
    squares = np.sum((points[:, None] - points[None]) ** 2, axis=-1)
    found = spectral_clustering(squares, 2, np.random.default_rng(0), scale=0.1)
    assert adjusted_rand_index(found, np.repeat([0, 1], 30)) == 1.0


def test_the_diagonal_and_the_smaller_direction_do_not_count(rng):
    divergences, _ = blocks(rng, (4, 4), 1.0, 9.0)
    other = np.tril(divergences, -1) + np.tril(divergences, -1).T
    other = other + 1e3 * np.eye(8) - np.triu(0.5 * other, 1)
    expected = spectral_clustering(divergences, 2, np.random.default_rng(0), scale=2.0)
    found = spectral_clustering(other, 2, np.random.default_rng(0), scale=2.0)
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
        (np.ones((3, 3)), {"num_starts": 0}, "num_starts must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_clustered_is_refused(divergences, options, message):
    with pytest.raises(ValueError, match=message):
        spectral_clustering(
            divergences, **{"num_clusters": 2, "rng": np.random.default_rng(0), **options}
        )

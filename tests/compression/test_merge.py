"""Experts that are alike become one."""

import numpy as np
import pytest

from vfejax.compression.merge import aligned, clusters, merge


def test_those_that_are_alike_join_whoever_they_are():
    near = np.asarray([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]])
    similarity = np.eye(4) + (1 - np.eye(4)) * np.where(near, 0.1, 0.8)
    np.testing.assert_array_equal(clusters(similarity, np.full(4, 0.25), 2), [0, 1, 0, 1])
    np.testing.assert_array_equal(clusters(similarity, np.full(4, 0.25), 4), [0, 1, 2, 3])
    np.testing.assert_array_equal(clusters(similarity, np.zeros(4), 1), np.zeros(4))


@pytest.mark.parametrize("count", [0, 4])
def test_a_number_of_groups_that_does_not_fit_is_named(count):
    with pytest.raises(
        ValueError, match=f"count must lie between 1 and the 3 experts, got {count}"
    ):
        clusters(np.eye(3), np.ones(3), count)


def test_an_expert_in_another_order_of_its_units_is_found_out(rng):
    first, last = rng.normal(size=(6, 8)), rng.normal(size=(8, 6))
    order = rng.permutation(8)
    found = aligned(first[:, order], last[order], (first, last))
    np.testing.assert_array_equal(order[found], np.arange(8))


def test_the_mean_is_weighted_by_use_and_groups_stay_apart(rng):
    first, last = rng.normal(size=(3, 4, 5)), rng.normal(size=(3, 5, 4))
    first[2], last[2] = first[0][:, ::-1], 3 * last[0][::-1]
    found = merge(first, last, np.asarray([0.6, 0.2, 0.2]), np.asarray([0, 1, 0]))
    # Three quarters of one, a quarter of three times as much, to the last bit or two.
    np.testing.assert_allclose(found.kernel_out, np.stack([1.5 * last[0], last[1]]), rtol=1e-15)
    np.testing.assert_allclose(found.kernel_in, first[:2], rtol=1e-15)
    np.testing.assert_allclose(found.mixing, [[0.75, 0.0], [0.0, 1.0], [0.25, 0.0]], rtol=1e-15)


@pytest.mark.parametrize("name", ["kernel_in", "kernel_out"])
def test_weights_that_are_not_finite_are_named(rng, name):
    kernels = {"kernel_in": rng.normal(size=(2, 3, 4)), "kernel_out": rng.normal(size=(2, 4, 3))}
    kernels[name][1, 0, 0] = np.nan
    with pytest.raises(ValueError, match=f"{name} is not finite"):
        merge(**kernels, frequency=np.ones(2) / 2, labels=np.zeros(2, int))

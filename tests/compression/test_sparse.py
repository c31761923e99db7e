"""Sparse weights: which stay, what they take, and that they come back."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression import sparse
from vfejax.compression.packing import packed_length

keep_largest = jax.jit(sparse.keep_largest, static_argnums=1)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 1.0])
def test_every_column_keeps_its_largest_scores(rng, share):
    scores = rng.normal(size=(2, 10, 3))
    mask = np.asarray(keep_largest(scores, share))
    assert np.all(mask.sum(axis=-2) == 10 - round(10 * share))
    lost = np.where(mask, -np.inf, scores).max(axis=-2)
    assert np.all(np.where(mask, scores, np.inf).min(axis=-2) >= lost)


def test_equal_scores_leave_as_many_and_nan_stays():
    assert np.asarray(keep_largest(np.zeros((4, 1)), 0.5)).sum() == 2
    mask = keep_largest(np.asarray([[1.0], [np.nan], [2.0], [3.0]]), 0.75)
    np.testing.assert_array_equal(mask, [[False], [True], [False], [False]])


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_what_stays_is_what_stands_last_in_rising_order(share, rng):
    """Equal scores in the order of their places, NaN after infinity."""
    scores = rng.integers(0, 4, (2, 10, 40)).astype(float)
    scores[rng.random(scores.shape) < 0.2] = np.nan
    scores[rng.random(scores.shape) < 0.2] = np.inf
    ranks = np.argsort(np.argsort(scores, axis=-2, kind="stable"), axis=-2)
    np.testing.assert_array_equal(keep_largest(scores, share), ranks >= round(10 * share))


def test_activations_tell_small_weights_that_matter_from_large_ones_that_do_not():
    @jax.jit
    def masks(kernel, moments):
        scores = sparse.activation_aware(kernel, moments), sparse.magnitude(kernel)
        return [sparse.keep_largest(x, 0.5) for x in scores]

    active, large = masks(np.asarray([[1.0], [2.0]]), np.diag([9.0, 1.0]))
    np.testing.assert_array_equal(active, [[True], [False]])
    np.testing.assert_array_equal(large, [[False], [True]])


@pytest.mark.parametrize("share", [0.0, 0.6, 1.0])
def test_a_bitmap_takes_a_bit_for_every_weight_and_gives_them_back(rng, dtype, share):
    kernel = rng.normal(size=(3, 5, 7)).astype(dtype)

    @jax.jit
    def cut(kernel):
        mask = sparse.keep_largest(sparse.magnitude(kernel), share)
        return mask, sparse.masked({"x": kernel}, {"x": mask})["x"]

    mask, expected = jax.device_get(cut(kernel))
    packed = sparse.to_sparse(kernel, mask)
    assert packed.bitmap.nbytes == packed_length(105, 1)
    assert packed.values.nbytes == int(mask.sum()) * dtype.itemsize
    found = jax.jit(lambda packed: sparse.from_sparse(packed, (3, 5, 7)))(packed)
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, expected)


def test_two_of_four_keeps_the_largest_and_takes_two_bits_for_each(rng):
    kernel = rng.normal(size=(2, 8, 3))

    @jax.jit
    def there_and_back(kernel):
        mask = sparse.two_of_four(sparse.magnitude(kernel))
        packed = sparse.to_two_of_four(kernel, mask)
        return mask, packed, sparse.from_two_of_four(packed)

    mask, packed, found = jax.device_get(there_and_back(kernel))
    fours, sizes = (x.reshape(2, 2, 4, 3) for x in (mask, np.abs(kernel)))
    np.testing.assert_array_equal(fours, sizes >= np.sort(sizes, axis=-2)[:, :, 2:3])
    assert packed.places.nbytes == packed_length(24, 2)
    assert packed.values.shape == (2, 4, 3)
    np.testing.assert_array_equal(found, np.where(mask, kernel, 0.0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sparse.keep_largest(jnp.ones((2, 2)), 1.5), "sparsity must lie between 0 and 1"),
        (lambda: sparse.two_of_four(jnp.ones((6, 2))), "multiple of 4 inputs, got shape"),
        (lambda: sparse.masked({"x": jnp.ones(2)}, {"y": jnp.ones(2)}), "leaves of params, got y"),
        (lambda: sparse.masked({"x": jnp.ones(2)}, {"x": jnp.ones(3)}), r"be \(2,\) for x"),
        (lambda: sparse.to_sparse(np.ones(2), np.ones(3)), r"the kernel's shape \(2,\)"),
    ],
)
def test_what_does_not_fit_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Distances on a torus: they are metrics, rolls keep them, and the bound is reached."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention.toroidal import toroidal_distance
from vfejax.geometry import torus

SIZES = [(1, 1), (2, 1), (7, 1), (8, 3), (5, 4)]


def written_distance(n, depth):
    """By the shortest walk: a breadth-first search round the ring, and steps between platters."""
    steps = np.array([[min((i - j) % n, (j - i) % n) for j in range(n)] for i in range(n)])
    platters = np.abs(np.subtract.outer(np.arange(depth), np.arange(depth)))
    return steps[:, None, :, None] / n + platters[None, :, None, :] / depth


@pytest.mark.parametrize(("n", "depth"), SIZES)
def test_distance_is_a_metric_that_rolls_keep_and_its_bound_is_reached(n, depth):
    distance = np.asarray(jax.jit(lambda: toroidal_distance(n, depth))())
    chex.assert_shape(distance, (n, depth, n, depth))
    chex.assert_trees_all_close(distance, written_distance(n, depth), rtol=0, atol=1e-15)
    square = distance.reshape(n * depth, n * depth)
    np.testing.assert_array_equal(square, square.T)
    np.testing.assert_array_equal(square == 0, np.eye(n * depth, dtype=bool))
    # Sums of three rounded numbers.
    assert np.all(square[:, None, :] <= square[:, :, None] + square[None, :, :] + 1e-15)
    for shift in range(n):
        rolled = np.roll(distance, (shift, shift), axis=(0, 2))
        np.testing.assert_array_equal(rolled, distance)
    assert square.max() == torus.diameter(n, depth)


def test_distance_round_the_ring_knows_places_only_up_to_whole_turns():
    offset = np.arange(-20, 21)
    distance = jax.jit(lambda offset: torus.circular_distance(offset, 8))
    whole = distance(offset)
    chex.assert_trees_all_equal(whole, distance(offset + 8000))
    chex.assert_trees_all_equal(whole, distance(-offset))
    assert float(whole.max()) == 0.5


def test_age_does_not_wrap():
    age = torus.linear_distance(jnp.array([0, 1, 7, 9]), 8)
    chex.assert_trees_all_close(age, jnp.array([0.0, 0.125, 0.875, 1.125]), rtol=0)


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64"])
def test_hops_are_integers_of_the_offset_s_type(dtype):
    hops = jax.jit(lambda x: torus.circular_hops(x, 7))(np.array([3, -3, 60], dtype))
    chex.assert_type(hops, dtype)
    assert hops.tolist() == [3, 3, 3]


@pytest.mark.parametrize("dtype", ["uint8", "uint32"])
def test_hops_of_unsigned_offsets(dtype):
    hops = jax.jit(lambda x: torus.circular_hops(x, 7))(np.arange(15, dtype=dtype))
    chex.assert_type(hops, dtype)
    assert hops.tolist() == 2 * [0, 1, 2, 3, 3, 2, 1] + [0]


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda: torus.circular_distance(jnp.arange(3), 0), "circumference"),
        (lambda: torus.linear_distance(jnp.arange(3), -1), "circumference"),
        (lambda: torus.platter_distance(jnp.arange(3), 0), "depth"),
        (lambda: torus.diameter(0, 1), "circumference"),
        (lambda: torus.diameter(4, 0), "depth"),
        (lambda: toroidal_distance(4, 0), "depth"),
    ],
)
def test_sizes_below_one_are_refused(function, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1"):
        function()


def test_the_diameter_is_the_largest_distance_for_many_sizes():
    for n, depth in itertools.product(range(1, 12), range(1, 6)):
        largest = max(min(o, n - o) / n for o in range(n)) + (depth - 1) / depth
        assert torus.diameter(n, depth) == pytest.approx(largest, rel=1e-15)

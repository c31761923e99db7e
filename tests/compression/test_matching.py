"""Which layers are compared, and how far apart they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression.matching import (
    MatchSums,
    layer_pairs,
    match_sums,
    projections,
    relative_error,
)


@pytest.mark.parametrize(
    ("student", "teacher", "pairs"),
    [
        (1, 4, [(0, 3)]),
        (4, 1, [(3, 0)]),
        (2, 4, [(0, 1), (1, 3)]),
        (3, 3, [(0, 0), (1, 1), (2, 2)]),
        (3, 5, [(0, 0), (1, 2), (2, 4)]),
    ],
)
def test_layers_are_evenly_spaced_and_the_last_meets_the_last(student, teacher, pairs):
    assert list(layer_pairs(student, teacher)) == pairs


def test_errors_are_those_of_projected_layers_where_tokens_count(rng, dtype):
    student = rng.standard_normal((2, 3, 4, 5)).astype(dtype)
    teacher = rng.standard_normal((4, 3, 4, 6))
    maps = rng.standard_normal((2, 5, 6))
    counts = rng.random((3, 4)) < 0.6
    sums = jax.jit(match_sums)(student, teacher, counts, maps)
    assert sums.error.dtype == sums.square.dtype == dtype
    for pair, layer in enumerate((1, 3)):
        aim = teacher[layer][counts]
        # Sums of positive numbers: rounding of a few terms each.
        rtol = 100 * jnp.finfo(dtype).eps
        error = np.square(student[pair][counts].astype(float) @ maps[pair] - aim).sum()
        np.testing.assert_allclose(sums.error[pair], error, rtol=rtol)
        np.testing.assert_allclose(sums.square[pair], np.square(aim).sum(), rtol=rtol)


def test_the_relative_error_has_no_unit_and_keeps_nan():
    error, square = jnp.asarray([2.0, 1.0]), jnp.asarray([4.0, 4.0])
    assert relative_error(MatchSums(error, square)) == 0.375
    assert relative_error(MatchSums(9 * error, 9 * square)) == 0.375
    assert relative_error(MatchSums(jnp.zeros(2), jnp.zeros(2))) == 0
    assert np.isnan(relative_error(MatchSums(error, square.at[0].set(jnp.nan))))


def test_projections_keep_lengths_on_average(dtype):
    student, teacher = jnp.zeros((2, 1, 1, 64), dtype), jnp.zeros((3, 1, 1, 100), dtype)
    found = projections({"hidden": (student, teacher)}, jax.random.key(0))["hidden"]
    assert (found.shape, found.dtype) == ((2, 64, 100), dtype)
    # 12800 squares of normal numbers: relative error sqrt(2 / 12800) = 0.0125, four of them.
    np.testing.assert_allclose(jnp.mean(jnp.square(found)) * 64, 1, rtol=0, atol=0.05)

"""Encodings of a torus: their numbers of turns, and how well they tell positions apart."""

import itertools
from math import gcd

import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention.encodings import ENCODINGS, geometric, mixed, snapped, standard
from vfejax.attention.frequencies import nearest_distinct, nearest_turns, spaced
from vfejax.attention.orthogonality import (
    collision_margin,
    global_orthogonality,
    local_orthogonality,
)

PERIODIC = {name: make for name, make in ENCODINGS.items() if name != "standard"}
TORI = [(8, 8, 1), (8, 12, 2), (16, 100, 4), (64, 97, 1), (64, 2048, 4), (128, 4096, 2)]


def turns(encoding, circumference):
    """Numbers of turns of the pairs of the sequence."""
    numbers = encoding.sequence[encoding.sequence != 0] * circumference / (2 * np.pi)
    np.testing.assert_allclose(numbers, np.rint(numbers), rtol=1e-12)
    return np.rint(numbers).astype(int).tolist()


@pytest.mark.parametrize("torus", TORI, ids=str)
@pytest.mark.parametrize("name", PERIODIC)
def test_turns_are_distinct_integers_up_to_half_the_ring_and_one_is_coprime(name, torus):
    circumference = torus[1]
    numbers = turns(PERIODIC[name](*torus), circumference)
    assert numbers == sorted(set(numbers), reverse=True)
    assert numbers[-1] >= 1
    assert numbers[0] <= circumference // 2
    assert any(gcd(n, circumference) == 1 for n in numbers)


@pytest.mark.parametrize(("targets", "largest"), [(4, 6), (3, 9), (5, 7), (1, 5)])
def test_the_nearest_distinct_integers_are_the_best_of_all(targets, largest, rng):
    choices = np.array(list(itertools.combinations(range(largest, 0, -1), targets)))
    for _ in range(20):
        wanted = np.sort(rng.uniform(-2, largest + 2, targets))[::-1]
        costs = np.sum((choices - wanted) ** 2, axis=1)
        found = nearest_distinct(wanted, largest)
        assert np.sum((found - wanted) ** 2) <= costs.min() * (1 + 1e-12)
        assert any((choices == found).all(axis=1))


def test_spacing_is_geometric_where_it_can_be():
    assert spaced(5, 4096).tolist() == [4096, 512, 64, 8, 1]
    assert spaced(7, 7).tolist() == [7, 6, 5, 4, 3, 2, 1]
    assert spaced(1, 50).tolist() == [1]


def test_snapped_turns_stay_where_they_are_far_apart():
    wanted = 2048 * 10_000.0 ** (-np.arange(32) / 32) / (2 * np.pi)
    numbers = turns(snapped(64, 2048), 2048)
    assert numbers[:10] == np.rint(wanted[:10]).astype(int).tolist()
    assert numbers[10:] == list(range(22, 0, -1))  # wanted: 18.3 and less
    assert nearest_turns(np.array([6.1, 2.1]), 12).tolist() == [6, 1]


@pytest.mark.parametrize("name", ENCODINGS)
@pytest.mark.parametrize("depth", [2, 4, 8])
def test_a_quarter_of_the_pairs_but_at_most_one_for_each_platter_belongs_to_depth(name, depth):
    encoding = ENCODINGS[name](32, 256, depth)
    if name == "mixed":
        assert np.all(encoding.sequence != 0)
        return
    assert np.all((encoding.sequence == 0) == (encoding.depth != 0))
    rates = encoding.depth[encoding.depth != 0] * depth / np.pi
    assert rates.size == min(4, depth)
    np.testing.assert_allclose(rates, spaced(rates.size, depth), rtol=1e-15)


@pytest.mark.parametrize("torus", TORI, ids=str)
@pytest.mark.parametrize("name", ENCODINGS)
def test_small_steps_along_both_axes_are_orthogonal(name, torus):
    encoding = ENCODINGS[name](*torus)
    score = local_orthogonality(encoding)
    # A projection in float64, of vectors of any length.
    assert score <= 1e-14
    if name != "mixed" or torus[2] == 1:
        assert score == 0.0
        assert global_orthogonality(encoding, *torus[1:]) == 0.0


def every_position(encoding, circumference, depth):
    """Encodings ``[N, D, pairs]`` as complex unit vectors."""
    i, k = np.arange(circumference)[:, None, None], np.arange(depth)[None, :, None]
    phases = i * encoding.sequence + k * encoding.depth
    return np.exp(1j * phases) / encoding.sequence.size**0.5


@pytest.mark.parametrize("name", ENCODINGS)
def test_scores_equal_their_definition_over_all_pairs_of_positions(name):
    circumference, depth = 12, 3
    encoding = ENCODINGS[name](8, circumference, depth)
    points = every_position(encoding, circumference, depth)
    flat = points.reshape(-1, 4)
    distances = np.linalg.norm(flat[:, None] - flat[None], axis=-1)
    np.fill_diagonal(distances, np.inf)
    margin = collision_margin(encoding, circumference, depth)
    assert margin == pytest.approx(distances.min(), rel=1e-12)
    assert margin > 0.1
    greatest = 0.0
    for base in range(depth):  # steps from every platter, up and down
        along = points[1:, base] - points[0, base]
        across = np.delete(points[0] - points[0, base], base, axis=0)
        sizes = np.outer(np.linalg.norm(along, axis=-1), np.linalg.norm(across, axis=-1))
        greatest = max(greatest, float(np.max(np.abs((along @ across.conj().T).real) / sizes)))
    assert global_orthogonality(encoding, circumference, depth) == pytest.approx(
        greatest, rel=1e-12, abs=1e-15
    )


def test_a_circumference_of_numpy_is_a_whole_number_too():
    found, expected = (
        geometric(4, n).angles(jnp.arange(8), jnp.arange(1), jnp.dtype("float32"))
        for n in (np.int64(8), 8)
    )
    np.testing.assert_array_equal(found, expected)
    assert found.dtype == expected.dtype == np.float32


def test_the_margin_is_zero_where_two_positions_turn_alike():
    encoding = geometric(8, 12)._replace(sequence=2 * np.pi * np.array([6, 4, 3, 2]) / 12)
    assert collision_margin(encoding, 12) > 0.1  # no factor is common to all and 12
    encoding = encoding._replace(sequence=2 * np.pi * np.array([6, 4, 2, 2]) / 12)
    assert collision_margin(encoding, 12) < 1e-14
    assert collision_margin(encoding, 1) == 2.0


@pytest.mark.parametrize("make", PERIODIC.values(), ids=PERIODIC)
def test_more_pairs_than_integers_names_the_fix(make):
    message = r"8 pairs .* are 5 for circumference 11: take circumference >= 16 or channels <= 10$"
    with pytest.raises(ValueError, match=message):
        make(16, 11, 1)
    make(16, 16, 1)
    make(10, 11, 1)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: geometric(7, 64), "channels must be even and at least 2 for depth 1, got 7"),
        (lambda: mixed(2, 64, 2), "channels must be even and at least 4 for depth 2, got 2"),
        (lambda: standard(0), "channels must be even and at least 2"),
        (lambda: snapped(8, 64, 0), "depth must be at least 1, got 0"),
        (
            lambda: geometric(2, 1),
            "circumference must be a whole number from 2 to 536870911, got 1",
        ),
        (lambda: geometric(2, 2**29), "circumference must be a whole number from 2 to 536870911"),
        (lambda: geometric(2, 8.5), r"from 2 to 536870911, got 8\.5"),
    ],
)
def test_numbers_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()

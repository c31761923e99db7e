"""Queries: tables that sum to 1, information that finds what was asked, priors of regions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.inference.allocation import information, queries
from vfejax.inference.allocation.textures import srgb_to_lab

# Each of them one program: one by one, operations take longer to compile.
to_lab = jax.jit(srgb_to_lab)
mutual_information = jax.jit(information.mutual_information)
colour_codes = jax.jit(queries.colour_codes)
colour_query = jax.jit(queries.colour_query)
colour_information = jax.jit(queries.colour_information, static_argnums=2)
gaussian_colour_information = jax.jit(
    queries.gaussian_colour_information, static_argnums=2, static_argnames="noise"
)

RED, DULL, GREEN, GREY = (0.9, 0.1, 0.1), (0.8, 0.2, 0.15), (0.1, 0.7, 0.1), (0.5, 0.5, 0.5)


@pytest.fixture(scope="module")
def red():
    return np.asarray(colour_query(np.array(RED, np.float32)))


def test_a_query_is_a_joint_table(red):
    assert red.shape == (2, queries.NUM_CODES)
    # Sums of thousands of float32 numbers.
    np.testing.assert_allclose(red.sum(axis=1), [0.95, 0.05], rtol=1e-5)
    assert red.min() >= 0
    assert mutual_information(red) > 0.05


def test_information_is_largest_where_the_colour_is(red):
    picture = np.array([RED, DULL, GREEN, GREY], np.float32)
    picture = np.broadcast_to(picture[None, :, None], (6, 4, 6, 3)).reshape(6, 24, 3)
    found = np.asarray(colour_information(picture, red, 6))[0]
    assert found[0] > found[1] > 3 * max(found[2:])
    # What is asked for is certain at most: -log 0.05.
    assert found[0] < -np.log(0.05)
    half = colour_information(picture[:, 9:15], red, 6)
    np.testing.assert_allclose(half[0, 0], (found[1] + found[2]) / 2, rtol=1e-5)


def test_an_example_is_asked_for_as_its_colours_are(red, dtype):
    example = np.broadcast_to(np.array(RED, dtype), (4, 5, 3))
    found = colour_query(example)
    assert found.dtype == dtype
    # A point of the lattice that lies on the border of two cells counts 1e-5.
    np.testing.assert_allclose(found, red, rtol=0, atol=1e-4)


def test_the_information_of_typical_pixels_is_the_mutual_information(red, rng):
    cells = rng.choice(queries.NUM_CODES, size=200_000, p=np.asarray(red.sum(0) / red.sum()))
    told = np.asarray(jax.jit(information.specific_information)(red))[cells]
    expected = float(mutual_information(red))
    # Four standard errors of the mean.
    assert abs(told.mean() - expected) < 4 * told.std() / np.sqrt(told.size)


def test_gaussian_information_is_that_of_the_power_along_the_colour(rng, dtype):
    picture = rng.random((8, 12, 3))
    lab = np.asarray(to_lab(picture))
    grey, asked = np.asarray(to_lab(np.array([[0.5, 0.5, 0.5], RED])))
    heard = (lab - grey) @ (asked - grey) / np.linalg.norm(asked - grey)
    power = (heard**2).reshape(2, 4, 3, 4).mean(axis=(1, 3))
    found = gaussian_colour_information(picture.astype(dtype), np.array(RED, dtype), 4, noise=15.0)
    assert found.dtype == dtype
    # Colours of size 100, squared.
    rounding = 1e3 * jnp.finfo(dtype).eps
    np.testing.assert_allclose(found, 0.5 * np.log1p(power / 225), rtol=rounding)


def test_codes_tell_colours_apart_and_hold_every_colour():
    colours = np.array([RED, DULL, GREEN, GREY, (0, 0, 0), (1, 1, 1), (0, 0, 1)], np.float32)
    codes = colour_codes(colours)
    assert len(set(codes.tolist())) == 7
    assert codes.max() < queries.NUM_CODES


def test_nan_is_not_hidden_by_counts(red):
    assert np.all(np.isnan(np.asarray(colour_query(np.full((4, 5, 3), np.nan)))[1]))
    picture = np.zeros((4, 8, 3), np.float32)
    picture[0, 0, 0] = np.nan
    assert np.isnan(colour_information(picture, red, 4)).tolist() == [[True, False]]


def test_the_prior_of_a_region_has_its_pixels_and_a_little_elsewhere():
    found = np.exp(queries.region_prior(10, 20, (5, 2, 100, 4), 5, dtype=jnp.float64))
    # Columns 5 to 20 and rows 2 to 6 of 2 x 4 patches of 5 pixels.
    overlap = np.outer([3, 1], [0, 5, 5, 5]).reshape(-1)
    np.testing.assert_allclose(found, 0.9 * overlap / overlap.sum() + 0.1 / 8, rtol=1e-12)


def test_arguments_are_refused():
    with pytest.raises(ValueError, match="30,0,5,5 must hold a pixel of the picture of 20 x 10"):
        queries.region_prior(10, 20, (30, 0, 5, 5), 5)
    with pytest.raises(ValueError, match="miss must be a probability above 0 and below 1, got 0"):
        queries.region_prior(10, 20, (0, 0, 5, 5), 5, miss=0)
    with pytest.raises(ValueError, match=r"colour must have shape \[3\], got \[2, 3\]"):
        queries.gaussian_colour_information(jnp.zeros((2, 2, 3)), jnp.zeros((2, 3)))
    with pytest.raises(ValueError, match="noise must be positive, got 0"):
        queries.gaussian_colour_information(jnp.zeros((2, 2, 3)), jnp.zeros(3), noise=0)
    with pytest.raises(ValueError, match="bandwidth must be positive, got 0"):
        queries.colour_query(jnp.zeros(3), bandwidth=0)
    with pytest.raises(ValueError, match=r"example must hold a colour, got shape \[0, 3\]"):
        queries.colour_query(jnp.zeros((0, 3)))
    with pytest.raises(ValueError, match=r"joint must have shape \[2, 2890\], got \[2, 2\]"):
        queries.colour_information(jnp.zeros((2, 2, 3)), jnp.ones((2, 2)))

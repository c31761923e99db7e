"""Seven-segment digits: their best classifier is calibrated, and better than a linear one."""

import numpy as np
import pytest

from vfejax.problems.segment_digits import posterior, simulate

COUNT = 3000


def with_bias(pixels):
    return np.column_stack([pixels.reshape(len(pixels), -1), np.ones(len(pixels))])


def test_the_posterior_is_as_often_right_as_it_says_and_no_line_does_as_well():
    images, more = (simulate(np.random.default_rng(seed), COUNT) for seed in (1, 2))
    found = posterior(images.pixels)
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-12)
    right = found.argmax(axis=1) == images.labels
    # Four standard errors of a mean of 3000.
    assert abs(right.mean() - found.max(axis=1).mean()) < 4 * right.std() / COUNT**0.5
    lines = np.linalg.lstsq(with_bias(more.pixels), np.eye(10)[more.labels], rcond=None)[0]
    linear = (with_bias(images.pixels) @ lines).argmax(axis=1) == images.labels
    assert linear.mean() < 0.4 < 0.95 < right.mean()


def test_images_without_noise_are_known_for_certain():
    images = simulate(np.random.default_rng(0), 200, noise_std=1e-3)
    found = posterior(images.pixels, 1e-3)
    assert (found.argmax(axis=1) == images.labels).all()
    assert found.max(axis=1).min() > 1 - 1e-12
    assert set(images.labels) == set(range(10))


def test_nan_stays_nan():
    pixels = simulate(np.random.default_rng(0), 3).pixels
    pixels[1, 0, 0] = np.nan
    assert np.isnan(posterior(pixels)).all(axis=1).tolist() == [False, True, False]


def test_no_image_has_no_posterior():
    assert posterior(np.zeros((0, 7, 7))).shape == (0, 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: simulate(rng, 0), "num_images must be at least 1, got 0"),
        (lambda rng: simulate(rng, 1, size=4), "size must be at least 5, got 4"),
        (lambda rng: simulate(rng, 1, noise_std=0.0), "noise_std must be above 0, got 0.0"),
        (lambda rng: posterior(np.zeros((2, 7))), r"pixels must have shape \[n, size, size\]"),
        (lambda rng: posterior(np.zeros((2, 7, 7)), -1.0), "noise_std must be above 0, got -1.0"),
    ],
)
def test_bad_input_is_named(call, message, rng):
    with pytest.raises(ValueError, match=message):
        call(rng)

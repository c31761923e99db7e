"""Textures against plain loops, known colours, and what does not depend on other pictures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vfejax.inference.allocation import textures

compiled = jax.jit(textures.patch_textures, static_argnums=1)
to_lab = jax.jit(textures.srgb_to_lab)

# CIELAB of sRGB corners for D65, as tables of colour science give them, to four digits.
CORNERS = {
    (1, 0, 0): (53.24, 80.09, 67.20),
    (0, 1, 0): (87.73, -86.18, 83.18),
    (0, 0, 1): (32.30, 79.19, -107.86),
    (1, 1, 0): (97.14, -21.55, 94.48),
    (1, 1, 1): (100.0, 0.0, 0.0),
    (0, 0, 0): (0.0, 0.0, 0.0),
}


def test_corners_of_srgb_are_the_known_colours(dtype):
    grey = 3 * [119 / 255]
    found = to_lab(np.array([*CORNERS, grey], dtype))
    assert found.dtype == dtype
    np.testing.assert_allclose(found, [*CORNERS.values(), (50.03, 0, 0)], rtol=0, atol=0.01)


def plain(picture, patch):
    """The same patch by patch in float64."""
    high, wide = -(-picture.shape[0] // patch), -(-picture.shape[1] // patch)
    extra = (high * patch - picture.shape[0], wide * patch - picture.shape[1])
    picture = np.pad(picture, [(0, extra[0]), (0, extra[1]), (0, 0)], mode="edge")
    lab = np.asarray(to_lab(picture))
    across, down = (ndimage.sobel(lab[..., 0], axis, mode="nearest") / 8 for axis in (1, 0))
    pixels = [*np.moveaxis(picture, -1, 0), *np.moveaxis(lab, -1, 0), across, down]
    pixels.append(np.hypot(across, down))
    found = np.zeros((high, wide, 13))
    for i, j in np.ndindex(high, wide):
        own = np.s_[i * patch : (i + 1) * patch, j * patch : (j + 1) * patch]
        row, column = (i + 0.5) / high, (j + 0.5) / wide
        away = np.hypot(row - 0.5, column - 0.5) / np.hypot(0.5, 0.5)
        counts, _ = np.histogram(lab[..., 0][own], bins=16, range=(0, 100))
        parts = counts[counts > 0] / counts.sum()
        entropy = -np.sum(parts * np.log(parts))
        found[i, j] = [*(x[own].mean() for x in pixels), row, column, away, entropy]
    return found


@pytest.mark.parametrize("size", [(12, 20), (11, 18), (3, 2), (1, 1)])
def test_textures_are_those_of_plain_loops(rng, size):
    picture = rng.random((*size, 3))
    found = np.asarray(compiled(picture, 4))
    np.testing.assert_allclose(found, plain(picture, 4), rtol=1e-12, atol=1e-12)
    single = np.asarray(compiled(picture.astype(np.float32), 4))
    assert single.dtype == np.float32
    # Up to 12 of 16 channels are lightness and colour of size 100; a pixel at the edge of a bin may
    # fall into the next one.
    np.testing.assert_allclose(single[..., :12], found[..., :12], rtol=0, atol=2e-4)


def test_a_picture_in_a_batch_is_as_it_is_alone(rng):
    pictures = rng.random((3, 12, 20, 3)).astype(np.float32)
    every = jax.jit(jax.vmap(lambda x: textures.patch_textures(x, 4)))
    before = np.asarray(every(pictures))
    changed = pictures.copy()
    changed[0] *= 0.1
    changed[2] = np.nan
    np.testing.assert_array_equal(before[1], np.asarray(every(changed))[1])


def test_a_pixel_that_is_not_a_number_is_known_in_its_patch_alone():
    picture = np.full((12, 12, 3), 0.5)
    picture[5, 5, 1] = np.nan
    found = np.isnan(compiled(picture, 4))
    assert found[1, 1, [1, 3, 4, 5, 6, 7, 8, 12]].all()
    assert not found[1, 1, [0, 2, 9, 10, 11]].any()
    assert found.any(axis=-1).sum() == 1


def test_gradients_are_finite_where_colours_are_black_or_even():
    slopes = jax.jit(jax.grad(lambda x: textures.patch_textures(x, 4).sum()))
    for value in (0.0, 1.0):
        assert np.all(np.isfinite(slopes(np.full((8, 8, 3), value))))


def test_integers_and_shapes_are_refused():
    with pytest.raises(ValueError, match="from 0 to 1, got uint8; divide by the largest integer"):
        textures.patch_textures(jnp.zeros((4, 4, 3), jnp.uint8), 2)
    with pytest.raises(ValueError, match=r"\[h, w, 3\], got \[4, 4\]"):
        textures.patch_textures(jnp.zeros((4, 4)), 2)
    with pytest.raises(ValueError, match="at least 1, got 4, 4 and 0"):
        textures.patch_textures(jnp.zeros((4, 4, 3)), 0)

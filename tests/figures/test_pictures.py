"""Figures on pictures carry the numbers of the patches, where the patches are."""

import io

import numpy as np
import pytest

from vfejax.figures import pictures


def drawn(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    return buffer.getvalue().startswith(b"\x89PNG")


def test_tokens_lie_on_their_patches(rng):
    picture, tokens = rng.random((10, 17, 3)), rng.integers(64, 400, (2, 3))
    figure = pictures.token_map(picture, tokens, 8)
    left, right, bar = figure.axes
    np.testing.assert_array_equal(left.images[0].get_array(), picture)
    _, heat = right.images
    np.testing.assert_array_equal(heat.get_array(), tokens)
    # The last patches reach over the picture, which is drawn to its own edge.
    assert list(heat.get_extent()) == [0, 24, 16, 0]
    assert (right.get_xlim(), right.get_ylim()) == ((0, 17), (10, 0))
    assert [text.get_text() for text in right.texts] == [str(n) for n in tokens.ravel()]
    assert (right.texts[1].get_position(), bar.get_ylabel()) == ((12.0, 4.0), "tokens")
    assert drawn(figure)


def test_a_large_picture_is_drawn_smaller_and_without_numbers():
    figure = pictures.token_map(np.zeros((20, 3000, 3)), np.full((1, 108), 64), 28)
    assert figure.axes[0].images[0].get_array().shape[1] <= 1200
    assert not figure.axes[1].texts
    assert drawn(figure)


def test_maps_of_patches_have_their_own_colours(rng):
    panels = {"entropy": rng.random((3, 4)), "information": 100 * rng.random((3, 4))}
    figure = pictures.patch_maps(panels)
    for ax, bar, (name, x) in zip(figure.axes[:2], figure.axes[2:], panels.items(), strict=True):
        np.testing.assert_array_equal(ax.images[0].get_array(), x)
        assert ax.images[0].norm.vmax == x.max()
        assert bar.get_xlabel() == name
    assert drawn(figure)


def test_shapes_are_refused():
    with pytest.raises(ValueError, match=r"tokens must have shape \[2, 2\], not empty, got \(1, 2"):
        pictures.token_map(np.zeros((10, 10, 3)), np.zeros((1, 2)), 8)
    with pytest.raises(ValueError, match="panels must hold at least one array"):
        pictures.patch_maps({})
    with pytest.raises(ValueError, match=r"panels\['b'\] must have shape \[1, 2\]"):
        pictures.patch_maps({"a": np.zeros((1, 2)), "b": np.zeros((2, 2))})

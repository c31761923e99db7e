"""The scene is what its docstring says: a red sign, grey noise, a smooth sky."""

import numpy as np
import pytest

from vfejax.problems.important_region import draw_scene


def test_the_sign_is_red_and_the_rest_is_not(rng):
    for _ in range(5):
        picture, important = draw_scene(rng, 60, 80)
        assert picture.dtype == np.float32
        assert picture.min() >= 0
        assert picture.max() <= 1
        redness = picture[..., 0] - picture[..., 1]
        assert redness[important].min() > 0.25
        assert redness[~important].max() < 0.05
        # A disc of radius 0.12 to 0.17 of the height, wholly in the picture.
        assert 0.030 < important.mean() < 0.072


def test_small_pictures_are_refused(rng):
    with pytest.raises(ValueError, match="at least 8, got 7 and 20"):
        draw_scene(rng, 7, 20)

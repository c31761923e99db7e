"""The shared look: labels that do not collide, plain ticks, and shape checks that name the
argument.
"""

from itertools import pairwise

import chex
import numpy as np
import pytest
from matplotlib.text import Text

from vfejax.figures import style


@pytest.mark.parametrize(
    "levels",
    [[1.0, 1.0, 1.0], [0.0, 0.01, 0.02], [0.98, 0.99, 1.0, 5.0], [3.0], [np.nan, 1.0, 2.0]],
)
def test_labels_on_the_right_neither_overlap_nor_leave_the_figure(levels):
    figure = style.new_figure(4.0)
    ax = figure.add_subplot()
    for level in levels:
        ax.plot([0, 1], [level, level])
    style.label_right(ax, [(f"line {i}", y, "black") for i, y in enumerate(levels)])
    figure.draw_without_rendering()
    # the extent of the text alone, without its leader line
    boxes = sorted((Text.get_window_extent(text) for text in ax.texts), key=lambda box: box.y0)
    assert [text.get_text() for text in ax.texts] == [f"line {i}" for i in range(len(levels))]
    assert all(below.y1 <= above.y0 for below, above in pairwise(boxes))
    width, height = figure.canvas.get_width_height()
    assert all(
        box.x0 >= 0 and box.x1 <= width and box.y0 >= 0 and box.y1 <= height for box in boxes
    )


def test_labels_that_do_not_collide_stand_beside_their_lines():
    figure = style.new_figure(4.0)
    ax = figure.add_subplot(ylim=(-1, 1))
    style.label_right(ax, [("low", -0.8, "black"), ("high", 0.6, "black")])
    # axes fraction of y in [-1, 1]; rounding of two affine maps
    np.testing.assert_allclose([text.xyann[1] for text in ax.texts], [0.1, 0.8], rtol=1e-12)


@pytest.mark.parametrize(
    ("limits", "expected"),
    [((0.3, 30.0), {"0.5", "1", "2", "5", "10", "20"}), ((1e-4, 1e4), {"0.01", "1", "100"})],
)
def test_logarithmic_ticks_are_plain_numbers(limits, expected):
    figure = style.new_figure(3.0)
    ax = figure.add_subplot(xlim=limits)
    style.log_axis(ax.xaxis)
    figure.draw_without_rendering()
    shown = {tick.label1.get_text() for tick in ax.xaxis.get_major_ticks()}
    assert ax.get_xscale() == "log"
    assert expected <= shown
    assert all(label.replace(".", "").replace("e-", "").isdigit() for label in shown if label)


def test_arrays_of_every_kind_become_float64():
    for values in ([[1, 2]], np.ones((1, 2), np.float32)):
        array = style.as_array("x", values, 1, "k")
        chex.assert_type(array, np.float64)
        chex.assert_shape(array, (1, 2))


@pytest.mark.parametrize(
    ("shape", "want"),
    [
        ((2,), ("n", "n")),
        ((2, 3), ("n", "n")),
        ((2, 3), (2, 4)),
        ((0,), ("n",)),
        ((), ("n",)),
        ((2, 3, 4), ("n", "k", "n")),
    ],
)
def test_a_wrong_shape_is_refused_by_name(shape, want):
    with pytest.raises(ValueError, match=r"thing must have shape \[.*\], not empty, got \("):
        style.as_array("thing", np.zeros(shape), *want)

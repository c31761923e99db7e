"""Figure of the information between scales: curves are sums, and shapes are checked."""

import numpy as np
import pytest

from vfejax.figures.flows import information_flow


def test_curves_are_sums_since_the_start_for_each_pair_and_direction():
    steps, down = np.arange(3), np.array([[0.0, 0.0], [1.0, 0.5], [2.0, -1.0]])
    figure = information_flow(steps, down, 2 * down)
    curves = [
        line.get_ydata().tolist() for line in figure.axes[0].lines if len(line.get_xdata()) > 2
    ]
    assert curves == [[0, 2, 6], [0, 1, 3], [0, 1, -1], [0, 0.5, -0.5]]


def test_a_single_row_is_drawn():
    assert information_flow([0], [[0.0]], [[0.0]]).axes


def test_shapes_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="up"):
        information_flow(np.arange(2), np.zeros((2, 1)), np.zeros((2, 2)))

"""The figure of latencies."""

import numpy as np
import pytest

from vfejax.figures.latencies import latency_histogram


def test_bins_past_the_deadline_have_their_own_colour_and_depths_their_counts():
    edges, counts = [1, 2, 4, 8, 16, 32], [5, 0, 1, 0, 2]
    depths = {3: 6, 2: 0, 0: 2}
    figure = latency_histogram(
        edges, counts, deadline=16, quantiles={"median": 1.5, "99.9 %": 28.0}, depths=depths
    )
    ax, side = figure.axes
    every, late = ax.patches
    np.testing.assert_array_equal(every.get_data().values, counts)
    np.testing.assert_array_equal(late.get_data().values, [0, 0, 0, 0, 2])
    assert [text.get_text() for text in ax.texts] == [
        "deadline 16 ms",
        "median 1.5 ms",
        "99.9 % 28 ms",
    ]
    assert [bar.get_width() for bar in side.patches] == [6, 0, 2]
    with pytest.raises(ValueError, match="edges must have shape"):
        latency_histogram([1, 2], [1, 2], deadline=1, quantiles={}, depths=depths)

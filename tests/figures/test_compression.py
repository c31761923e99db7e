"""The figure of loss against bytes: every model is a point, with a line over its seeds."""

import numpy as np
import pytest

from vfejax.figures.compression import loss_against_bytes

GROUPS = {
    "rounded": {"4 bits": [120e3, 1.3], "3_bits": [[90e3, 1.4], [92e3, 1.5]]},
    "teacher": {"teacher": [3.2e6, 1.28]},
}


def test_points_stand_where_their_bytes_and_losses_are():
    (ax,) = loss_against_bytes(GROUPS, level=1.28).axes
    points = [line.get_xydata()[0] for line in ax.lines if line.get_marker() in ("o", "s")]
    np.testing.assert_allclose(points, [[120, 1.3], [91, 1.45], [3200, 1.28]])
    spans = [line.get_ydata() for line in ax.lines if len(line.get_xdata()) == 2][1]
    np.testing.assert_allclose(spans, [1.4, 1.5])
    assert [text.get_text() for text in ax.texts] == ["4 bits", "3 bits", "teacher"]
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["rounded", "teacher"]
    assert ax.get_xscale() == "log"
    low, high = ax.get_xlim()
    assert low < 91
    assert high > 3200


def test_names_of_points_that_are_close_do_not_cover_each_other():
    points = {f"a long name {i}": [1e5 + 100 * i, 1.3 + 1e-3 * i] for i in range(6)}
    figure = loss_against_bytes({"a": points | {"far": [1e6, 2.0]}})
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].texts]
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({}, "groups must hold at least one point"),
        ({"a": {"b": [1.0, 2.0, 3.0]}}, r"points\['b'\] must have shape"),
        ({"a": {"b": [0.0, 2.0]}}, "must have positive bytes"),
    ],
)
def test_what_is_no_point_is_refused(groups, message):
    with pytest.raises(ValueError, match=message):
        loss_against_bytes(groups)

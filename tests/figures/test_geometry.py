"""Figures of metrics, curvature and phases: what is drawn is what was given."""

import io

import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

from vfejax.figures import geometry, phases

TURN = 2 * np.pi


def render(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_a_ring_shows_the_root_of_its_metric():
    metric = np.array([1.0, 4.0, 9.0, 16.0]).reshape(4, 1, 1)
    figure = geometry.base_metric(metric, kind="ring", lengths=[TURN])
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), [1, 2, 3, 4, 1])
    render(figure)


def test_a_torus_shows_its_volume_and_circles_that_are_long_where_little_changes():
    metric = np.tile(np.diag([4.0, 1.0]), (6, 5, 1, 1))
    metric[2, 1] = 0.0  # singular: no circle
    figure = geometry.base_metric(metric, kind="torus", lengths=[6.0, 5.0])
    image = np.ma.filled(figure.axes[0].images[0].get_array(), np.nan)
    expected = np.full((5, 6), 2.0)
    expected[1, 2] = 0.0
    np.testing.assert_allclose(image, expected)
    circles = [c for c in figure.axes[0].collections if isinstance(c, EllipseCollection)]
    assert len(circles[0].get_offsets()) == 29
    np.testing.assert_allclose(circles[0].get_widths(), 2 * circles[0].get_heights())
    np.testing.assert_allclose(np.abs(circles[0].get_angles()), 90.0)
    render(figure)


def test_a_metric_that_is_nan_at_a_point_leaves_a_gap_there():
    metric = np.tile(np.eye(2), (4, 3, 1, 1))
    metric[1, 2] = np.nan
    figure = geometry.base_metric(metric, kind="torus", lengths=[4.0, 3.0])
    gaps = np.ma.getmaskarray(figure.axes[0].images[0].get_array())
    np.testing.assert_array_equal(gaps, np.isnan(metric[..., 0, 0]).T)
    render(figure)


def test_curvature_is_an_image():
    density = np.arange(12.0).reshape(4, 3)
    figure = geometry.curvature_map(density, kind="plane", lengths=[1.0, 1.0])
    np.testing.assert_array_equal(figure.axes[0].images[0].get_array(), density.T)
    with pytest.raises(ValueError, match="density must have shape"):
        geometry.curvature_map(np.ones(4), kind="ring", lengths=[1.0])
    with pytest.raises(ValueError, match="metric must have shape"):
        geometry.base_metric(np.ones((4, 3)), kind="plane", lengths=[1.0, 1.0])


def test_phases_are_curves_over_the_temperature_in_one_colour_per_sweep():
    panels = {"entropy": {"up": [1, 2, 3], "down": [3, 2, 1]}, "clusters": {"down": [1, 1, 1]}}
    reference = {"clusters": [(1.0, 5.0), (2.0, 6.0)]}
    figure = phases.phase_diagram([4.0, 1.0, 2.0], panels, reference=reference)
    first, second = figure.axes
    np.testing.assert_array_equal(first.lines[0].get_xdata(), [1, 2, 4])
    np.testing.assert_array_equal(first.lines[0].get_ydata(), [2, 3, 1])
    np.testing.assert_array_equal(second.lines[0].get_ydata(), [5, 6])
    assert first.lines[1].get_color() == second.lines[1].get_color()
    assert first.lines[0].get_color() != first.lines[1].get_color()
    render(figure)
    with pytest.raises(ValueError, match="temperature must be positive"):
        phases.phase_diagram([0.0], {"a": {"b": [1.0]}})
    with pytest.raises(ValueError, match="at least one panel"):
        phases.phase_diagram([1.0], {})

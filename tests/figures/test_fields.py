"""Figures of fields: curves and images stand at the grid's coordinates, and what has no value is
grey.
"""

import io

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from vfejax.figures import fields as field_figures
from vfejax.figures import style
from vfejax.geometry import grid

TURN = 2 * np.pi


def render(figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")


def blank(*shape) -> np.ndarray:
    return np.full(shape, np.nan)


@pytest.mark.parametrize(
    ("figure", "num_axes"),
    [
        (
            lambda: field_figures.field_maps(
                {"a": np.ones(5), "b": blank(5)}, kind="ring", lengths=[TURN]
            ),
            2,
        ),
        (lambda: field_figures.field_maps({"a": [1.0]}, kind="ring", lengths=[1.0]), 1),
        (lambda: field_figures.field_maps({"a": [1.0]}, kind="line", lengths=[1.0]), 1),
        (
            lambda: field_figures.field_maps(
                {"a": np.ones((3, 4))}, kind="torus", lengths=[TURN, TURN]
            ),
            1,
        ),
        pytest.param(
            lambda: field_figures.field_maps(
                {n: blank(3, 4) for n in "abcde"}, kind="plane", lengths=[1.0, 2.0]
            ),
            5,
            marks=pytest.mark.slow,
        ),
        (
            lambda: field_figures.field_maps(
                {"a": np.ones((1, 1))}, kind="plane", lengths=[1.0, 9.0]
            ),
            1,
        ),
        (lambda: field_figures.supports(np.ones((3, 8))), 2),
        (lambda: field_figures.supports(np.ones((3, 1)), kind="ring", lengths=[1.0]), 2),
        (lambda: field_figures.supports(np.ones((3, 4, 5))), 2),
        (lambda: field_figures.supports(np.zeros((3, 1, 5))), 2),
    ],
)
def test_every_figure_renders_with_its_axes(figure, num_axes):
    result = figure()
    assert type(result) is Figure
    assert len(result.axes) == num_axes
    render(result)


def test_a_field_on_a_ring_is_a_closed_curve_over_its_coordinate(rng, dtype):
    values = jnp.asarray(rng.standard_normal(12), dtype)
    ax = field_figures.field_maps(
        {"belief_entropy (nats)": values}, kind="ring", lengths=[TURN]
    ).axes[0]
    x, y = ax.lines[0].get_data()
    expected = np.asarray(values, np.float64)
    np.testing.assert_array_equal(y, [*expected, expected[0]])
    np.testing.assert_allclose(x, [*np.asarray(grid.ring(12).points)[:, 0], TURN], rtol=1e-14)
    assert ax.get_ylabel() == "belief entropy (nats)"
    assert ax.get_xlabel() == "ring coordinate (rad)"
    assert ax.get_xticklabels()[1].get_text() == "π/2"


def test_a_field_on_a_line_keeps_both_ends_and_the_users_unit(rng):
    values = rng.standard_normal(6)
    first, second = field_figures.field_maps(
        {"a": values, "b": values}, kind="line", lengths=[2.5]
    ).axes
    x, y = first.lines[0].get_data()
    np.testing.assert_array_equal(y, values)
    np.testing.assert_allclose(x, np.asarray(grid.line(6, 2.5).points)[:, 0], rtol=1e-14)
    assert second.get_xlabel() == "line coordinate"
    assert first.get_xlim() == (0.0, 2.5)


@pytest.mark.parametrize("kind", ["ring", "line"])
def test_points_without_a_value_are_grey_and_no_others(kind):
    num, length = 10, 5.0
    values = np.ones(num)
    values[[0, 3, 4, 8]] = np.nan
    values[6] = np.inf
    ax = field_figures.field_maps({"a": values}, kind=kind, lengths=[length]).axes[0]
    spans = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert all(same_color(p.get_facecolor(), style.VOID) for p in spans)
    x = ax.lines[0].get_xdata()[:num]
    grey = np.array([any(p.get_x() <= at <= p.get_x() + p.get_width() for p in spans) for at in x])
    np.testing.assert_array_equal(grey, ~np.isfinite(values))
    spacing = x[1] - x[0]
    # every grey cell lies whole on the axis, except the half that an open end cuts off (on a ring
    # it is at the other end)
    expected = 5 * spacing - (0.5 * spacing if kind == "line" else 0.0)
    assert sum(p.get_width() for p in spans) == pytest.approx(expected)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_supports_that_are_not_finite_leave_gaps(value):
    chi = np.full((2, 5), 0.5)
    chi[1, 2] = value
    above, below = field_figures.supports(chi).axes
    assert above.get_ylim() == pytest.approx((-0.03, 1.05))
    assert below.get_ylim() == pytest.approx((0.0, 1.08))
    np.testing.assert_array_equal(above.lines[1].get_ydata(), chi[1])


@pytest.mark.parametrize(("kind", "make"), [("torus", grid.torus), ("plane", grid.plane)])
def test_a_field_over_two_axes_is_an_image_at_its_coordinates(kind, make):
    shape, lengths = (5, 4), (2.0, 3.0)
    points = np.asarray(make(shape, lengths).points)
    field = points[..., 0] + 10 * points[..., 1]
    field[1, 2] = np.nan
    ax = field_figures.field_maps({"landmark_error (m)": field}, kind=kind, lengths=lengths).axes[0]
    image = ax.images[0]
    shown = image.get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), np.isnan(field.T))
    np.testing.assert_array_equal(shown.compressed(), field.T[~np.isnan(field.T)])
    assert same_color(image.cmap.get_bad(), style.VOID)
    left, right, bottom, top = image.get_extent()
    # pixel centres are the grid points, the first axis to the right and the second up
    np.testing.assert_allclose(
        left + (np.arange(5) + 0.5) * (right - left) / 5, points[:, 0, 0], rtol=0, atol=1e-14
    )
    np.testing.assert_allclose(
        bottom + (np.arange(4) + 0.5) * (top - bottom) / 4, points[0, :, 1], rtol=0, atol=1e-14
    )
    assert image.origin == "lower"
    assert ax.get_title(loc="left") == "landmark error (m)"
    assert len(ax.child_axes) == 1  # the colour bar


def test_colours_diverge_about_zero_only_for_both_signs():
    fields = {"both": [[-1.0, 3.0]], "positive": [[1.0, 3.0]], "constant": [[2.0, 2.0]]}
    both, positive, constant = field_figures.field_maps(
        fields, kind="plane", lengths=[1.0, 1.0]
    ).axes
    assert both.images[0].get_clim() == (-3.0, 3.0)
    assert positive.images[0].get_clim() == (1.0, 3.0)
    assert both.images[0].cmap.name != positive.images[0].cmap.name
    low, high = constant.images[0].get_clim()
    assert low <= 2.0 <= high
    assert low < high


def test_supports_over_one_axis_are_curves_above_their_coverage():
    points = grid.ring(32)
    centres = np.array([[0.5], [2.0], [5.0]])
    chi = jax.jit(lambda at: grid.smooth_support(grid.distance(points, at), 1.5))(centres)
    above, below = field_figures.supports(chi, kind="ring", lengths=[TURN]).axes
    chi = np.asarray(chi)
    for line, curve in zip(above.lines, chi, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), [*curve, curve[0]])
    total = chi.sum(axis=0)
    np.testing.assert_allclose(below.lines[0].get_ydata(), [*total, total[0]], rtol=1e-15)
    assert below.get_xlabel() == "ring coordinate (rad)"
    assert f"at least {total.min():.3g}, mean {total.mean():.3g}" in below.get_title(loc="left")


def test_supports_over_two_axes_are_outlined_at_one_half():
    lengths = (2.0, 3.0)
    points = grid.torus((40, 60), lengths)
    # the second crosses the seam
    centres = np.array([[1.0, 1.5], [0.1, 2.9]])
    radius = 0.6
    chi = jax.jit(lambda at: grid.smooth_support(grid.distance(points, at), radius))(centres)
    outlines, image = field_figures.supports(chi, kind="torus", lengths=lengths).axes
    # exp(1 - 1/(1 - u)) = 1/2 at u = 1 - 1/(1 + ln 2)
    half = radius * np.sqrt(1 - 1 / (1 + np.log(2)))
    assert len(outlines.collections) == 2
    for collection, centre in zip(outlines.collections, centres, strict=True):
        away = np.concatenate([path.vertices for path in collection.get_paths()]) - centre
        away -= np.round(away / lengths) * lengths
        # linear interpolation between points 0.05 apart
        np.testing.assert_allclose(np.linalg.norm(away, axis=1), half, rtol=0, atol=0.005)
        assert (
            np.ptp(np.arctan2(away[:, 1], away[:, 0])) > 6.0
        )  # all the way round, across the seam too
    coverage = np.asarray(chi).sum(axis=0).T
    shown = image.images[0].get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), coverage == 0)
    np.testing.assert_allclose(shown.compressed(), coverage[coverage > 0], rtol=1e-15)


def test_supports_without_outline_are_counted_and_axes_default_to_grid_points():
    chi = np.ones((3, 4, 5))
    chi[2, :, 3:] = 0.0
    outlines, image = field_figures.supports(chi).axes
    assert len(outlines.collections) == 1
    assert "2 everywhere" in outlines.get_title(loc="left")
    assert outlines.get_xlabel() == "grid point, axis 1"
    assert image.images[0].get_extent() == [-0.5, 3.5, -0.5, 4.5]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: field_figures.field_maps({}, kind="ring", lengths=[1.0]), "values must hold"),
        (
            lambda: field_figures.field_maps({"a": np.ones(3)}, kind="sphere", lengths=[1.0]),
            "kind must be one of ring",
        ),
        (
            lambda: field_figures.field_maps({"a": np.ones(3)}, kind="torus", lengths=[1.0, 1.0]),
            "torus needs lengths and a grid of dimension 2",
        ),
        (
            lambda: field_figures.field_maps({"a": np.ones(3)}, kind="ring", lengths=[1.0, 1.0]),
            "ring needs lengths and a grid of dimension 1",
        ),
        (
            lambda: field_figures.field_maps({"a": np.ones(3)}, kind="ring", lengths=[0.0]),
            "lengths must be positive",
        ),
        (
            lambda: field_figures.field_maps(
                {"a": np.ones(3), "b": np.ones(4)}, kind="ring", lengths=[1.0]
            ),
            r"values\['b'\] must have shape \[3\]",
        ),
        (
            lambda: field_figures.field_maps({"a": np.ones(0)}, kind="ring", lengths=[1.0]),
            r"values\['a'\] must have shape",
        ),
        (lambda: field_figures.supports(np.ones(3)), "chi must have shape"),
        (lambda: field_figures.supports(np.ones((2, 2, 2, 2))), "chi must have shape"),
        (lambda: field_figures.supports(np.ones((0, 3))), "chi must have shape"),
        (
            lambda: field_figures.supports(np.ones((2, 3)), kind="ring"),
            "kind and lengths must be given together",
        ),
        (
            lambda: field_figures.supports(np.ones((2, 3)), kind="plane", lengths=[1.0, 1.0]),
            "plane needs lengths and a grid of dimension 2",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

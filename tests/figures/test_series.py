"""Figures of series: what is drawn where, and what is refused."""

import numpy as np
import pytest

from vfejax.figures import series


def _bands(rng, rows=12, num_rows=10, **options):
    mean = rng.normal(size=(rows, 2))
    observed = {"a": rng.normal(size=num_rows), "b": np.full(num_rows, np.nan)}
    ends = mean - 1, mean + 1
    return series.series_bands(
        np.arange(rows), observed, mean, ends, ends, interval=0.9, num_rows=num_rows, **options
    )


def test_bands_have_one_axes_per_series_and_a_line_where_data_end(rng):
    figure = _bands(rng)
    assert [ax.get_ylabel() for ax in figure.axes] == ["a", "b"]
    lines = [line.get_label() for line in figure.axes[0].lines]
    assert {"observed", "estimate"} <= set(lines)
    assert len(_bands(rng, 10).axes[0].lines) == len(lines) - 1


def test_vague_first_intervals_do_not_set_the_limits(rng):
    mean = np.zeros((5, 1))
    far = mean + 1e6
    figure = series.series_bands(
        np.arange(5), {"a": np.arange(5.0)}, mean, None, (-far, far), interval=0.9, num_rows=5
    )
    assert figure.axes[0].get_ylim()[1] < 10


def test_residuals_have_three_axes_per_series(rng):
    values = {"a": rng.normal(size=20), "b": np.full(20, np.nan)}
    lags = {name: np.full(5, np.nan) for name in values}
    figure = series.residual_checks(np.arange(20) + 19000.0, values, lags, dates=True)
    assert len(figure.axes) == 6
    figure.canvas.draw()


def test_a_track_shows_truth_fixes_estimate_and_ellipses(rng):
    path = np.cumsum(rng.normal(size=(10, 2)), axis=0)
    seen = path + rng.normal(size=(10, 2))
    seen[5] = np.nan
    covs = np.tile(np.eye(2), (10, 1, 1))
    figure = series.track(seen, path, path, covs, interval=0.95, every=1)
    labels = figure.axes[0].get_legend_handles_labels()[1]
    assert {"truth", "fixes", "estimate", "start"} <= set(labels)
    # The radius of 95 per cent in the plane.
    outline = figure.axes[0].collections[0].get_paths()[0].vertices
    distance = np.linalg.norm(outline - path[0], axis=1)
    np.testing.assert_allclose(distance, 2.4477, rtol=1e-4)


def test_states_and_evidence_are_drawn(rng):
    chances = rng.dirichlet(np.ones(3), 8)
    figure = series.state_occupancy(np.arange(8), chances, np.argmax(chances, axis=1))
    assert len(figure.axes) == 2
    assert len(series.evidence([0, 5], [-3.0, -2.0]).axes) == 1


@pytest.mark.parametrize(
    ("values", "drawn"),
    [
        ([-np.inf, -3.0, -2.0], [np.nan, 1.0, np.nan]),
        ([-3.0, np.nan, -2.0], [1.0, np.nan, np.nan]),
        ([-3.0, -2.0, -np.inf], [np.nan] * 3),
    ],
)
def test_evidence_that_is_not_finite_leaves_gaps(values, drawn):
    line = series.evidence([0, 1, 2], values).axes[0].lines[0]
    np.testing.assert_array_equal(line.get_ydata(), drawn)


def test_shapes_that_do_not_fit_are_named(rng):
    with pytest.raises(ValueError, match="path must have shape"):
        series.state_occupancy(np.arange(8), np.ones((8, 2)), np.arange(7))
    with pytest.raises(ValueError, match="mean must have shape"):
        series.track(np.ones((3, 2)), np.ones((3, 2)), np.ones((2, 2)), np.ones(1), interval=0.9)

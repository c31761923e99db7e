"""Figures of spectra: every eigenvalue is drawn where it is, and pale where the data deny it."""

import io

import numpy as np
import pytest

from vfejax.figures import spectra


def test_eigenvalues_are_drawn_where_they_are_and_fade_with_their_residual():
    values, axis = [0.9, 0.3 + 0.4j, 0.3 - 0.4j], np.linspace(-1.0, 1.0, 5)
    least = np.hypot(*np.meshgrid(axis, axis))
    figure = spectra.spectrum(
        values, [0.0, 0.5, 2.0], true=[0.9], shade=(axis, axis, least), title="three"
    )
    dots, cross = figure.axes[0].collections[-2:]
    np.testing.assert_allclose(dots.get_offsets(), [[0.9, 0.0], [0.3, 0.4], [0.3, -0.4]])
    assert np.all(np.diff(dots.get_sizes()) < 0)
    assert np.all(np.diff(dots.get_alpha()) < 0)
    np.testing.assert_allclose(cross.get_offsets(), [[0.9, 0.0]])
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")


@pytest.mark.parametrize("residuals", [[0.1, np.nan], [np.inf, np.nan]])
def test_what_is_not_finite_is_not_drawn(residuals):
    figure = spectra.spectrum([0.9, 0.3j], residuals)
    drawn = np.isfinite(np.ma.filled(figure.axes[0].collections[-1].get_offsets(), np.nan))
    np.testing.assert_array_equal(drawn.all(axis=1), np.isfinite(residuals))
    figure.savefig(io.BytesIO(), dpi=40)


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match="values must have shape"):
        spectra.spectrum([0.9], [0.0, 0.1])
    with pytest.raises(ValueError, match=r"shade\[2\] must have shape"):
        spectra.spectrum([0.9], [0.0], shade=([0.0, 1.0], [0.0], np.ones((2, 2))))

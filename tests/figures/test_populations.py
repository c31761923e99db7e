"""Figures of a population's state: the matrix, the ellipses and the points on the sphere are those
of the data.
"""

import io
import re

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from vfejax.figures import populations as population_figures
from vfejax.figures import style


def render(figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")


def turn(degrees: float, axis: int = 2) -> np.ndarray:
    """Rotation about a coordinate axis."""
    c, s = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    i, j = [a for a in range(3) if a != axis]
    matrix = np.eye(3)
    matrix[i, i], matrix[i, j], matrix[j, i], matrix[j, j] = c, -s, s, c
    return matrix


def beliefs(rng, n: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    factor = rng.standard_normal((n, k, k))
    return rng.standard_normal((n, k)), factor @ np.swapaxes(factor, -1, -2) + 0.1 * np.eye(k)


EYE = np.eye(3)


@pytest.mark.parametrize(
    ("figure", "num_axes"),
    [
        (lambda: population_figures.attention_matrix([[0.0, 1.0], [1.0, 0.0]]), 2),
        (lambda: population_figures.attention_matrix(np.zeros((3, 3))), 2),
        (lambda: population_figures.attention_matrix(np.full((3, 3), np.nan)), 2),
        (lambda: population_figures.belief_ellipses([("one", np.zeros((1, 3)), 0 * EYE[None])]), 1),
        (
            lambda: population_figures.belief_ellipses(
                [("lost", np.full((1, 3), np.nan), EYE[None])], truth=[[0, 0]]
            ),
            1,
        ),
        (
            lambda: population_figures.belief_ellipses(
                [("a", np.zeros((2, 2)), [np.eye(2)] * 2)] * 4, block=2, unit=""
            ),
            4,
        ),
        (lambda: population_figures.frames([("one", EYE[None])]), 1),
        (
            lambda: population_figures.frames(
                [("lost", np.nan * EYE[None])] + [("one", EYE[None])] * 3
            ),
            4,
        ),
    ],
)
def test_every_figure_renders_with_its_axes(figure, num_axes):
    result = figure()
    assert type(result) is Figure
    assert len(result.axes) == num_axes
    render(result)


def test_attention_matrix_shows_weights_and_excludes_self(rng, dtype):
    n = 7
    weights = jnp.asarray(rng.dirichlet(np.ones(n), n), dtype)
    figure = population_figures.attention_matrix(weights)
    ax, bar = figure.axes
    image = ax.images[0]
    shown = image.get_array()
    np.testing.assert_array_equal(np.ma.getmaskarray(shown), np.eye(n, dtype=bool))
    off = ~np.eye(n, dtype=bool)
    np.testing.assert_array_equal(shown.data[off], np.asarray(weights, np.float64)[off])
    assert same_color(image.cmap.get_bad(), style.VOID)
    mark = next(line for line in bar.lines if line.get_color() == style.INK)
    np.testing.assert_allclose(mark.get_ydata(), 1 / (n - 1), rtol=1e-15)
    assert "1/6" in bar.texts[0].get_text()
    assert ("sender" in ax.get_xlabel(), "receiver" in ax.get_ylabel()) == (True, True)
    assert image.get_clim() == (0.0, shown.max())


@pytest.mark.parametrize(("spread", "heard"), [(5, 5), (2, 2), (1, 1)])
def test_attention_title_counts_effective_neighbours(spread, heard):
    n = 6
    weights = np.zeros((n, n))
    for i in range(n):
        weights[i, [(i + 1 + j) % n for j in range(spread)]] = 1 / spread
    weights[0] = 0.0  # an agent without neighbours does not count
    weights[1] = [0.5, 0.5, 0.0, np.nan, 0.0, 0.0]  # nor does one whose weights are not numbers
    weights[2, 2] = np.nan  # what stands on the diagonal is never looked at
    assert f"hears {heard} of 5" in population_figures.attention_matrix(weights).axes[0].get_title(
        loc="left"
    )


@pytest.mark.parametrize("axes", [(0, 1), (2, 0)])
def test_ellipses_are_those_of_the_eigen_decomposition(rng, axes):
    n, k = 5, 9
    means, covs = beliefs(rng, n, k)
    ax = population_figures.belief_ellipses([("before", means, covs)], axes=axes).axes[0]
    assert len(ax.collections) == 2 * k // 3
    for block in range(k // 3):
        pick = [3 * block + axis for axis in axes]
        centre, cov = means[:, pick], covs[:, pick][:, :, pick]
        for radius, collection in zip(
            (2.0, 1.0), ax.collections[2 * block : 2 * block + 2], strict=True
        ):
            outlines = np.stack([path.vertices[:-1] for path in collection.get_paths()])
            away = outlines - centre[:, None]
            square = np.einsum("nti,nij,ntj->nt", away, np.linalg.inv(cov), away)
            # rounding grows with the condition number of a 2 x 2 covariance, here below 1e5
            np.testing.assert_allclose(square, radius**2, rtol=1e-9)
            np.testing.assert_allclose(outlines.mean(axis=1), centre, rtol=0, atol=1e-12)
            variances = np.linalg.eigvalsh(cov)
            lengths = np.linalg.norm(away, axis=-1)
            np.testing.assert_allclose(
                lengths.max(axis=1), radius * np.sqrt(variances[:, 1]), rtol=1e-9
            )
            np.testing.assert_allclose(
                lengths.min(axis=1), radius * np.sqrt(variances[:, 0]), rtol=1e-9
            )
        np.testing.assert_array_equal(np.stack(ax.lines[block].get_data(), axis=-1), centre)
    assert ax.get_xlabel() == f"{'xyz'[axes[0]]} (m)"
    assert ax.get_ylabel() == f"{'xyz'[axes[1]]} (m)"


def test_blocks_have_their_own_colours_and_a_legend(rng):
    figure = population_figures.belief_ellipses(
        [("a", *beliefs(rng, 4, 9))], truth=np.zeros((3, 3))
    )
    ax = figure.axes[0]
    colours = [line.get_color() for line in ax.lines[:3]]
    assert len(set(colours)) == 3
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [
        f"landmark {i}" for i in (1, 2, 3)
    ] + ["truth"]
    assert [handle.get_color() for handle in figure.legends[0].legend_handles[:3]] == colours


@pytest.mark.parametrize(("columns", "axes"), [(3, (0, 1)), (3, (1, 2)), (2, (1, 2))])
def test_truth_is_drawn_as_crosses(rng, columns, axes):
    truth = rng.standard_normal((3, columns))
    panel = ("a", *beliefs(rng, 4, 9))
    ax = population_figures.belief_ellipses([panel], truth=truth, axes=axes).axes[0]
    crosses = ax.lines[-1]
    assert crosses.get_marker() == "x"
    expected = truth if columns == 2 else truth[:, axes]
    np.testing.assert_array_equal(np.stack(crosses.get_data(), axis=-1), expected)


def test_panels_share_square_limits_that_hold_every_mean(rng):
    before, after = beliefs(rng, 6, 6), beliefs(rng, 3, 6)
    first, second = population_figures.belief_ellipses(
        [("before", *before), ("after", 0.1 * after[0] + 4.0, after[1])]
    ).axes
    assert (first.get_xlim(), first.get_ylim()) == (second.get_xlim(), second.get_ylim())
    assert np.ptp(first.get_xlim()) == pytest.approx(np.ptp(first.get_ylim()))
    for ax in (first, second):
        for line in ax.lines[:2]:
            for values, (low, high) in zip(
                line.get_data(), (ax.get_xlim(), ax.get_ylim()), strict=True
            ):
                assert np.all((values > low) & (values < high))
    assert [ax.get_title(loc="left") for ax in (first, second)] == ["before", "after"]


def test_beliefs_that_are_not_finite_are_left_out(rng):
    means, covs = beliefs(rng, 5, 3)
    means[1, 0], covs[3, 2, 2] = np.nan, np.inf
    ax = population_figures.belief_ellipses([("a", means, covs)]).axes[0]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), means[[0, 2, 4], 0])
    assert len(ax.collections[0].get_paths()) == 3


def test_ellipses_grow_fainter_with_the_number_of_agents(rng):
    alphas = []
    for n in (4, 60, 500):
        ax = population_figures.belief_ellipses(
            [("a", np.zeros((n, 3)), np.tile(EYE, (n, 1, 1)))]
        ).axes[0]
        alphas.append(ax.collections[1].get_facecolor()[0, 3])
    assert alphas == sorted(alphas, reverse=True)
    assert len(set(alphas)) == 3


def points(ax, colour: str) -> tuple[np.ndarray, np.ndarray]:
    """Far and near points of one colour as drawn, ``[., 2]`` each."""
    far, near = [line for line in ax.lines if line.get_color() == colour]
    return np.stack(far.get_data(), axis=-1), np.stack(near.get_data(), axis=-1)


def test_frames_are_seen_from_the_diagonal(rng, dtype):
    rotations = np.stack(
        [turn(a, 0) @ turn(b, 1) @ turn(c, 2) for a, b, c in rng.uniform(-180, 180, (20, 3))]
    )
    ax = population_figures.frames([("before", jnp.asarray(rotations, dtype))]).axes[0]
    eye = np.ones(3) / np.sqrt(3)
    for axis, colour in enumerate(style.CURVES[:3]):
        image = rotations[:, :, axis]
        depth = image @ eye
        far, near = points(ax, colour)
        assert len(near) == np.sum(depth >= 0)
        assert len(far) == np.sum(depth < 0)
        # an orthographic view keeps what is not depth: |x|^2 = 1 - depth^2 (rounding of the input
        # dtype)
        atol = 20 * float(jnp.finfo(dtype).eps)
        np.testing.assert_allclose(
            np.sum(near**2, axis=1), 1 - depth[depth >= 0] ** 2, rtol=0, atol=atol
        )
        np.testing.assert_allclose(
            np.sum(far**2, axis=1), 1 - depth[depth < 0] ** 2, rtol=0, atol=atol
        )


def test_the_view_is_right_handed_with_z_upwards():
    view = population_figures.VIEW
    np.testing.assert_allclose(view @ view.T, np.eye(3), rtol=0, atol=1e-15)
    assert np.linalg.det(view) == pytest.approx(1.0)
    ax = population_figures.frames([("aligned", EYE[None])]).axes[0]
    x, y, z = (points(ax, colour)[1][0] for colour in style.CURVES[:3])
    assert z[0] == 0
    assert z[1] > 0
    assert x[0] < 0 < y[0]
    letters = {
        text.get_text(): np.array(text.get_position())
        for text in ax.texts
        if text.get_text() in "xyz"
    }
    for name, drawn in zip("xyz", (x, y, z), strict=True):
        assert letters[name] @ drawn > 0.99 * np.linalg.norm(letters[name]) * np.linalg.norm(drawn)


def spread(rotations) -> float:
    text = population_figures.frames([("a", rotations)]).axes[0].texts[-1].get_text()
    return float(re.fullmatch(r"median angle to the mean frame: ([\d.e-]+)°", text)[1])


def test_frames_state_their_spread_in_any_gauge():
    # symmetric about the identity, which is therefore the mean
    rotations = np.stack([turn(a, axis) for a in (-20, 20) for axis in range(3)])
    assert spread(rotations) == 20.0
    gauge = turn(70, 0) @ turn(31, 2)
    assert spread(gauge @ rotations) == 20.0
    assert spread(rotations @ gauge) == 20.0
    assert spread(EYE[None]) < 1e-6


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: population_figures.attention_matrix(np.zeros((2, 3))),
            r"weights must have shape \[n, n\]",
        ),
        (lambda: population_figures.attention_matrix(np.zeros((1, 1))), "n of at least 2"),
        (lambda: population_figures.belief_ellipses([]), "panels must hold"),
        (
            lambda: population_figures.belief_ellipses([("a", np.zeros(3), EYE)]),
            r"panels\[0\] means must have shape",
        ),
        (
            lambda: population_figures.belief_ellipses([("a", np.zeros((2, 3)), np.zeros((2, 3)))]),
            r"panels\[0\] covariances must have shape \[2, 3, 3\]",
        ),
        (
            lambda: population_figures.belief_ellipses(
                [("a", np.zeros((1, 4)), np.zeros((1, 4, 4)))]
            ),
            "block = 3, got k = 4",
        ),
        (
            lambda: population_figures.belief_ellipses(
                [("a", np.zeros((1, 3)), [EYE])], axes=(0, 0)
            ),
            "axes must be",
        ),
        (
            lambda: population_figures.belief_ellipses(
                [("a", np.zeros((1, 3)), [EYE])], axes=(0, 3)
            ),
            "axes must be",
        ),
        (
            lambda: population_figures.belief_ellipses(
                [("a", np.zeros((1, 3)), [EYE])], truth=np.zeros(3)
            ),
            "truth must",
        ),
        (
            lambda: population_figures.belief_ellipses(
                [("a", np.zeros((1, 3)), [EYE])], truth=np.zeros((2, 4))
            ),
            r"truth must have shape \[m, 3\] or \[m, 2\], got \(2, 4\)",
        ),
        (lambda: population_figures.frames([]), "panels must hold"),
        (
            lambda: population_figures.frames([("a", [EYE]), ("b", EYE)]),
            r"panels\[1\] rotations must have shape",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_nothing_is_cut_at_the_edge(rng):
    """Titles and labels of axes of a fixed aspect, which the layout measures before they shrink."""
    n, k = 8, 9
    panels = [("before", *beliefs(rng, n, k)), ("after", *beliefs(rng, n, k))]
    for figure in (
        population_figures.attention_matrix(rng.uniform(size=(n, n))),
        population_figures.belief_ellipses(panels, truth=rng.standard_normal((k, 3))),
    ):
        figure.draw_without_rendering()
        box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
        assert min(box.x0, box.y0) > 0
        assert box.x1 < width
        assert box.y1 < height

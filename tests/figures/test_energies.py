"""Figures of a run carry the data they are given, render without warnings (which are errors here),
and never touch pyplot.
"""

import io
import re
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from matplotlib.figure import Figure

from vfejax import figures
from vfejax.figures import energies as energy_figures

STEPS = np.arange(0, 50, 5)
TERMS = {
    "self_coupling": 5.0 - np.exp(-STEPS / 10),
    "belief_alignment": 3.0 * np.exp(-STEPS / 10),
    "observation": -4.0 + np.exp(-STEPS / 20),
}


def render(figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")


def lines(ax) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), float) for line in ax.lines]


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


@pytest.mark.parametrize(
    ("figure", "num_axes"),
    [
        (lambda: energy_figures.energy_terms(STEPS, TERMS), 1),
        (lambda: energy_figures.energy_terms([0], {"total": [1.0]}), 1),
        (lambda: energy_figures.energy_terms(STEPS, {"a": 0 * STEPS}), 1),
        (
            lambda: energy_figures.energy_terms(
                STEPS[:4], {"a": [1.0, np.nan, -1e30, np.inf], "b": [1.0, 2.0, 3.0, -np.inf]}
            ),
            1,
        ),
        (
            lambda: energy_figures.energy_drift(
                STEPS, -(np.sin(STEPS) ** 2), np.sin(STEPS) ** 2, 0 * STEPS
            ),
            2,
        ),
        (
            lambda: energy_figures.energy_drift(
                [0, 1], [np.nan, 1.0], [0.0, np.inf], [np.nan, np.inf]
            ),
            2,
        ),
        (
            lambda: energy_figures.convergence(
                STEPS, {"this run": np.exp(-STEPS)}, floors={"alone": 0.5, "best": 1e-3}
            ),
            1,
        ),
        (
            lambda: energy_figures.convergence(
                [0, 1], {"a": [np.nan, 0.0]}, floors={"b": np.nan, "c": 0.0}
            ),
            1,
        ),
        (lambda: energy_figures.rotation_errors({"alone": [3.0, 1.0, 2.0], "this run": [0.1]}), 1),
        (lambda: energy_figures.rotation_errors({"none": [0.0, 0.0], "lost": [np.nan, np.inf]}), 1),
        (
            lambda: energy_figures.error_bars(
                [("alone", 0.2, np.nan), ("this run", 0.02, 1.0), ("exact", 0.0, 0.0)]
            ),
            2,
        ),
    ],
)
def test_every_figure_renders_with_its_axes(figure, num_axes):
    result = figure()
    assert type(result) is Figure
    assert len(result.axes) == num_axes
    render(result)


def test_no_figure_names_pyplot():
    for path in Path(figures.__file__).parent.glob("*.py"):
        code = path.read_text()
        assert not re.search(r"^\s*(import|from)\b.*pyplot", code, re.MULTILINE), path.name


@pytest.mark.slow
def test_no_figure_imports_pyplot():
    program = """
import io, sys
import numpy as np
from vfejax.figures import fields as field_figures
from vfejax.figures import energies as energy_figures
from vfejax.figures import populations as population_figures
figures = [
    energy_figures.energy_terms([0, 1], {"a": [1, 2]}),
    population_figures.frames([("one", [np.eye(3)])]),
    field_figures.supports(np.ones((2, 3))),
]
for figure in figures:
    figure.savefig(io.BytesIO(), dpi=20)
print("matplotlib.pyplot" in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, timeout=100
    )
    assert done.stderr == ""
    assert done.stdout.strip() == "False"


def test_energy_terms_draw_each_term_and_their_sum(dtype):
    terms = {name: jnp.asarray(y, dtype) for name, y in TERMS.items()}
    ax = energy_figures.energy_terms(jnp.asarray(STEPS), terms).axes[0]
    drawn = lines(ax)
    for line, y in zip(drawn, terms.values(), strict=False):
        np.testing.assert_array_equal(line, np.asarray(y, np.float64))
    # the sum of three terms in another order: a few roundings
    np.testing.assert_allclose(
        drawn[-1], sum(np.asarray(y, np.float64) for y in terms.values()), rtol=1e-14
    )
    assert texts(ax) == ["self coupling", "belief alignment", "observation", "total"]
    assert "nats" in ax.get_ylabel()
    assert ax.get_xlabel() == "step"
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), STEPS)


def test_energy_terms_draw_a_given_total_and_leave_out_what_is_zero():
    total = np.full(len(STEPS), 7.0)
    ax = energy_figures.energy_terms(
        STEPS, {"total": total, "prior_alignment": 0 * STEPS, "observation": STEPS + 1.0}
    ).axes[0]
    assert texts(ax) == ["observation", "total"]
    np.testing.assert_array_equal(lines(ax)[1], total)


@pytest.mark.parametrize(
    ("terms", "scale"),
    [
        ({"a": np.linspace(5, 1, 10)}, "linear"),
        ({"a": np.linspace(5, -1, 10)}, "linear"),
        ({"a": np.geomspace(1e5, 1, 10)}, "log"),
        ({"a": np.geomspace(1e5, 1, 10), "b": np.linspace(1, -10, 10)}, "symlog"),
    ],
)
def test_energy_scale_follows_the_orders_of_magnitude(terms, scale):
    ax = energy_figures.energy_terms(STEPS, terms).axes[0]
    assert ax.get_yscale() == scale
    assert ("linear within" in ax.get_ylabel()) == (scale == "symlog")
    low, high = ax.get_ylim()
    assert all(low <= y.min() and y.max() <= high for y in terms.values())


def test_values_that_are_not_finite_leave_gaps():
    ax = energy_figures.energy_terms([0, 1, 2], {"a": [1.0, np.inf, 2.0]}).axes[0]
    for line in lines(ax):
        np.testing.assert_array_equal(line, [1.0, np.nan, 2.0])


def test_energy_drift_shows_exchange_and_relative_drift():
    kinetic = np.sin(STEPS / 7.0) ** 2
    total = -200.0 + 1e-3 * np.cos(STEPS)
    above, below = energy_figures.energy_drift(STEPS, total - kinetic, kinetic, total).axes
    start = total[0] - kinetic[0]
    for line, y in zip(
        lines(above), (total - kinetic - start, kinetic, total - start), strict=True
    ):
        np.testing.assert_array_equal(line, y)
    np.testing.assert_array_equal(lines(below)[0], (total - total[0]) / abs(total[0]))
    assert set(texts(above)) == {"potential", "kinetic", "total"}
    assert f"{start:.6g}" in above.get_ylabel()
    assert "nats" in above.get_ylabel()
    assert "|H_0|" in below.get_ylabel()


def test_energy_drift_is_absolute_and_says_so_when_the_energy_starts_at_zero():
    below = energy_figures.energy_drift([0, 1], [0.0, -1.0], [0.0, 1.5], [0.0, 0.5]).axes[1]
    np.testing.assert_array_equal(lines(below)[0], [0.0, 0.5])
    assert "nats" in below.get_ylabel()
    assert "|H_0|" not in below.get_ylabel()


def test_convergence_draws_curves_and_labelled_floors():
    error = np.geomspace(50, 0.9, len(STEPS))
    error[3] = 0.0
    floors = {"alone": 6.3, "best possible": 0.88}
    ax = energy_figures.convergence(
        STEPS, {"this_run": error}, floors=floors, ylabel="error (degrees)"
    ).axes[0]
    alone, best, curve = lines(ax)
    np.testing.assert_array_equal(curve, np.where(error > 0, error, np.nan))
    assert (set(alone), set(best)) == ({6.3}, {0.88})
    assert texts(ax) == ["alone 6.3", "best possible 0.88", "this run 0.9"]
    assert ax.get_yscale() == "log"
    assert ax.get_ylabel() == "error (degrees)"


def shares(line, at: np.ndarray) -> np.ndarray:
    """Value of a right-continuous step curve at each x."""
    return line.get_ydata()[np.searchsorted(line.get_xdata(), at, side="right") - 1]


def test_rotation_errors_are_empirical_distributions(rng):
    errors = {"alone": rng.lognormal(2.0, 0.5, 301), "this run": rng.lognormal(0.0, 0.5, 200)}
    ax = energy_figures.rotation_errors(errors).axes[0]
    at = np.geomspace(*ax.get_xlim(), 50)[1:-1]
    for line, x in zip(ax.lines[::2], errors.values(), strict=False):
        expected = [np.mean(x <= a) for a in at]
        np.testing.assert_allclose(shares(line, at), expected, rtol=1e-14)  # one division
    assert [text.get_text() for text in ax.get_legend().get_texts()] == [
        f"alone, median {np.median(errors['alone']):.3g}°",
        f"this run, median {np.sort(errors['this run'])[99]:.3g}°",
    ]
    assert "degrees" in ax.get_xlabel()
    assert ax.get_xscale() == "log"


def test_rotation_errors_that_are_not_finite_count_as_largest():
    ax = energy_figures.rotation_errors({"half lost": [2.0, np.nan, 1.0, np.inf]}).axes[0]
    assert ax.lines[0].get_ydata().max() == 0.5


def test_many_rotation_errors_are_thinned_without_moving_the_curve(rng):
    x = rng.lognormal(0.0, 1.0, 50_000)
    line = energy_figures.rotation_errors({"all": x}).axes[0].lines[0]
    assert len(line.get_xdata()) <= energy_figures.MAX_CURVE_POINTS + 2
    at = np.geomspace(0.2, 5, 20)
    expected = np.array([np.mean(x <= a) for a in at])
    # a thinned curve lags by at most one kept point
    np.testing.assert_allclose(
        shares(line, at), expected, rtol=0, atol=1.01 / (energy_figures.MAX_CURVE_POINTS - 1)
    )


def test_error_rows_are_dots_with_printed_values():
    rows = [("alone", 0.173, np.nan), ("this_run", 0.0241, 0.931), ("exact", 0.0, 0.902)]
    figure = energy_figures.error_bars(rows)
    left, right = figure.axes
    # the first line collection is the guide of each row; dots are lines of one point
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in left.lines[:2]] == [
        (0.173, 0),
        (0.0241, 1),
    ]
    assert left.lines[2].get_xdata()[0] == left.get_xlim()[0]
    assert [(line.get_xdata()[0], line.get_ydata()[0]) for line in right.lines] == [
        (0.931, 1),
        (0.902, 2),
    ]
    assert texts(left) == ["0.173", "0.0241", "0"]
    assert texts(right) == ["none", "0.931", "0.902"]
    assert [label.get_text() for label in left.get_yticklabels()] == ["alone", "this run", "exact"]
    assert "(m)" in left.get_xlabel()
    assert "degrees" in right.get_xlabel()
    assert left.get_ylim()[0] > left.get_ylim()[1]
    render(figure)
    for ax in (left, right):
        assert all(text.get_window_extent().x1 <= ax.get_window_extent().x1 for text in ax.texts)


def test_a_method_has_the_same_colour_in_every_comparison():
    names = ("an agent alone", "two agents", "this_run", "best possible")
    dots = energy_figures.error_bars([(name, 1.0, 1.0) for name in names]).axes[0].lines
    colours = {name: line.get_color() for name, line in zip(names, dots, strict=True)}
    assert len(set(colours.values())) == 4
    some = (names[2], "maximum likelihood", names[0])
    distributions = (
        energy_figures.rotation_errors({name: [1.0, 2.0] for name in some}).axes[0].lines[:6:2]
    )
    assert [line.get_color() for line in distributions] == [colours[names[i]] for i in (2, 3, 0)]
    drawn = (
        energy_figures.convergence([0], {names[2]: [1.0]}, floors={names[3]: 2.0, names[0]: 1.0})
        .axes[0]
        .lines
    )
    assert [line.get_color() for line in drawn] == [colours[names[i]] for i in (3, 0, 2)]


def test_a_floor_named_after_a_curve_has_its_colour():
    curves = {"landmarks (m)": [1.0], "rotations (rad)": [2.0]}
    floors = {f"best {name}": 0.5 for name in reversed(curves)}
    colours = [
        line.get_color()
        for line in energy_figures.convergence([0], curves, floors=floors).axes[0].lines
    ]
    assert colours[:2] == colours[:1:-1]
    assert colours[0] != colours[1]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: energy_figures.energy_terms([[0]], {"a": [1.0]}), "steps must have shape"),
        (lambda: energy_figures.energy_terms([], {"a": []}), "steps must have shape"),
        (lambda: energy_figures.energy_terms([0, 1], {}), "terms must hold"),
        (
            lambda: energy_figures.energy_terms([0, 1], {"a": [1.0]}),
            r"terms\['a'\] must have shape \[2\]",
        ),
        (
            lambda: energy_figures.energy_drift([0, 1], [1.0], [1.0, 2.0], [1.0, 2.0]),
            "potential must have",
        ),
        (
            lambda: energy_figures.energy_drift([0, 1], [1.0, 2.0], [1.0], [1.0, 2.0]),
            "kinetic must have",
        ),
        (
            lambda: energy_figures.energy_drift([0, 1], [1.0, 2.0], [1.0, 2.0], [[1.0, 2.0]]),
            "total must have",
        ),
        (lambda: energy_figures.convergence([0, 1], {}, floors={}), "curves must hold"),
        (
            lambda: energy_figures.convergence([0, 1], {"b": [1.0]}, floors={}),
            r"curves\['b'\] must have shape \[2\]",
        ),
        (lambda: energy_figures.rotation_errors({}), "panels must hold"),
        (lambda: energy_figures.rotation_errors({"a": []}), r"panels\['a'\] must have shape"),
        (lambda: energy_figures.rotation_errors({"a": [1.0, -2.0]}), r"panels\['a'\] .* got -2.0"),
        (lambda: energy_figures.error_bars([]), "rows must hold"),
        (
            lambda: energy_figures.error_bars([("a", -1.0, 1.0)]),
            "rows must hold errors of at least 0, got -1.0",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()

"""Figures of an agent that plans: what is drawn where, and what is refused."""

import numpy as np
import pytest

from vfejax.figures import choices


def _probabilities(rng, t, k):
    return rng.dirichlet(np.ones(k), t)


def test_beliefs_have_one_axes_per_factor_and_frame_the_truth(rng):
    given = {"place": _probabilities(rng, 5, 3), "side": _probabilities(rng, 5, 2)}
    states = np.stack([[0, 1, 2, 1, 0], [1, 1, 1, 1, 1]], axis=1)
    figure = choices.beliefs(given, (("a", "b", "c"), ("left", "right")), states)
    *axes, bar = figure.axes
    assert [ax.get_title(loc="left") for ax in axes] == ["place", "side"]
    for f, (ax, x) in enumerate(zip(axes, given.values(), strict=True)):
        (mesh,), (frames,) = ax.collections, ax.lines
        np.testing.assert_array_equal(mesh.get_array(), x.T)
        np.testing.assert_array_equal(frames.get_ydata(), states[:, f])
    assert [label.get_text() for label in axes[1].get_yticklabels()] == ["left", "right"]
    assert "probability" in bar.get_ylabel()
    figure.canvas.draw()


def test_choices_frame_what_was_taken_and_draw_the_entropy(rng):
    controls, taken, entropy = (
        _probabilities(rng, 4, 3),
        np.array([0, 2, 1, 1]),
        rng.uniform(size=4),
    )
    figure = choices.choices(controls, ("up", "down", "stay"), taken, entropy)
    top, below, _ = figure.axes
    np.testing.assert_array_equal(top.lines[0].get_ydata(), taken)
    np.testing.assert_array_equal(below.lines[0].get_ydata(), entropy)
    figure.canvas.draw()


@pytest.mark.parametrize("entropy", [[np.nan, np.nan], [0.5, np.inf]])
def test_entropies_that_are_not_finite_leave_gaps(entropy, rng):
    figure = choices.choices(_probabilities(rng, 2, 2), ("up", "down"), [0, 1], entropy)
    drawn = figure.axes[1].lines[0].get_ydata()
    np.testing.assert_array_equal(drawn, np.where(np.isfinite(entropy), entropy, np.nan))
    figure.canvas.draw()


def test_expectations_have_a_line_for_each_term(rng):
    terms = {"utility": rng.normal(size=4), "risk": rng.normal(size=4)}
    figure = choices.expectations(terms, rng.uniform(size=4))
    assert [len(ax.lines) for ax in figure.axes] == [2, 1]
    figure.canvas.draw()


def test_levels_that_are_known_are_dashed_beside_the_run(rng):
    panels = {"reward": rng.normal(size=6), "steps": np.full(6, np.nan)}
    levels = {"reward": {"best possible": 2.0, "greedy agent": np.nan}}
    figure = choices.success(np.arange(6), panels, levels)
    assert [len(ax.lines) for ax in figure.axes] == [2, 1]
    assert [text.get_text() for text in figure.axes[0].texts] == ["this run", "best possible"]
    figure.canvas.draw()


def test_arrays_that_do_not_fit_are_refused(rng):
    x = _probabilities(rng, 5, 3)
    with pytest.raises(ValueError, match=r"states must have shape \[t, 1\]"):
        choices.beliefs({"place": x}, (("a", "b", "c"),), np.zeros((5, 2)))
    with pytest.raises(ValueError, match=r"controls must have shape \[t, 2\]"):
        choices.choices(x, ("a", "b"), np.zeros(5), np.zeros(5))
    with pytest.raises(ValueError, match="terms must hold at least one"):
        choices.expectations({}, np.zeros(5))
    with pytest.raises(ValueError, match="panels must hold at least one"):
        choices.success(np.arange(5), {}, {})

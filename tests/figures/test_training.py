"""Figures of a training run carry the data they are given and render without warnings."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure

from vfejax.figures import training as training_figures

STEPS = np.arange(0, 50, 10)
TRAINING = np.array([np.nan, 3.0, 2.5, 2.2, 2.0])
VALIDATION = np.array([4.2, np.nan, 2.6, np.nan, 2.1])


def _render(figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_both_losses_are_drawn_where_they_are_known_with_every_level():
    figure = training_figures.loss_curves(
        STEPS, TRAINING, VALIDATION, levels={"uniform": 4.17, "unknown": np.nan}
    )
    (ax,) = figure.axes
    *lines, best = ax.lines
    level, training, validation = (np.asarray(line.get_ydata(), float) for line in lines)
    assert np.all(level == 4.17)
    assert training.tolist() == [3.0, 2.5, 2.2, 2.0]
    assert validation.tolist() == [4.2, 2.6, 2.1]
    assert [line.get_xdata()[0] for line in lines[1:]] == [10, 0]
    assert (best.get_xdata(), best.get_ydata()) == ([40.0], [2.1])
    written = [text.get_text() for text in ax.texts]
    assert written == ["uniform 4.170", "training 2.000", "validation 2.100"]
    _render(figure)


def test_a_best_loss_before_the_last_is_named():
    figure = training_figures.loss_curves(
        STEPS, TRAINING, np.array([4.2, np.nan, 2.05, np.nan, 2.1]), levels={}
    )
    assert "best 2.050" in [text.get_text() for text in figure.axes[0].texts]
    ring = figure.axes[0].lines[-1]
    assert (ring.get_xdata(), ring.get_ydata()) == ([20.0], [2.05])
    _render(figure)


def test_a_run_without_validation_or_steps_is_drawn():
    nothing = np.full(1, np.nan)
    figure = training_figures.loss_curves([0], nothing, nothing, levels={})
    assert len(figure.axes[0].lines) == 0
    _render(figure)


@pytest.mark.parametrize("count", [1, pytest.param(2, marks=pytest.mark.slow), 3])
def test_one_panel_per_quantity(count):
    curves = {f"quantity_{i}": TRAINING + i for i in range(count)} | {"flow_nats": TRAINING + count}
    figure = training_figures.diagnostics(STEPS, curves, {"flow_nats": "nats"})
    shown = [ax for ax in figure.axes if ax.get_visible()]
    titles = [ax.get_title(loc="left") for ax in shown]
    assert titles == [*(f"quantity {i}" for i in range(count)), "flow"]
    assert [ax.get_ylabel() for ax in shown] == [*[""] * count, "nats"]
    for i, ax in enumerate(shown):
        assert ax.lines[0].get_ydata().tolist() == (TRAINING[1:] + i).tolist()
    _render(figure)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (
            lambda: training_figures.loss_curves(STEPS, TRAINING[:2], VALIDATION, levels={}),
            "training",
        ),
        (
            lambda: training_figures.loss_curves(STEPS, TRAINING, VALIDATION[:2], levels={}),
            "validation",
        ),
        (lambda: training_figures.diagnostics(STEPS, {}, {}), "curves"),
        (lambda: training_figures.diagnostics(STEPS, {"norm": TRAINING[:2]}, {}), "norm"),
    ],
)
def test_misuse_is_named(call, name):
    with pytest.raises(ValueError, match=name):
        call()

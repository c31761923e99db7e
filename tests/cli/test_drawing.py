"""Pictures drawn by two processes."""

import os

import numpy as np
import pytest
from matplotlib.figure import Figure

from vfejax.cli import drawing
from vfejax.figures.energies import energy_terms
from vfejax.runs import report
from vfejax.runs.report import Picture


def _pictures(count):
    for i in range(count):
        figure = energy_terms(np.arange(1, 5), {"total": np.linspace(1.0, 2.0, 4) + i})
        yield Picture(f"picture {i}", "", "", figure)


@pytest.fixture
def painter(monkeypatch):
    """A process that is ready."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    monkeypatch.setattr(os, "getloadavg", lambda: (0.0, 0.0, 0.0), raising=False)
    with drawing.allowed():
        drawing.begin()
        found = drawing._BESIDE.painter
        found._last.result(60)
        yield found
    assert drawing._BESIDE.painter is None
    assert found._process.poll() is not None


def test_two_processes_draw_what_one_draws_and_one_draws_what_the_other_cannot(
    painter, blank_pictures, monkeypatch
):
    here = []

    def figure_png(figure):
        here.append(figure)
        return blank_pictures(figure)

    monkeypatch.setattr(report, "figure_png", figure_png)
    expected = [(picture.name, blank_pictures(picture.figure)) for picture in _pictures(3)]

    def found(pictures):
        here.clear()
        return [(picture.name, png) for picture, png in drawing.drawn(pictures)]

    assert found(_pictures(3)) == expected
    assert 0 < len(here) < 3
    nameless = Figure(figsize=(1, 1))
    nameless.hook = lambda: None  # no other process can be told of it
    assert found([Picture("nameless", "", "", nameless)]) == [
        ("nameless", blank_pictures(nameless))
    ]
    assert here == [nameless]

    def interrupted():
        for picture in _pictures(3):
            yield picture
            painter._process.kill()
            painter._process.wait()

    assert painter.idle
    assert found(interrupted()) == expected
    assert not painter.idle


def test_no_process_is_started_where_none_is_allowed_or_there_is_no_processor_for_it(monkeypatch):
    drawing.begin()
    assert drawing._BESIDE.painter is None
    for own, load in (({0}, 0.0), ({0, 1}, float(os.cpu_count()))):
        monkeypatch.setattr(os, "sched_getaffinity", lambda _, own=own: own, raising=False)
        monkeypatch.setattr(os, "getloadavg", lambda load=load: 3 * (load,), raising=False)
        with drawing.allowed():
            drawing.begin()
            assert drawing._BESIDE.painter is None

"""Pictures drawn by processes beside the command."""

import os
import select
import signal
import subprocess
import sys

import jax.numpy as jnp
import pytest
from matplotlib.figure import Figure

from vfejax.cli import drawing
from vfejax.figures.energies import energy_terms
from vfejax.runs import report
from vfejax.runs.report import Picture

energies = drawing.sketched("vfejax.figures.energies")


def _curve(number, make=energy_terms):
    return make(jnp.arange(1, 5), {"total": jnp.linspace(1.0, 2.0, 4) + number})


def _pictures(count):
    """Figures and sketches of them in turn."""
    for i in range(count):
        figure = _curve(i, (energy_terms, energies.energy_terms)[i % 2])
        yield Picture(f"picture {i}", "", "", figure)


@pytest.fixture
def painters(monkeypatch):
    """Two processes."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    with drawing.allowed():
        drawing.begin()
        found = drawing._BESIDE.painters
        ends = [os.dup(painter.answers.fileno()) for painter in found._all]
        yield found
    assert drawing._BESIDE.painters is None
    assert found._process.poll() is not None
    for end in ends:  # that nobody writes to any more
        assert select.select([end], [], [], 60)[0]
        assert os.read(end, 1) == b""
        os.close(end)


def test_processes_draw_what_the_command_draws_which_draws_what_they_cannot(
    painters, blank_pictures, monkeypatch
):
    here = []

    def figure_png(figure):
        here.append(figure)
        return blank_pictures(figure)

    monkeypatch.setattr(report, "figure_png", figure_png)
    expected = [(f"picture {i}", blank_pictures(_curve(i))) for i in range(4)]

    def found(pictures):
        here.clear()
        return [(picture.name, png) for picture, png in drawing.drawn(pictures)]

    assert found(_pictures(4)) == expected
    assert here == []
    nameless = Figure(figsize=(1, 1))
    nameless.hook = lambda: None  # no other process can be told of it
    assert found([Picture("nameless", "", "", nameless)]) == [
        ("nameless", blank_pictures(nameless))
    ]
    assert here == [nameless]

    def interrupted():
        for picture in _pictures(4):
            yield picture
            os.killpg(painters._process.pid, signal.SIGKILL)
            painters._process.wait()

    assert found(interrupted()) == expected
    assert here


def test_what_a_sketch_is_refused_is_told_by_the_command(painters):
    wrong = Picture("wrong", "", "", energies.energy_terms([1, 2], {"total": [1.0]}))
    with pytest.raises(ValueError, match="total"):
        list(drawing.drawn([wrong]))


def test_no_process_is_started_where_none_is_allowed_or_there_is_one_processor(monkeypatch):
    drawing.begin()
    assert drawing._BESIDE.painters is None
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    with drawing.allowed():
        drawing.begin()
        assert drawing._BESIDE.painters is None


def test_who_only_sketches_imports_no_matplotlib():
    reports = ", ".join(f"vfejax.cli.{name}.report" for name in ("simulate", "train", "filter"))
    said = subprocess.run(
        [sys.executable, "-c", f"import sys, {reports}; print('matplotlib' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "False\n"

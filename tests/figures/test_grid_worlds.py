"""Walks on a map, and frames of a film: what is drawn where, and what is refused."""

import numpy as np
import pytest

from vfejax.figures import frames, grid_worlds
from vfejax.figures.grid_worlds import Mark, Walk

CELLS = np.array([[1, 1], [1, 2], [1, 3], [2, 2]])
MARKS = {0: Mark("S", "start"), 2: Mark("1", "goal"), 3: Mark("C", "cue")}


def _way(ax):
    """Corners of the way that is drawn, without markers."""
    return next(line.get_xydata() for line in ax.lines if len(line.get_xdata()) > 1)


def test_walks_have_a_map_each_with_letters_and_the_way():
    panels = {"a": Walk([2, 1, 1, 0], [0, 1, 2], 2), "b": Walk([3, 0, 0, 0], [0, 0, 0])}
    figure = grid_worlds.walks(CELLS, MARKS, panels)
    left, right, bar = figure.axes
    assert [ax.get_title(loc="left") for ax in (left, right)] == ["a", "b"]
    assert [text.get_text() for text in left.texts] == ["S", "1", "C"]
    # Two dots and, where it moves, a line and an arrow on each step.
    assert [len(ax.lines) for ax in (left, right)] == [5, 2]
    assert bar.get_ylim() == (0.0, 3.0)
    figure.canvas.draw()


def test_the_way_back_lies_beside_the_way_there():
    figure = grid_worlds.walks(CELLS, MARKS, {"a": Walk(np.ones(4), [0, 1, 0])})
    there, back = np.split(_way(figure.axes[0]), 2)
    # To the right of a step eastwards is south, where rows grow.
    assert np.all(there[:, 1] > 1)
    np.testing.assert_allclose(there[:, 1] - 1, 1 - back[:, 1])
    np.testing.assert_array_equal(there[:, 0], [1, 2])
    np.testing.assert_array_equal(back[:, 0], [2, 1])


def test_square_corners_meet_in_one_point():
    figure = grid_worlds.walks(CELLS, MARKS, {"a": Walk(np.ones(4), [0, 1, 3])})
    way = _way(figure.axes[0])
    assert len(way) == 3
    assert np.all((np.diff(way, axis=0) == 0).any(axis=1))


def test_frames_are_one_figure_for_each_moment(rng):
    path, sides = np.array([0, 1, 2]), rng.dirichlet(np.ones(2), 3)
    ground = frames.Ground(CELLS, MARKS, path, np.eye(4)[path], {2: sides[:, 0]})
    panels = {
        "reward at": frames.Bars(sides, ("1", "2")),
        "next action": frames.Bars(rng.dirichlet(np.ones(3), 3), ("a", "b", "c"), [0, 2, 1]),
    }
    drawn, places = 0, set()
    for moment, figure in enumerate(frames.frames(panels, ground)):
        titles = [ax.get_title(loc="left") for ax in figure.axes]
        assert titles == [f"observation {moment}", "reward at", "next action"]
        widths = [bar.get_width() for bar in figure.axes[1].patches]
        assert widths == sides[moment].tolist()
        colours = [bar.get_facecolor() for bar in figure.axes[2].patches]
        assert len(set(colours)) == 2
        places.add(tuple(ax.get_position(original=True).bounds for ax in figure.axes))
        drawn += 1
    assert drawn == 3
    assert len(places) == 1  # nothing jumps
    assert len(list(frames.frames(panels))) == 3
    figure.canvas.draw()


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="panels must hold at least one walk"):
        grid_worlds.walks(CELLS, MARKS, {})
    with pytest.raises(ValueError, match=r"panels\['a'\].visits must have shape \[4\]"):
        grid_worlds.walks(CELLS, MARKS, {"a": Walk([1, 2], [0])})
    with pytest.raises(ValueError, match="path must be places, 0 to 3, got 0 to 4"):
        grid_worlds.walks(CELLS, MARKS, {"a": Walk(np.ones(4), [0, 4])})
    with pytest.raises(ValueError, match="panels must hold at least one entry"):
        next(frames.frames({}))

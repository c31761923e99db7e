"""Figures of hierarchies: strips, brackets, markers and ellipses are those of the data."""

import io

import numpy as np
import pytest
from matplotlib.colors import same_color, to_rgb
from matplotlib.figure import Figure

from vfejax.figures import hierarchies, style


def render(figure: Figure) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")


def history():
    """Five agents, three slots, four steps: 1, 3 and 4 join row 5, 0 and 2 row 6, and both row
    7.
    """
    steps = np.array([0, 10, 20, 40])
    parent = np.tile(np.arange(8), (4, 1))
    active = np.zeros((4, 8), bool)
    active[:, :5] = True
    parent[1:, [1, 3, 4]], active[1:, 5] = 5, True
    parent[2:, [0, 2]], active[2:, 6] = 6, True
    parent[3, [5, 6]], active[3, 7] = 7, True
    active[0, 4] = False
    return steps, parent, active


def strips(figure: Figure, num_agents: int) -> np.ndarray:
    mesh = figure.axes[0].collections[0]
    return np.asarray(mesh.get_array()).reshape(num_agents, -1, 3)


def test_every_strip_has_the_colour_of_its_meta_agent():
    steps, parent, active = history()
    figure = hierarchies.memberships(steps, parent, active, num_agents=5)
    render(figure)
    colours = strips(figure, 5)
    # The larger group stands first: agents 1, 3, 4, then 0 and 2.
    first, second, nobody = style.CURVES[0], style.CURVES[1], hierarchies.NOBODY
    expected = [
        [nobody, first, first, first],
        [nobody, first, first, first],
        ["white", first, first, first],
        [nobody, nobody, second, second],
        [nobody, nobody, second, second],
    ]
    np.testing.assert_allclose(colours, [[to_rgb(c) for c in row] for row in expected])
    assert "2 groups" in figure.axes[0].get_title(loc="left")


def test_brackets_lead_from_members_to_every_scale():
    figure = hierarchies.memberships(*history(), num_agents=5, limits=(0, 9))
    assert figure.axes[0].get_xlim() == (0, 9)
    tree = figure.axes[1]
    dots = [line.get_xydata()[0].tolist() for line in tree.lines if line.get_marker() == "o"]
    # Groups of places 0 to 2 and 3 to 4, and their own meta-agent halfway between them.
    assert dots == [[1, 1], [1, 3.5], [2, 2.25]]
    assert tree.get_ylim() == figure.axes[0].get_ylim()


def test_loners_stand_last_and_a_parent_that_is_gone_is_none():
    parent = np.array([[0, 3, 3, 3], [0, 3, 3, 3]])
    active = np.array([[True, True, True, True], [True, True, True, False]])
    figure = hierarchies.memberships([0, 1], parent, active, num_agents=3)
    colours = strips(figure, 3)
    np.testing.assert_allclose(colours[:, 1], np.tile(to_rgb(hierarchies.NOBODY), (3, 1)))
    np.testing.assert_allclose(colours[2, 0], to_rgb(hierarchies.NOBODY))
    assert not np.allclose(colours[0, 0], to_rgb(hierarchies.NOBODY))
    assert "0 groups" in figure.axes[0].get_title(loc="left")


def test_many_agents_one_step_and_one_agent_render():
    num = 200
    parent = np.append(num + np.arange(num) % 2, [num, num + 1])[None]
    figure = hierarchies.memberships([3], parent, np.ones_like(parent), num_agents=num)
    render(figure)
    assert len(figure.axes[1].lines) == 2 * 5  # two brackets of two lines, a back, a stem, a dot
    render(hierarchies.memberships([0], [[0]], [[True]], num_agents=1))


def test_events_lie_on_the_curve_of_their_scale():
    steps = np.arange(5.0)
    energies = np.stack([10 - steps, np.array([0.0, 0.0, 3.0, 2.0, 1.0]), np.zeros(5)], axis=1)
    events = [(2, "condensation", 1), (3, "dissolution", 1), (4, "condensation", 2)]
    figure = hierarchies.energy_of_scales(steps, energies, events)
    render(figure)
    marks = [
        (line.get_marker(), *line.get_xydata()[0], line.get_color())
        for line in figure.axes[0].lines
        if line.get_marker() in ("^", "v")
    ]
    assert marks == [
        ("^", 2.0, 3.0, style.CURVES[1]),
        ("v", 3.0, 2.0, style.CURVES[1]),
        ("^", 4.0, 7.0, style.INK),  # of a scale that has no curve: on the total
    ]
    named = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert named == ["condensation", "dissolution"]


def test_energies_without_events_have_no_legend():
    assert hierarchies.energy_of_scales([0, 1], [[1.0], [0.5]]).axes[0].get_legend() is None


def test_meta_agents_outline_their_members(rng):
    n, k = 5, 6
    factor = rng.standard_normal((n + 2, k, k))
    covs = factor @ factor.swapaxes(-1, -2) + 0.1 * np.eye(k)
    means = rng.standard_normal((n + 2, k))
    means[1] = np.nan  # left out
    figure = hierarchies.belief_map(
        means[:n], covs[:n], [0, 0, 1, -1, 0], means[n:], covs[n:], axes=(0, 2)
    )
    render(figure)
    collections = figure.axes[0].collections
    # Grey agents, then each group's members and its meta-agent: two landmarks each.
    assert [len(c.get_paths()) for c in collections] == [2, 4, 2, 2, 2]
    colours = [style.GREY, *np.repeat(style.CURVES[:2], 2)]
    for collection, colour in zip(collections, colours, strict=True):
        assert same_color(collection.get_edgecolor()[0][:3], colour)
    meta = collections[2].get_paths()[1].vertices[:-1]
    pick = [3, 5]
    offset = meta - means[n, pick]
    squares = np.einsum("ti,ij,tj->t", offset, np.linalg.inv(covs[n][np.ix_(pick, pick)]), offset)
    np.testing.assert_allclose(squares, 4.0, rtol=1e-9)


EYE = np.eye(3)[None]


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            lambda: hierarchies.memberships([0], [[0, 2]], [[1, 1]], num_agents=2),
            "parent must hold rows from 0 to 1, got 0 to 2",
        ),
        (
            lambda: hierarchies.memberships([0], [[0, 1]], [[1, 1]], num_agents=3),
            "num_agents must be from 1 to 2 rows, got 3",
        ),
        (
            lambda: hierarchies.memberships([0], [[0, 1]], [[1]], num_agents=1),
            "active must have shape",
        ),
        (
            lambda: hierarchies.energy_of_scales([0], [[1.0]], [(0, "birth", 0)]),
            "events must be a condensation or a dissolution",
        ),
        (
            lambda: hierarchies.energy_of_scales([0], [[1.0]], [(0, "dissolution", 1)]),
            "events must be .* at a scale below 1",
        ),
        (
            lambda: hierarchies.belief_map(EYE[0, :1], EYE, [1], EYE[0, :1], EYE),
            "groups must be below 1 meta-agents, got 1",
        ),
        (
            lambda: hierarchies.belief_map(EYE[0, :1], EYE, [0], EYE[0, :1], EYE, axes=(0, 3)),
            "axes must be two different coordinates",
        ),
    ],
)
def test_what_does_not_fit_is_refused_by_name(function, message):
    with pytest.raises(ValueError, match=message):
        function()

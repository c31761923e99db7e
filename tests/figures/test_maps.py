"""Figures of maps carry the numbers they are given, on one scale, and grey where there is none."""

import io

import numpy as np
import pytest
from matplotlib.colors import same_color

from vfejax.figures import maps, style

LABELS = {"xlabel": "tokens back", "ylabel": "platter", "label": "weight"}


def test_panels_share_a_scale_and_grey_is_what_is_not_positive(rng):
    panels = {f"block {i}": rng.uniform(1e-6, 1e-2, (2, 5)) for i in range(3)}
    panels["block 1"][1, 3:] = 0.0
    panels["block 2"][0, 0] = np.nan
    panels["block 0"][0, 2] = 0.5
    figure = maps.heat_maps(panels, **LABELS, columns=2)
    *axes, bar = figure.axes
    shown = [ax for ax in axes if ax.get_visible()]
    assert [ax.get_title(loc="left") for ax in shown] == list(panels)
    for ax, (name, panel) in zip(shown, panels.items(), strict=True):
        (mesh,) = ax.collections
        values = mesh.get_array()
        known = panel > 0
        np.testing.assert_array_equal(~np.ma.getmaskarray(values), known, err_msg=name)
        np.testing.assert_array_equal(values[known], panel[known])
        assert (mesh.norm.vmin, mesh.norm.vmax) == pytest.approx((0.5e-4, 0.5))
        assert same_color(mesh.cmap.get_bad(), style.VOID)
        # Numbers stand in the middle of their cells.
        assert ax.get_xlim() == (-0.5, 4.5)
        assert ax.get_ylim() == (-0.5, 1.5)
    assert [ax.get_ylabel() for ax in shown] == ["platter", "", "platter"]
    assert [ax.get_xlabel() for ax in shown] == ["", "tokens back", "tokens back"]
    assert bar.get_ylabel() == "weight"
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=40)
    assert buffer.getvalue().startswith(b"\x89PNG")


def test_maps_of_nothing_are_grey():
    figure = maps.heat_maps({"a": np.zeros((1, 1))}, **LABELS)
    figure.savefig(io.BytesIO(), dpi=40)
    assert np.all(np.ma.getmaskarray(figure.axes[0].collections[0].get_array()))


@pytest.mark.parametrize(
    ("panels", "columns", "message"),
    [
        ({}, 1, "panels must hold at least one array"),
        ({"a": np.ones((2, 2))}, 0, "columns be at least 1, got 1 and 0"),
        ({"a": np.ones(2)}, 1, r"panels must have shape \[rows, columns\]"),
        (
            {"a": np.ones((2, 2)), "b": np.ones((2, 3))},
            1,
            r"panels\['b'\] must have shape \[2, 2\]",
        ),
    ],
)
def test_misuse_is_named(panels, columns, message):
    with pytest.raises(ValueError, match=message):
        maps.heat_maps(panels, **LABELS, columns=columns)

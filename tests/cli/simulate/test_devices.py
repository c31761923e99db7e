"""``vfejax simulate`` on several devices: the same population as on one, and a line that says how
many have a share of it.
"""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.host_devices import on_eight_devices

from vfejax.agents import pairwise
from vfejax.cli.simulate import devices
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.errors import UserError

SCRIPT = """
import shutil
import sys
import numpy as np
from helpers.tiny_run import TINY
from matplotlib.figure import Figure
from vfejax.cli.main import main
from vfejax.cli.simulate import devices
from vfejax.data import population_arrays
from vfejax.runs import checkpoint, report

blank = report.figure_png(Figure(figsize=(0.1, 0.1)), dpi=10)
report.figure_png = lambda figure: blank
shared, folder = devices.shared, sys.argv[1]
flags = [*TINY, "--agents", "8", "--dynamics", "natural", "--step-size", "0.02",
         "--precision", "float64", "--steps", "50", "--log-every", "10", "--checkpoint-every", "20"]

def run(name, *options):
    return main(["simulate", "--out", f"{folder}/{name}", *options])

def same(name, tolerance):
    found, expected = (population_arrays.load_npz(f"{folder}/{x}/final.npz")
                       for x in (name, "eight"))
    for key in expected:
        np.testing.assert_allclose(found[key], expected[key], rtol=tolerance, atol=tolerance)

assert run("eight", *flags) == 0
# From step 20 on once more: on as many devices, bit for bit, and on one.
for name in ("again", "moved"):
    shutil.copytree(f"{folder}/eight", f"{folder}/{name}")
    checkpoint.discard_after(f"{folder}/{name}", 20)
assert run("again", "--resume", "--quiet") == 0
same("again", 0)
devices.shared = lambda config, problem: None
assert run("moved", "--resume", "--quiet") == 0
same("moved", 1e-9)
"""


@pytest.mark.slow
def test_eight_devices_give_what_one_gives_and_a_run_goes_on_with_any_number(tmp_path):
    _, said = on_eight_devices(SCRIPT, str(tmp_path))
    assert "vfejax simulate: uses all 8 devices, each with 1 of the agents\n" in said


@pytest.mark.parametrize(
    ("used", "present", "num_agents", "emergence", "line"),
    [
        (1, 1, 64, (), ""),
        (8, 8, 64, (), "uses all 8 devices, each with 8 of the agents"),
        (
            *(5, 8, 100, ()),
            "uses 5 of 8 devices, since no more of them have equal shares of the 100 agents; "
            "a multiple of 8 agents uses all",
        ),
        (1, 8, 64, (4,), "uses 1 of 8 devices: with --emergence one device has all agents"),
    ],
)
def test_one_line_says_how_many_devices_are_used_and_why(
    used, present, num_agents, emergence, line
):
    config = SimulateConfig(emergence=emergence)
    assert devices.remark(config, used, present, num_agents) == line


def test_a_state_is_copied_and_one_device_needs_no_method():
    state = {"mean": jnp.ones((4, 3)), "step": jnp.zeros((), int)}
    placed = devices.placed(None, 4)(state)
    assert placed["mean"] is not state["mean"]
    assert placed["mean"].tolist() == state["mean"].tolist()
    assert devices.method(None, None) is pairwise.alignment_energy


@pytest.mark.parametrize(
    ("given", "subject"),
    [
        ({}, "--agents 10: must"),
        ({"observations": Path("o.csv")}, "--observations o.csv: holds 10 agents, whose number"),
        ({"observations": Path("o.csv"), "initial": Path("i.npz")}, "--initial i.npz: holds 10"),
    ],
)
def test_agents_that_the_devices_of_processes_do_not_divide_are_refused(
    given, subject, monkeypatch
):
    monkeypatch.setattr(jax, "devices", lambda: [None] * 8)
    monkeypatch.setattr(jax, "device_count", lambda: 8)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    problem = SimpleNamespace(population=SimpleNamespace(phi=np.zeros((10, 3))))
    with pytest.raises(UserError) as error:
        devices.shared(SimulateConfig(**given), problem)
    assert str(error.value).startswith(subject)
    assert "must be a multiple of 8, since the 8 devices" in str(error.value)

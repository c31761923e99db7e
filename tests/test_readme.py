"""The programs of the README and of the tour run as printed, one after the other, and the commands
exist.
"""

import math
import re
from pathlib import Path

import jax
import pytest
from helpers.tiny_run import TINY

from vfejax.cli import main as command_line

ROOT = Path(__file__).parents[1]
README, TOUR = ((ROOT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/tour.md"))
PROGRAMS = re.findall(r"```python\n(.*?)```", README + TOUR, re.DOTALL)


@pytest.fixture
def printed(tmp_path, monkeypatch):
    """What the programs print, in a folder that holds the run of ``make demo`` in small. They run
    as a reader would run them, in JAX's default configuration.
    """
    lines: list[str] = []
    with (
        monkeypatch.context() as patch,
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        patch.chdir(tmp_path)
        patch.setattr("builtins.print", lambda *values: lines.append(" ".join(map(str, values))))
        assert command_line.main(["simulate", "--out", "runs/demo", "--quiet", *TINY]) == 0
        namespace: dict = {}
        for number, program in enumerate(PROGRAMS):
            exec(compile(program, f"README.md and tour.md, program {number}", "exec"), namespace)
    return "\n".join(lines)


@pytest.mark.slow  # one test: two workers that share its checks would both run the programs
def test_programs_print_what_is_true(printed):
    def numbers(line):
        return [float(number) for number in re.search(line, printed, re.MULTILINE).groups()]

    # Three agents settle.
    before, after = numbers(r"free energy (\S+) -> (\S+) nats")
    assert 0 < after < 0.2 * before
    before, after = numbers(r"farthest apart (\S+) -> (\S+) nats")
    assert 0 < after < 0.1 * before
    # Beliefs with inertia lose energy by friction.
    before, after = numbers(r"moving: (\S+) -> (\S+) nats")
    assert 0 < after < before
    assert "every step solved: True" in printed
    # An agent asks first and is rewarded.
    assert numbers(r"asked the cue first: (\d+)%, rewarded: (\d+)%") == [100, 100]
    # A field is as long as its circle: radius 1 and standard deviation 0.1; central differences
    # take away h^2 / 6, which is 0.2 %.
    (length,) = numbers(r"once around: (\S+) root nats")
    assert abs(length - 20 * math.pi) < 0.15
    # A torus follows every roll, to the rounding of float32.
    (change,) = numbers(r"answered and rolled: (\S+) apart")
    assert change < 1e-5
    # A pendulum keeps its energy, to second order: dt^2 / 24 of energies of order 1.
    (change,) = numbers(r"largest change of the energy (\S+) nats")
    assert 0 < change < 5e-3
    # The run of the demonstration is read.
    steps, total = numbers(r"^(\d+) ([-+.e\d]+)$")
    assert steps == 4
    assert total > 0
    # The layer of a user's own model has two more features.
    assert "(2, 5, 10)" in printed


def test_first_program_is_the_example():
    example = (ROOT / "examples/three_agents.py").read_text(encoding="utf-8").split('"""', 2)[2]
    assert PROGRAMS[0].split() == example.split()


def test_commands_are_those_of_the_package():
    named = re.findall(r"^\| `vfejax (\w+)` \|", README, re.MULTILINE)
    assert named == list(command_line.COMMANDS)

"""The README's programs run as printed, one after the other, and its commands exist."""

import math
import re
from pathlib import Path

import jax
import pytest
from helpers.tiny_run import TINY

from vfejax.cli import main as command_line

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


@pytest.fixture(scope="module")
def printed(tmp_path_factory):
    """What the programs print, in a folder that holds the run of ``make demo`` in small. They run
    as a reader would run them, in JAX's default configuration.
    """
    folder = tmp_path_factory.mktemp("readme")
    lines: list[str] = []
    with (
        pytest.MonkeyPatch.context() as patch,
        jax.enable_x64(False),
        jax.numpy_dtype_promotion("standard"),
        jax.numpy_rank_promotion("allow"),
    ):
        patch.chdir(folder)
        patch.setattr("builtins.print", lambda *values: lines.append(" ".join(map(str, values))))
        assert command_line.main(["simulate", "--out", "runs/demo", "--quiet", *TINY]) == 0
        namespace: dict = {}
        for number, program in enumerate(PROGRAMS):
            exec(compile(program, f"README.md, program {number}", "exec"), namespace)
    return "\n".join(lines)


def _numbers(printed, line):
    return [float(number) for number in re.search(line, printed, re.MULTILINE).groups()]


@pytest.mark.slow
def test_three_agents_settle(printed):
    before, after = _numbers(printed, r"free energy (\S+) -> (\S+) nats")
    assert 0 < after < 0.2 * before
    before, after = _numbers(printed, r"farthest apart (\S+) -> (\S+) nats")
    assert 0 < after < 0.1 * before


@pytest.mark.slow
def test_beliefs_with_inertia_lose_energy_by_friction(printed):
    before, after = _numbers(printed, r"moving: (\S+) -> (\S+) nats")
    assert 0 < after < before
    assert "every step solved: True" in printed


@pytest.mark.slow
def test_an_agent_asks_first_and_is_rewarded(printed):
    assert _numbers(printed, r"asked the cue first: (\d+)%, rewarded: (\d+)%") == [100, 100]


@pytest.mark.slow
def test_a_field_is_as_long_as_its_circle(printed):
    (length,) = _numbers(printed, r"once around: (\S+) root nats")
    # Radius 1 and standard deviation 0.1; central differences take away h^2 / 6, which is 0.2 %.
    assert abs(length - 20 * math.pi) < 0.15


@pytest.mark.slow
def test_a_torus_follows_every_roll(printed):
    (change,) = _numbers(printed, r"answered and rolled: (\S+) apart")
    assert change < 1e-5  # rounding of float32


def test_first_program_is_the_example():
    example = (ROOT / "examples/three_agents.py").read_text(encoding="utf-8").split('"""', 2)[2]
    assert PROGRAMS[0].split() == example.split()


@pytest.mark.slow
def test_pendulum_keeps_its_energy(printed):
    (change,) = _numbers(printed, r"largest change of the energy (\S+) nats")
    # Second order: dt^2 / 24 of energies of order 1.
    assert 0 < change < 5e-3


@pytest.mark.slow
def test_run_is_read(printed):
    steps, total = _numbers(printed, r"^(\d+) ([-+.e\d]+)$")
    assert steps == 4
    assert total > 0


@pytest.mark.slow
def test_layer_of_a_users_own_model_has_two_more_features(printed):
    assert "(2, 5, 10)" in printed


def test_commands_are_those_of_the_package():
    named = re.findall(r"^\| `vfejax (\w+)` \|", README, re.MULTILINE)
    assert named == list(command_line.COMMANDS)

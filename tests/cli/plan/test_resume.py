"""Continuing a run of agents that plan and learn: bit for bit, after whatever stopped it."""

import os
import shutil
import signal
import time

import numpy as np
import pytest
from helpers.tiny_run import TINY_PLAN

from vfejax.cli.main import main
from vfejax.data.population_arrays import load_npz
from vfejax.runs import checkpoint
from vfejax.runs.load import load
from vfejax.runs.metrics import read_metrics

EPISODES = 12
FLAGS = [
    *(*TINY_PLAN, "--fixed", "--learn", "D", "--checkpoint-every", "4"),
    *("--episodes", str(EPISODES), "--quiet"),
]


def _resume(out, *arguments):
    return main(["plan", "--out", str(out), "--resume", "--quiet", *map(str, arguments)])


def _same(out, unbroken):
    """Metrics byte for byte, every array bit for bit, and the same summary."""
    assert (out / "metrics.csv").read_bytes() == (unbroken / "metrics.csv").read_bytes()
    for name in ("episode.npz", "learned.npz"):
        found, wanted = (load_npz(run / name) for run in (out, unbroken))
        assert found.keys() == wanted.keys()
        assert all(found[key].tobytes() == wanted[key].tobytes() for key in wanted)
    assert load(out).summary["fares"] == load(unbroken).summary["fares"]
    assert checkpoint.latest_step(out) == EPISODES


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(["plan", "--out", str(out), *FLAGS]) == 0
    return out


@pytest.fixture
def copied(unbroken, tmp_path):
    return shutil.copytree(unbroken, tmp_path / "copy")


def test_agents_learn_where_the_reward_always_is_and_stop_asking(unbroken):
    steps = read_metrics(unbroken)["steps_to_goal"]
    # In the first episode they ask and then go; in the last they go at once.
    assert steps[1] == 1.5
    assert steps[-1] == 1.0
    assert load(unbroken).summary["counted_from_episode"] == 9
    # One event for each episode on top of one count; the reward is where the first side is.
    counts = load_npz(unbroken / "learned.npz")["D_1"]
    np.testing.assert_allclose(counts.sum(axis=1), 1 + EPISODES, rtol=1e-6)
    assert np.all(counts[:, 0] > EPISODES)


def test_a_run_that_lost_its_last_episodes_goes_on_bit_for_bit(copied, unbroken):
    shutil.rmtree(copied / "checkpoints" / f"{EPISODES:08d}")
    (copied / "episode.npz").unlink()
    with open(copied / "metrics.csv", "ab") as file:
        file.write(b"13,1.5")  # as a kill in the middle of a write leaves it
    assert _resume(copied) == 0
    _same(copied, unbroken)


@pytest.mark.slow  # a run that lost its last episodes goes on above
def test_after_kill_9_the_run_goes_on_bit_for_bit(unbroken, start_process, tmp_path):
    out = tmp_path / "run"
    process = start_process("--out", out, *FLAGS, "--episodes", 2000, command="plan")
    deadline = time.monotonic() + 120
    while (checkpoint.latest_step(out) if out.exists() else None) in (None, 0):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    reached = checkpoint.latest_step(out)
    assert _resume(out, "--episodes", max(EPISODES, reached)) == 0
    rows, wanted = ((run / "metrics.csv").read_text().splitlines() for run in (out, unbroken))
    assert rows[: len(wanted)] == wanted


def test_other_settings_and_fewer_episodes_are_refused_by_name(copied, refused):
    flags = ["--resume", "--gamma", "3"]
    refused(copied, flags, "--gamma was 16.0", "--resume", command="plan")
    refused(copied, ["--resume", "--episodes", 4], "--steps 4", str(EPISODES), command="plan")

"""Continuing a run: bit for bit, after whatever stopped it. The stopped processes are real."""

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers.tiny_run import TINY

from vfejax.cli.function_digest import signature
from vfejax.cli.main import main
from vfejax.data import population_arrays
from vfejax.errors import UserError
from vfejax.runs import checkpoint, loop_state
from vfejax.runs import directory as run_directory
from vfejax.runs.metrics import read_metrics

STEPS = 60
# Steps between checkpoints are many times what it takes to send a signal, and no multiple of them
# is the last step.
FLAGS = [*TINY, "--steps", str(STEPS), "--checkpoint-every", "8", "--quiet"]


def _resume(out, *arguments):
    return main(["simulate", "--out", str(out), "--resume", "--quiet", *map(str, arguments)])


def _wait_for(condition, process):
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def _newest(out: Path) -> int:
    latest = checkpoint.latest_step(out)
    return -1 if latest is None else latest


def _same(out, unbroken):
    """Metrics byte for byte, every array bit for bit, and a whole run directory."""
    assert (out / "metrics.csv").read_bytes() == (unbroken / "metrics.csv").read_bytes()
    for name in ("initial.npz", "final.npz"):
        found, wanted = (
            population_arrays.load_npz(out / name),
            population_arrays.load_npz(unbroken / name),
        )
        assert found.keys() == wanted.keys()
        assert all(found[key].tobytes() == wanted[key].tobytes() for key in wanted)
    assert (out / "config.toml").read_bytes() == (unbroken / "config.toml").read_bytes()
    assert checkpoint.latest_step(out) == STEPS
    assert (out / "report.html").is_file()
    assert (out / "summary.json").is_file()


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    assert main(["simulate", "--out", str(out), *FLAGS]) == 0
    assert read_metrics(out)["step"].tolist() == list(range(0, STEPS + 1, 2))
    return out


@pytest.fixture
def copied(unbroken, tmp_path):
    return shutil.copytree(unbroken, tmp_path / "copy")


def test_a_run_that_goes_on_needs_the_program_that_it_began_with(copied, monkeypatch, tmp_path):
    """Else it would be compiled once more."""
    states = []

    def compiled(step, state, jit_fn):
        states.append(signature(state))
        raise UserError("no more is needed")

    monkeypatch.setattr(loop_state, "compiled", compiled)
    assert main(["simulate", "--out", str(tmp_path / "run"), *FLAGS]) == 2
    assert _resume(copied) == 2
    assert states[0] == states[1]


@pytest.mark.slow  # a run whose newest checkpoint is lost goes on below, and in tests/runs
def test_after_kill_9_the_run_goes_on_bit_for_bit(unbroken, start_process, tmp_path):
    out = tmp_path / "run"
    process = start_process("--out", out, *FLAGS)
    _wait_for(lambda: _newest(out) > 0, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert 0 < _newest(out) < STEPS
    assert not (out / "final.npz").exists()
    # Half a line at the end, as a kill in the middle of a write leaves it, and rows past the
    # checkpoint are removed too.
    with open(out / "metrics.csv", "ab") as file:
        file.write(b"59,1.5")
    assert _resume(out) == 0
    _same(out, unbroken)


@pytest.mark.slow  # tests/runs/test_directory.py cuts the creation at every moment
def test_after_kill_9_before_the_first_checkpoint_it_starts_anew(unbroken, start_process, tmp_path):
    out = tmp_path / "run"
    process = start_process("--out", out, *FLAGS)
    _wait_for((out / "config.toml").is_file, process)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL
    assert checkpoint.latest_step(out) is None
    assert _resume(out) == 0
    _same(out, unbroken)


@pytest.mark.slow  # tests/runs interrupts runs by default, and kill -9 above is the harder case
def test_ctrl_c_keeps_the_state_and_the_run_goes_on_bit_for_bit(unbroken, start_process, tmp_path):
    out = tmp_path / "run"
    process = start_process("--out", out, *FLAGS)
    _wait_for(lambda: _newest(out) > 0, process)
    os.kill(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 130
    assert output == ""
    assert errors == "vfejax simulate: interrupted\n"
    stopped = _newest(out)
    assert 0 < stopped < STEPS
    assert read_metrics(out)["step"][-1] == stopped
    # What was computed can be looked at before the run goes on.
    assert population_arrays.from_arrays(
        population_arrays.load_npz(out / "final.npz")
    ).phi.shape == (4, 3)
    assert (out / "report.html").is_file()
    assert _resume(out) == 0
    _same(out, unbroken)


def test_a_finished_run_resumed_stays_as_it_is(copied, unbroken):
    assert _resume(copied) == 0
    _same(copied, unbroken)


@pytest.mark.slow  # tests/runs/test_loop.py gives more steps by default
def test_more_steps_give_what_one_long_run_gives(unbroken, tmp_path):
    out = tmp_path / "run"
    assert main(["simulate", "--out", str(out), *FLAGS, "--steps", "20"]) == 0
    assert checkpoint.latest_step(out) == 20
    assert _resume(out, "--steps", STEPS) == 0
    _same(out, unbroken)


def test_fewer_steps_than_are_done_are_refused(copied, refused):
    before = (copied / "metrics.csv").read_bytes()
    refused(copied, ["--resume", "--steps", 10], "--steps 10", str(STEPS))
    assert (copied / "metrics.csv").read_bytes() == before
    assert checkpoint.latest_step(copied) == STEPS


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("--seed 5", "--seed was 0"),
        ("--noise-std 0.5", "--noise-std was 0.2"),
        ("--precision float64", "--precision was float32"),
        ("--weights.observation 2", "--weights.observation was 1.0"),
        ("--log-every 4", "--log-every was 2"),
    ],
)
def test_other_settings_are_refused_by_name(flags, name, copied, refused):
    before = (copied / "metrics.csv").read_bytes()
    refused(copied, ["--resume", *flags.split()], name, "--resume")
    assert (copied / "metrics.csv").read_bytes() == before


@pytest.mark.slow
def test_a_smaller_step_size_may_take_over(copied, capsys):
    before = read_metrics(copied)["total"]
    flags = ["--steps", str(STEPS + 2), "--step-size", "5e-7"]
    assert main(["simulate", "--out", str(copied), "--resume", *flags]) == 0
    assert "--step-size was 1e-06, is 5e-07 now" in capsys.readouterr().err
    assert run_directory.read_config(copied)["step_size"] == 5e-7
    assert read_metrics(copied)["total"][-1] < before[-1]


def test_settings_repeated_as_they_were_are_accepted(copied, unbroken):
    assert _resume(copied, "--seed", 0, "--agents", 4, "--irreps", 1) == 0
    _same(copied, unbroken)


@pytest.mark.parametrize("kind", ["empty", "foreign", "missing"])
def test_a_directory_without_a_run_cannot_be_resumed(kind, refused, tmp_path):
    out = tmp_path / "run"
    if kind != "missing":
        out.mkdir()
    if kind == "foreign":
        (out / "notes.txt").write_text("mine")
    refused(out, ["--resume"], str(out))
    assert not (out / "config.toml").exists()


@pytest.mark.parametrize("damage", ["flipped", "missing", "record"])
def test_a_damaged_checkpoint_is_named_and_the_remedy_works(damage, copied, unbroken, refused):
    folder = copied / "checkpoints" / f"{STEPS:08d}"
    largest = max(
        (path for path in (folder / "state").rglob("*") if path.is_file()),
        key=lambda path: path.stat().st_size,
    )
    if damage == "flipped":
        content = bytearray(largest.read_bytes())
        content[len(content) // 2] ^= 1
        largest.write_bytes(content)
    elif damage == "missing":
        largest.unlink()
    else:
        (folder / "record.json").write_text("{")
    line = refused(
        copied, ["--resume", "--quiet"], str(folder), f"delete {folder}", "resume from step 56"
    )
    assert "\n" not in line.strip()
    metrics = read_metrics(copied)
    np.testing.assert_array_equal(metrics["step"], read_metrics(unbroken)["step"])
    if damage == "flipped":  # the remedy is the same for all
        shutil.rmtree(folder)
        assert _resume(copied) == 0
        _same(copied, unbroken)


def test_without_any_sound_checkpoint_it_says_to_start_again(copied, refused):
    for folder in (copied / "checkpoints").iterdir():
        (folder / "record.json").unlink()
    line = refused(copied, ["--resume", "--quiet"], "checkpoint", "another --out")
    assert "--overwrite" not in line

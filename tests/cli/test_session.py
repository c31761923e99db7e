"""A command of your own: what it takes to make one, and what it then can do."""

import errno
import io
import json
import os
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import jax.numpy as jnp
import pytest
from matplotlib.figure import Figure

from vfejax.cli import session as sessions
from vfejax.cli.limits import check_run
from vfejax.cli.options import RunOptions, parse_run
from vfejax.errors import UserError
from vfejax.runs import checkpoint, loop
from vfejax.runs import directory as run_directory
from vfejax.runs.metrics import read_metrics
from vfejax.runs.report import Picture, Report

# --- the whole command ---


@dataclass(frozen=True)
class HalveConfig(RunOptions):
    """Halve a number."""

    start: float = 64.0
    """First number."""
    table: Path | None = None
    """A file of no use."""
    INPUTS: ClassVar[tuple[str, ...]] = ("table",)


def main(arguments):
    config = parse_run(HalveConfig, arguments, program="vfejax halve")
    check_run(config)
    program = loop.Program(
        init=lambda: jnp.float32(config.start),
        step=lambda x, _: (x / 2, x / 2),
        observe=lambda step, x, infos, _: loop.Observation({"x": float(x)}),
    )
    with sessions.begin(config, "halve", {"table": config.table}) as session:
        outcome = session.advance(program)
        summary = {"steps": outcome.step, "x": float(outcome.state)}
        pictures = [Picture("blank", "Blank", "Nothing.", Figure(figsize=(1, 1)))]
        report = Report("vfejax halve", list(summary.items()), pictures)
        return session.finish(outcome, report, summary, lambda s: f"x = {s['x']}")


# --- what it can do ---


def _run(out, *arguments):
    return main(["--out", str(out), "--log-every", "1", "--checkpoint-every", "2", *arguments])


def _resume(out, *arguments):
    return main(["--out", str(out), "--resume", *arguments])


@pytest.fixture
def out(tmp_path):
    assert _run(tmp_path / "run", "--steps", "3", "--quiet") == 0
    return tmp_path / "run"


def test_it_leaves_a_whole_run(out):
    names = {"config.toml", "environment.json", "inputs.json", "metrics.csv", "checkpoints"}
    assert {path.name for path in out.iterdir()} == {
        *(*names, "figures", "report.html", "summary.json", ".vfejax")
    }
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["steps"], summary["x"]) == (3, 8.0)
    assert (out / "figures" / "blank.png").read_bytes().startswith(b"\x89PNG")


def test_it_says_what_it_did(tmp_path, capsys):
    assert _run(tmp_path / "run", "--steps", "3") == 0
    captured = capsys.readouterr()
    assert captured.out.splitlines() == ["x = 8.0", f"report: {tmp_path / 'run' / 'report.html'}"]
    assert "halve 3/3 (100 %)" in captured.err


def test_more_steps_are_announced_and_noted(out, capsys):
    assert _resume(out, "--steps", "5") == 0
    line = "vfejax halve: resumed at step 3: --steps was 3, is 5 now\n"
    assert line in capsys.readouterr().err
    assert "--steps was 3, is 5 now" in (out / "report.html").read_text()
    assert run_directory.read_config(out)["steps"] == 5
    assert read_metrics(out)["x"].tolist() == [64, 32, 16, 8, 4, 2]
    environment = json.loads((out / "environment.json").read_text())
    assert environment["resumed_from_step"] == 3


def test_a_run_does_not_end_because_standard_error_cannot_be_written(out, monkeypatch):
    class Full(io.StringIO):
        def write(self, text):
            raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(sys, "stderr", Full())
    assert _resume(out, "--steps", "5") == 0
    assert "--steps was 3, is 5 now" in (out / "report.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--start", "3"], r"--start 3.0: .*--start was 64.0 \(only --steps, --checkpoint-every"),
        (["--seed", "1"], r"--seed was 0"),
        (["--config", "a.toml"], r"--config: cannot be given with --resume"),
        (["--overwrite"], r"--overwrite: cannot be given with --resume"),
        (["--steps", "1"], r"--steps 1: .* at step 3 already"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_a_resumed_run_cannot_do_is_refused_and_changes_nothing(arguments, message, out):
    before = (out / "config.toml").read_bytes()
    with pytest.raises(UserError, match=message):
        _resume(out, *arguments)
    assert (out / "config.toml").read_bytes() == before
    assert checkpoint.latest_step(out) == 3


def test_a_run_of_another_command_is_refused(tmp_path):
    run_directory.create(tmp_path / "run", {"agents": 3}).close()
    with pytest.raises(UserError, match=r"config.toml: unknown key 'agents'.*not made by vfejax h"):
        _resume(tmp_path / "run")


def test_inputs_are_pinned_and_known_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("a.csv").write_text("1\n")
    assert _run("run", "--steps", "1", "--quiet", "--table", "a.csv") == 0
    monkeypatch.chdir("/")
    out = tmp_path / "run"
    assert run_directory.read_config(out)["table"] == str(tmp_path / "a.csv")
    assert _resume(out, "--steps", "2", "--quiet") == 0
    (tmp_path / "a.csv").rename(tmp_path / "moved.csv")
    with pytest.raises(UserError, match=r"--table .*a.csv: does not exist"):
        _resume(out, "--steps", "3", "--quiet")
    assert _resume(out, "--steps", "3", "--quiet", "--table", str(tmp_path / "moved.csv")) == 0
    (tmp_path / "moved.csv").write_text("2\n")
    with pytest.raises(UserError, match=r"--table .*moved.csv: changed"):
        _resume(out, "--steps", "4", "--quiet")
    assert run_directory.read_config(out)["steps"] == 3


def test_a_missing_folder_of_figures_is_made(out):
    (out / "figures" / "blank.png").unlink()
    (out / "figures").rmdir()
    assert _resume(out, "--steps", "4", "--quiet") == 0
    assert (out / "figures" / "blank.png").is_file()


def test_overwrite_keeps_a_run_that_wrote_an_input_of_the_new_one(out):
    summary, kept = out / "summary.json", (out / "summary.json").read_bytes()
    arguments = ["--steps", "1", "--quiet", "--overwrite", "--table", str(summary)]
    with pytest.raises(UserError, match=r"--table .*summary.json: is a file of the run"):
        _run(out, *arguments)
    assert summary.read_bytes() == kept
    assert (out / "checkpoints").is_dir()


def test_overwrite_replaces_the_run_and_keeps_what_is_not_its_own(out):
    (out / "figures" / "mine.svg").write_text("mine")
    assert _run(out, "--steps", "1", "--quiet", "--overwrite") == 0
    assert (out / "figures" / "mine.svg").read_text() == "mine"
    assert checkpoint.steps(out) == [0, 1]


def test_a_name_that_is_no_text_is_refused_before_the_directory_is_made(tmp_path):
    path = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / path).write_text("x")
    with pytest.raises(UserError, match=r"--table '.*caf\\udce9.txt': is no UTF-8 text"):
        _run(tmp_path / "run", "--table", str(tmp_path / path))
    assert not (tmp_path / "run").exists()


def test_it_runs_in_a_thread(tmp_path):
    statuses = []
    arguments = (tmp_path / "run", "--steps", "2", "--quiet")
    thread = threading.Thread(target=lambda: statuses.append(_run(*arguments)))
    thread.start()
    thread.join()
    assert statuses == [0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], r"--seed -1: must be at least 0 and at most 9223372036854775807"),
        (["--seed", str(2**63)], r"--seed 9223372036854775808: must be"),
        (["--seed", "9" * 50], r"--seed \(a huge number\): must be"),
        (["--steps", "9" * 20], r"--steps 9{20}: must be at least 0 and at most 2147483647"),
        (["--steps", "9" * 5000], r"--steps"),
        (["--log-every", "0"], r"--log-every 0"),
        (["--checkpoint-every", "3", "--log-every", "2"], r"--checkpoint-every 3: .*multiple"),
    ],
    ids=lambda value: " ".join(value)[:30] if isinstance(value, list) else "",
)
def test_numbers_out_of_range_are_one_line(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message) as caught:
        main(["--out", str(tmp_path / "run"), *arguments])
    assert len(str(caught.value)) < 300
    assert not (tmp_path / "run").exists()


def test_metrics_reach_tensorboard_too_and_go_on_when_resumed(tmp_path):
    out = tmp_path / "run"
    assert _run(out, "--steps", "2", "--quiet", "--tensorboard") == 0
    assert _resume(out, "--steps", "4", "--quiet", "--tensorboard") == 0
    assert len(list((out / "tensorboard").iterdir())) == 2
    assert "tensorboard" not in run_directory.read_config(out)
    assert _run(out, "--steps", "1", "--quiet", "--overwrite") == 0
    assert not (out / "tensorboard").exists()


def test_without_the_extra_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"pip install 'vfejax\[tensorboard\]'"):
        _run(tmp_path / "run", "--tensorboard")
    assert not (tmp_path / "run").exists()

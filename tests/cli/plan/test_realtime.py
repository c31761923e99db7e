"""``vfejax plan --realtime``: what it reads, prints and keeps. Whether it is in time is for
benchmarks: these tests hold on a machine of any load.
"""

import json
import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.cli.main import main
from vfejax.cli.plan import problem as plan_problem
from vfejax.cli.plan import realtime
from vfejax.cli.plan.config import PlanConfig
from vfejax.cli.plan.sensors import Observed, World, parse_line
from vfejax.inference.anytime import AnytimeAgent, Choice
from vfejax.runs.directory import read_config

MAZE = ("--env", "tmaze", "--horizon", "1", "--realtime", "50")


def test_a_run_acts_in_its_world_and_keeps_report_summary_and_status(tmp_path, capsys):
    out = tmp_path / "run"
    options = ("--duration", "0.6", "--length", "3", "--max-age", "60", "--temperature", "0")
    assert main(["plan", *MAZE, *options, "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["cycles"] + summary["skipped"] == 30
    assert summary["missing"] == 0
    assert summary["episodes"] == -(-summary["cycles"] // 3)
    assert sum(summary["cycles_by_depth"].values()) == summary["cycles"]
    assert list(summary["cycles_by_depth"]) == ["1", "0"]
    status = json.loads((out / "status.json").read_text())
    assert (status["state"], status["cycles"]) == ("ended", summary["cycles"])
    assert status["free_energy"] >= 0
    assert abs(status["free_energy_fall"]) < 1e-5
    assert (out / "figures/latency.png").exists()
    assert read_config(out)["realtime"] == 50
    said = capsys.readouterr()
    assert f"{summary['cycles']} cycles at" in said.out
    assert "50 cycles a second until 0.6 s are over" in said.err
    assert main(["plan", "--resume", "--out", str(out)]) == 2
    assert "--overwrite in its place" in capsys.readouterr().err


@pytest.fixture
def standard_input(monkeypatch):
    """Give these bytes to the command as standard input."""
    opened = []

    def give(content):
        reader, writer = os.pipe()
        opened.append(reader)

        def fill():
            with os.fdopen(writer, "wb") as file:
                file.write(content)

        threading.Thread(target=fill, daemon=True).start()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: reader))

    yield give
    for descriptor in opened:
        os.close(descriptor)


def test_lines_of_standard_input_are_observations_and_actions_are_printed(
    tmp_path, capsys, standard_input
):
    standard_input(b"0 0 0\n4 0 0\n\n0,0\n0 - -\n")
    out = tmp_path / "run"
    assert main(["plan", *MAZE, "--sensor", "stdin", "--max-age", "60", "--out", str(out)]) == 0
    summary = json.loads((out / "summary.json").read_text())
    said = capsys.readouterr()
    header, *rows = said.out.splitlines()
    assert header == "cycle,action,free_energy"
    assert [row.split(",")[0] for row in rows] == [str(i) for i in range(summary["cycles"])]
    assert {row.split(",")[1] for row in rows} <= {"0", "1", "2", "3"}
    assert (summary["lines"], summary["lines_skipped"]) == (2, 2)
    used = summary["cycles"] - summary["missing"]
    assert used + summary["lines_replaced"] == 2
    assert "line 2: '4' is no observation of modality 0, 0 to 3; skipped" in said.err
    assert "line 4: has 2 values where there are 3 modalities; skipped" in said.err
    assert "report: " in said.err


def test_standard_input_without_an_observation_is_one_line(tmp_path, capsys, standard_input):
    standard_input(b"")
    assert main(["plan", *MAZE, "--sensor", "stdin", "--quiet", "--out", str(tmp_path / "r")]) == 2
    said = capsys.readouterr().err
    assert said == "vfejax plan: --sensor stdin: standard input has no observation\n"
    assert json.loads((tmp_path / "r/status.json").read_text())["state"] == "ended"


def test_lines_give_a_mask_and_what_does_not_fit_is_named():
    observed, mask = parse_line("2,- 0", (3, 2, 1))
    assert (observed.seen.tolist(), mask.tolist()) == ([2, 0, 0], [True, False, True])
    assert observed.seen.dtype == np.int32
    for text in ("3 0 0", "-1 0 0", "1.0 0 0", "0 0 \N{SUPERSCRIPT TWO}", "9" * 30 + " 0 0"):
        with pytest.raises(ValueError, match=r"is no observation of modality [02], 0 to"):
            parse_line(text, (3, 2, 1))


def test_the_world_moves_as_the_agent_acts_and_begins_again_and_nothing_is_compiled(caplog):
    config = PlanConfig(env="tmaze", length=2)
    world = World(config, plan_problem.build(config), jax.random.key(0))
    choices = [Choice(jnp.array([a, 0]), (), jnp.zeros(()), jnp.zeros(())) for a in (3, 3, 1, 3, 0)]
    places, begins = [], []
    with jax.log_compiles():
        for choice in choices:
            reading = world.sense()
            places.append(int(np.asarray(reading.observation.seen)[0]))
            begins.append(bool(reading.observation.begins))
            world.act(choice)
    assert "compil" not in caplog.text.lower()
    assert places == [0, 3, 0, 1, 0]
    assert begins == [True, False, True, False, True]
    assert world.episodes == 3
    assert world.successes <= 1


def test_an_agent_knows_nothing_at_the_beginning_of_an_episode():
    agent = AnytimeAgent(lambda: jnp.array([0.5]), ())
    step = realtime._in_episodes(agent, lambda state, seen, key, mask: (state, seen))
    for begins, state in ((True, 0.5), (False, 0.9)):
        observed = Observed(jnp.array([1]), jnp.array(begins))
        after, _ = step(jnp.array([0.9]), observed, jax.random.key(0), jnp.array([True]))
        assert float(after[0]) == state


def test_options_that_do_not_fit_are_refused(tmp_path, refused):
    for arguments, piece in (
        (["--realtime", "0"], "--realtime 0.0: must be positive"),
        (["--realtime", "60", "--duration=-1"], "--duration -1.0: must be positive"),
        (["--realtime", "0.1", "--duration", "4"], "at least one cycle of --realtime 0.1"),
        (["--realtime", "60", "--learn", "A"], "--learn A: must be left out with --realtime"),
        (["--realtime", "60", "--batch", "2"], "--batch 2: must be left out with --realtime"),
        (["--sensor", "stdin"], "--sensor stdin: must be left out without --realtime"),
        (["--max-age", "1"], "--max-age 1.0: must be left out without --realtime"),
    ):
        refused(tmp_path / "run", arguments, piece, command="plan")


@pytest.mark.slow
def test_ctrl_c_is_the_usual_end_of_a_run_without_a_duration(tmp_path, start_process):
    out = tmp_path / "run"
    process = start_process(*MAZE, "--out", out, command="plan")
    for _ in range(600):
        if (out / "status.json").exists():
            break
        time.sleep(0.1)
    assert json.loads((out / "status.json").read_text())["state"] == "running"
    process.send_signal(signal.SIGINT)
    said, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert "success rate" in said
    assert json.loads((out / "status.json").read_text())["state"] == "ended"
    assert (out / "report.html").exists()

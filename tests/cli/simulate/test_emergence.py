"""``vfejax simulate --emergence``: meta-agents that form during a run, and all that it tells."""

import contextlib
import io
import json
import os
import shutil
import signal
import time
from types import SimpleNamespace

import chex
import numpy as np
import pytest

from vfejax.agents.hierarchy import Scales
from vfejax.cli.main import main
from vfejax.cli.simulate import group_accuracy, problem
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.cli.simulate.grouped_pictures import history
from vfejax.cli.simulate.memberships import changes
from vfejax.data import hierarchy_arrays, population_arrays
from vfejax.errors import UserError
from vfejax.problems.scenes import adjusted_rand_index
from vfejax.runs import checkpoint
from vfejax.runs.events import KINDS, Event, read_events
from vfejax.runs.load import load
from vfejax.runs.metrics import read_metrics

STEPS = 24
# Three scenes, and slots for two groups. Long steps and lax criteria, so that in a few steps groups
# form, lose members, dissolve, find no slot, and form a group of their own.
FLAGS = [
    *("--emergence", "2", "1", "--scenes", "3", "--agents", "12", "--irreps", "1"),
    *("--step-size", "0.1", "--trust-radius", "1", "--meta.threshold", "2"),
    *("--meta.diameter", "4", "--meta.release", "1"),
    *("--steps", str(STEPS), "--log-every", "4", "--checkpoint-every", "8"),
    *("--meta.detect-from", "10", "--meta.detect-every", "3"),
    # Meta-agents that pull at one another, and so come apart.
    *("--meta.alignment", "weighted", "--meta.bottom-up", "10"),
]


@pytest.fixture(scope="module")
def said():
    """What the run of ``finished`` says on standard output and standard error."""
    return io.StringIO(), io.StringIO()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, said):
    out = tmp_path_factory.mktemp("emergence") / "run"
    with contextlib.redirect_stdout(said[0]), contextlib.redirect_stderr(said[1]):
        assert main(["simulate", "--out", str(out), *FLAGS]) == 0
    return out


def _same(out, unbroken):
    for name in ("metrics.csv", "events.csv", "config.toml"):
        assert (out / name).read_bytes() == (unbroken / name).read_bytes()
    found, wanted = (population_arrays.load_npz(run / "final.npz") for run in (out, unbroken))
    assert found.keys() == wanted.keys()
    assert all(found[name].tobytes() == wanted[name].tobytes() for name in wanted)
    old, new = (json.loads((run / "summary.json").read_text()) for run in (unbroken, out))
    assert old["groups"] == new["groups"]


def test_events_lead_to_the_hierarchy_at_the_end(finished):
    arrays = population_arrays.load_npz(finished / "final.npz")
    hierarchy, scales = hierarchy_arrays.from_arrays(arrays, dtype=np.float32)
    assert scales == Scales(12, (2, 1))
    events = read_events(finished)
    assert {event.event for event in events} == set(KINDS)
    assert {event.scale for event in events} == {1, 2}
    looks = set(range(12, STEPS + 1, 3))
    assert {event.step for event in events} <= looks
    _, parent, active = history(events, scales, [0, STEPS])
    np.testing.assert_array_equal(parent[-1], hierarchy.parent)
    np.testing.assert_array_equal(active[-1], hierarchy.active)
    assert load(finished).events == tuple(events)


def test_an_event_of_a_row_that_is_not_there_is_refused():
    with pytest.raises(UserError, match="row 7 at step 5, and the run has rows 0 to 2"):
        history([Event(5, "condensation", 1, 2, (0, 7))], Scales(2, (1,)), [0, 9])


def test_metrics_tell_of_every_scale(finished):
    metrics = read_metrics(finished)
    chex.assert_tree_all_finite(metrics)
    assert metrics["step"].tolist() == list(range(0, STEPS + 1, 4))
    # Sums of a few float32 numbers.
    scales = sum(metrics[f"energy_scale_{s}"] for s in range(3))
    np.testing.assert_allclose(scales, metrics["total"], rtol=1e-5)
    arrays = population_arrays.load_npz(finished / "final.npz")
    for s in (1, 2):
        count = np.sum(arrays["active"] & (arrays["scale"] == s))
        assert metrics[f"meta_agents_{s}"][-1] == count
    assert metrics["meta_agents_1"][metrics["step"] < 12].max() == 0
    formed = (metrics["step"] > 12) & (metrics["meta_agents_1"] > 0)
    for name in ("information_1_to_0", "information_0_to_1"):
        assert np.any(metrics[name][formed] != 0)
        assert not np.any(metrics[name][metrics["step"] < 12])
    assert np.all(metrics["attention_entropy_0"] > 0)
    assert np.all(metrics["effective_rank_0"] >= 1)
    assert np.any(metrics["modularity_0"] != metrics["modularity_0"][0])


def test_summary_scores_groups_against_scenes_and_spectral_clustering(finished, said):
    summary = json.loads((finished / "summary.json").read_text())
    rows = summary["groups"]
    arrays = population_arrays.load_npz(finished / "final.npz")
    scene = problem.build(SimulateConfig(scenes=3, agents=12, irreps=(1,))).scene
    found = group_accuracy.partition(arrays["parent"], 12, 1)
    this = rows["this run, scale 1"]
    assert this["adjusted_rand_index"] == adjusted_rand_index(found, scene)
    assert this["agents"] == np.sum(found >= 12)
    assert rows["truth"] == {"groups": 3, "agents": 12, "adjusted_rand_index": 1.0}
    (spectral,) = [row for name, row in rows.items() if "spectral" in name]
    assert -1 <= spectral["adjusted_rand_index"] <= 1
    assert "adjusted Rand index" in said[0].getvalue()
    errors = summary["errors"]
    assert errors["best possible (maximum likelihood)"]["landmark_error_m"] > 0


def test_exhausted_slots_are_told_once_and_in_the_report(finished, said):
    metrics = read_metrics(finished)
    assert metrics["refused"].sum() > 1
    assert said[1].getvalue().count("no free slot") == 1
    assert (finished / "report.html").read_text().count("no free slot") == 1


def test_report_says_whose_rotations_count(finished):
    page = (finished / "report.html").read_text()
    assert "Share of pairs of agents that see the same scene whose relative rotation" in page


def test_pictures_are_those_of_meta_agents(finished):
    names = {path.stem for path in (finished / "figures").iterdir()}
    assert {"hierarchy", "meta_agents", "energy_scales", "information"} <= names


def test_a_finished_run_resumed_stays_as_it_is(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "copy")
    with open(out / "events.csv", "ab") as file:
        file.write(b"25,departure,1,12,0\n26,depar")
    assert main(["simulate", "--out", str(out), "--resume", "--quiet"]) == 0
    _same(out, finished)
    report = (out / "report.html").read_text()
    assert report.count("no free slot") == 1


@pytest.mark.slow  # draws the pictures again
def test_events_that_were_lost_are_told(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "copy")
    assert "lines of the file are missing" not in (out / "report.html").read_text()
    (out / "events.csv").unlink()
    assert main(["simulate", "--out", str(out), "--resume", "--quiet"]) == 0
    assert "lines of the file are missing" in (out / "report.html").read_text()


@pytest.mark.slow  # tests/runs/test_events.py loses a checkpoint of a loop with events by default
def test_a_run_goes_on_bit_for_bit(finished, tmp_path):
    out = shutil.copytree(finished, tmp_path / "copy")
    for folder in (out / "checkpoints").iterdir():
        if int(folder.name) > 8:
            shutil.rmtree(folder)
    assert checkpoint.latest_step(out) == 8
    # Half a line, as a kill in the middle of a write leaves it.
    with open(out / "events.csv", "ab") as file:
        file.write(b"24,depar")
    assert main(["simulate", "--out", str(out), "--resume", "--quiet"]) == 0
    _same(out, finished)


@pytest.mark.slow
def test_after_kill_9_a_run_goes_on_bit_for_bit(finished, start_process, tmp_path):
    out = tmp_path / "run"
    process = start_process("--out", out, *FLAGS)
    deadline = time.monotonic() + 300
    while (checkpoint.latest_step(out) or 0 if out.exists() else 0) < 8:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert main(["simulate", "--out", str(out), "--resume", "--quiet"]) == 0
    _same(out, finished)


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--precision float64 --base ring --grid 4 --support smooth --irreps 1 "
        "--meta.threshold 50 --meta.diameter 100 --meta.clock information --meta.nats 0.1",
        "--scenes 2 --alignment entropic --irreps 1 1 --meta.every 2 3 --meta.hyperprior-depth 1 "
        "--meta.blend 0.5 --meta.prior-threshold 1 --meta.max-members 3 "
        "--weights.prior-alignment 1 --prior-temperature 2",
    ],
)
def test_variants_run_to_the_end_with_finite_numbers(flags, tmp_path):
    out = tmp_path / "run"
    few = "--emergence 2 1 --agents 6 --steps 8 --log-every 4 --checkpoint-every 4 --quiet"
    looks = "--meta.detect-from 0 --meta.detect-every 2"
    assert main(["simulate", "--out", str(out), *few.split(), *looks.split(), *flags.split()]) == 0
    chex.assert_tree_all_finite(read_metrics(out))
    arrays = population_arrays.load_npz(out / "final.npz")
    chex.assert_type(arrays["mu_q"], np.float64 if "float64" in flags else np.float32)
    hierarchy_arrays.from_arrays(arrays, dtype=arrays["mu_q"].dtype)


@pytest.mark.slow
def test_own_observations_along_a_neighbour_list_form_their_groups(tmp_path):
    """Measurements at 1 m and at 4 m, which no rotation makes alike, and a ring of neighbours."""
    length = np.array([1, 4, 1, 4, 1, 4])
    rows = [f"{agent},{far},0,0" for agent, far in enumerate(length)]
    observations = tmp_path / "observations.csv"
    observations.write_text("\n".join(["agent,o0,o1,o2", *rows]))
    ring = [f"{i},{(i + step) % 6}" for i in range(6) for step in (1, 5)]
    edges = tmp_path / "edges.csv"
    edges.write_text("\n".join(["receiver,sender", *ring]))
    out = tmp_path / "run"
    flags = [
        *("--observations", str(observations), "--edges", str(edges), "--irreps", "1"),
        *("--emergence", "3", "--meta.detect-from", "0", "--meta.detect-every", "4"),
        *("--steps", "8", "--log-every", "4", "--checkpoint-every", "4", "--quiet"),
    ]
    assert main(["simulate", "--out", str(out), *flags]) == 0
    chex.assert_tree_all_finite(read_metrics(out))
    arrays = population_arrays.load_npz(out / "final.npz")
    found = group_accuracy.partition(arrays["parent"], 6, 1)
    assert np.all(found >= 6)
    assert adjusted_rand_index(found, length) == 1.0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["groups"] == {"this run, scale 1": {"groups": 2, "agents": 6}}


def test_events_name_who_left_what_went_and_what_formed():
    scales = Scales(5, (3, 1))
    start = np.array([5, 5, 6, 6, 4, 8, 8, 8, 8])
    parents = np.array([start, [0, 7, 5, 5, 7, 5, 6, 7, 8]])
    rows = np.arange(9)
    infos = SimpleNamespace(
        parent=parents,
        dissolved=SimpleNamespace(
            left=np.array([rows < 0, np.isin(rows, (0, 7))]),
            dissolved=np.array([rows < 0, np.isin(rows, (5, 6, 8))]),
        ),
        condensed=SimpleNamespace(
            formed=np.array([rows < 0, rows == 5]),
            adopted=np.array([rows < 0, np.isin(rows, (1, 4))]),
        ),
    )
    found, after = changes(20, infos, start, scales)
    assert found == [
        (20, "departure", 1, 5, (0,)),
        (20, "dissolution", 1, 5, (1,)),
        (20, "dissolution", 1, 6, (2, 3)),
        (20, "departure", 2, 8, (5, 6, 7)),
        (20, "dissolution", 2, 8, ()),
        (20, "adoption", 1, 7, (1, 4)),
        (20, "condensation", 1, 5, (2, 3)),
    ]
    np.testing.assert_array_equal(after, parents[-1])


def test_arrays_that_make_no_hierarchy_are_refused(finished):
    arrays = population_arrays.load_npz(finished / "final.npz")
    for changed, piece in (
        ({"scale": arrays["scale"][::-1]}, "scale must rise"),
        ({"parent": np.full_like(arrays["parent"], 3)}, "no active row one scale up"),
        ({"parent": arrays["parent"] - 99}, "rows from 0"),
        ({"active": arrays["scale"]}, "active must have shape"),
        ({"supports": np.full(arrays["parent"].shape, 1.5)}, "supports must hold numbers from 0"),
        ({"supports": np.full(arrays["parent"].shape, np.nan)}, "supports must hold numbers"),
    ):
        with pytest.raises(UserError, match=piece):
            hierarchy_arrays.from_arrays(arrays | changed, dtype=np.float32)
    with pytest.raises(UserError, match="array parent is missing"):
        hierarchy_arrays.from_arrays({"mu_q": arrays["mu_q"]}, dtype=np.float32)


@pytest.mark.parametrize(
    ("flags", "pieces"),
    [
        ("--emergence 0", ("--emergence 0", "at least 1")),
        ("--emergence", ("--emergence", "such as 8 2")),
        ("--emergence 2147483647", ("2147483647", "GiB", "fill at most 32")),
        ("--emergence 9 --meta.min-members 65", ("--emergence 9", "takes at least 65 agents;")),
        ("--emergence 4 -1", ("--emergence", "-1")),
        ("--emergence 2 --meta.min-members 1", ("--meta.min-members 1", "at least 2")),
        ("--emergence 2 --meta.release 0.5", ("--meta.release 0.5", "at least 1")),
        ("--emergence 2 --meta.threshold 0", ("--meta.threshold 0.0", "positive")),
        ("--emergence 2 --meta.blend 1.5", ("--meta.blend 1.5", "from 0 to 1")),
        ("--emergence 2 --meta.max-members 1", ("--meta.max-members 1", "--meta.min-members 2")),
        ("--emergence 2 1 --meta.every 1 2 3", ("--meta.every 1 2 3", "or 2, one for each")),
        ("--emergence 2 --meta.clock sundial", ("--meta.clock", "sundial")),
        (
            "--emergence 2 --dynamics hamiltonian",
            ("--emergence 2", "--dynamics hamiltonian", "--dynamics natural"),
        ),
        ("--emergence 2 --compute-dtype bfloat16", ("--compute-dtype bfloat16", "--emergence 2")),
        (
            "--emergence 2 --coordinator a:1 --processes 2 --process 0",
            ("--emergence 2", "left out with --processes 2"),
        ),
        ("--emergence 4 2 1 1 --agents 8", ("--emergence 4 2 1 1", "scale 4", "16 agents")),
        (
            "--emergence 2 --temperature 0.1",
            ("--meta.final-temperature 0.3", "at most --temperature 0.1"),
        ),
        ("--scenes 0", ("--scenes 0", "at least 1")),
        ("--scenes 5 --agents 8", ("--scenes 5", "--agents 8")),
        ("--scenes 2 --base ring --grid 4", ("--scenes 2", "--base ring")),
        ("--scenes 2 --initial p.npz", ("--scenes 2", "--initial")),
    ],
)
def test_options_that_do_not_fit_are_refused(flags, pieces, refused, tmp_path):
    refused(tmp_path / "run", flags.split(), *pieces)
    assert not (tmp_path / "run").exists()

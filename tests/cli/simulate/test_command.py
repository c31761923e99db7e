"""``vfejax simulate``: what a run leaves behind, and every bad input as one line."""

import dataclasses
import hashlib
import json
import math
import re
import shutil
import tomllib
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.tiny_run import TINY

from vfejax.agents import inertia
from vfejax.agents.population import Population, unconstrain
from vfejax.beliefs.gaussian import Gaussian
from vfejax.cli import options as configuration
from vfejax.cli.main import main
from vfejax.cli.simulate import problem as simulate_problem
from vfejax.cli.simulate import report as simulate_report
from vfejax.cli.simulate.config import SimulateConfig
from vfejax.data import population_arrays
from vfejax.runs import checkpoint
from vfejax.runs import directory as run_directory
from vfejax.runs.load import load
from vfejax.runs.metrics import read_metrics

TERMS = ("self_coupling", "belief_alignment", "prior_alignment", "observation", "total")


def _run(out, *arguments):
    return main(["simulate", "--out", str(out), *TINY, *map(str, arguments)])


def _contents(folder):
    """Digest of every file below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def _named(rows, piece):
    """The one row of the summary's errors whose name holds ``piece``."""
    (row,) = [row for name, row in rows.items() if piece in name]
    return row


@pytest.fixture(scope="module")
def finished(tmp_path_factory, drawn):
    """A run with its pictures drawn, coarsely; tests that change anything work on a copy."""
    out = tmp_path_factory.mktemp("finished") / "run"
    with drawn():
        assert _run(out) == 0
    return out


@pytest.fixture
def copied(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "copy")


# What a run leaves behind.


def test_run_directory_holds_what_it_promises(finished):
    names = {path.name for path in finished.iterdir()}
    promised = {
        "config.toml",
        "environment.json",
        "metrics.csv",
        "checkpoints",
        "figures",
        "report.html",
    }
    assert promised | {"summary.json", "initial.npz", "final.npz"} <= names
    assert checkpoint.steps(finished) == [0, 2, 4]
    pictures = list((finished / "figures").iterdir())
    assert len(pictures) >= 5
    assert all(path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n") for path in pictures)


def test_metrics_have_every_term_at_every_logged_step(finished):
    metrics = read_metrics(finished)
    assert set(metrics) == {"step", *TERMS, "landmark_error_m", "rotation_error_deg"}
    assert metrics["step"].tolist() == [0, 2, 4]
    chex.assert_tree_all_finite(metrics)
    # Sums of a few float32 numbers.
    parts = sum(metrics[name] for name in TERMS[:-1])
    np.testing.assert_allclose(metrics["total"], parts, rtol=1e-6)
    assert metrics["total"][-1] < metrics["total"][0]


def test_final_state_loads_as_a_population_that_moved(finished):
    initial, final = (
        population_arrays.load_npz(finished / f"{name}.npz") for name in ("initial", "final")
    )
    population = population_arrays.from_arrays(final)
    chex.assert_shape([population.belief.mean, population.phi], (4, 3))
    chex.assert_type(final["mu_q"], np.float32)
    assert not np.array_equal(initial["mu_q"], final["mu_q"])
    np.testing.assert_array_equal(initial["Sigma_p"], final["Sigma_p"])


def test_a_run_is_read_in_python(finished):
    run = load(finished)
    assert run.config["steps"] == 4
    assert run.metrics["total"][-1] == run.summary["final_energy_nats"]


def test_summary_holds_errors_against_alone_and_best(finished):
    summary = json.loads((finished / "summary.json").read_text())
    metrics = read_metrics(finished)
    assert summary["agents"] == 4
    assert summary["steps"] == 4
    assert summary["final_energy_nats"] == metrics["total"][-1]
    assert summary["seconds"] > 0
    rows = summary["errors"]
    for name in ("landmark_error_m", "rotation_error_deg"):
        assert _named(rows, "this run")[name] == pytest.approx(metrics[name][-1], rel=1e-12)
        assert 0 < _named(rows, "best possible")[name] < _named(rows, "alone")[name]


def test_report_needs_no_other_file_and_has_every_figure(finished):
    page = (finished / "report.html").read_text()
    sources = re.findall(r"""(?:src|href)\s*=\s*["']([^"']*)""", page)
    assert all(source.startswith(("data:", "#")) for source in sources)
    assert "@import" not in page
    assert "url(" not in page
    assert page.count("data:image/png;base64,") == len(list((finished / "figures").iterdir()))
    assert "maximum likelihood" in page
    assert "One landmark looks the same however a sensor is turned about it" in page
    # The default is three, which tell the rotations.
    assert simulate_report._error_notes(SimulateConfig(), {"errors": {}}) == []
    assert "Share of pairs of agents whose relative rotation" in page


@pytest.mark.slow  # by default of a training, in tests/cli/train
def test_configuration_is_complete_and_runs_again_to_the_last_digit(finished, tmp_path):
    stored = tomllib.loads((finished / "config.toml").read_text())
    session = {"out", "config", "overwrite", "resume", "quiet", "tensorboard"}
    session |= {"coordinator", "processes", "process"}
    fields = {field.name for field in dataclasses.fields(SimulateConfig)}
    assert set(stored) == fields - session - {
        "observations",
        "observation_matrix",
        "initial",
        "edges",
        "prior_temperature",  # none of its own, so that it is left out
    }
    again = tmp_path / "again"
    assert main(["simulate", "--config", str(finished / "config.toml"), "--out", str(again)]) == 0
    for name in ("metrics.csv", "config.toml"):
        assert (again / name).read_bytes() == (finished / name).read_bytes()
    final, repeated = (population_arrays.load_npz(run / "final.npz") for run in (finished, again))
    chex.assert_trees_all_equal(repeated, final)


def test_prints_summary_and_place_of_the_report(finished, printed):
    output, errors = (text.getvalue() for text in printed)
    assert str(finished / "report.html") in output
    assert all(piece in output for piece in ("free energy", "alone", "this run", "best possible"))
    assert "4/4" in errors


def test_zero_steps_write_a_whole_run(tmp_path):
    assert _run(tmp_path / "run", "--steps", 0) == 0
    assert read_metrics(tmp_path / "run")["step"].tolist() == [0]
    initial, final = (
        population_arrays.load_npz(tmp_path / "run" / f"{name}.npz")
        for name in ("initial", "final")
    )
    # Through the coordinates and back: a few roundings.
    np.testing.assert_allclose(final["Sigma_q"], initial["Sigma_q"], rtol=1e-5, atol=1e-7)
    assert (tmp_path / "run" / "report.html").is_file()


@pytest.mark.parametrize(
    "flags",
    [
        "--agents 4 --irreps 1",
        pytest.param("--agents 16", marks=pytest.mark.slow),
    ],
)
def test_default_problem_comes_close_to_maximum_likelihood(flags, tmp_path):
    out = tmp_path / "run"
    cadence = ("--steps", "300", "--log-every", "300", "--checkpoint-every", "300")
    arguments = [*flags.split(), *cadence, "--quiet"]
    assert main(["simulate", "--out", str(out), *arguments]) == 0
    rows = json.loads((out / "summary.json").read_text())["errors"]
    this, best, alone = (_named(rows, piece) for piece in ("this run", "best possible", "alone"))
    for name in ("landmark_error_m", "rotation_error_deg"):
        assert this[name] < 1.3 * best[name]
        assert this[name] < 0.7 * alone[name]


# Every option that takes another path through the program, once. By default the tests above and
# below run natural and Hamiltonian dynamics, and a field over a grid.


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--base ring --grid 5 --support sharp --support-radius 1.5 "
        "--dynamics adam --step-size 1e-3 --alignment entropic",
        "--base torus --grid 3 3 --support smooth --support-radius 2.5 --dynamics natural "
        "--precision float64 --weights.prior-alignment 1 --rates.prior-mean 1",
        "--compute-dtype bfloat16 --irreps 1 1",
    ],
)
def test_variants_run_to_the_end_with_finite_numbers(flags, tmp_path):
    out = tmp_path / "run"
    # optax's Adam raises Python floats to integer arrays, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard" if "adam" in flags else "strict"):
        assert _run(out, *flags.split()) == 0
    metrics = read_metrics(out)
    assert metrics["step"].tolist() == [0, 2, 4]
    chex.assert_tree_all_finite(metrics)
    final = population_arrays.load_npz(out / "final.npz")
    chex.assert_type(final["mu_q"], np.float64 if "float64" in flags else np.float32)
    grid = {"ring": (5,), "torus": (3, 3)}.get(flags.split()[1], ())
    chex.assert_shape(final["phi"], (4, *grid, 3))
    before = population_arrays.load_npz(out / "initial.npz")
    assert ("prior-mean" in flags) == (not np.array_equal(before["mu_p"], final["mu_p"]))


@pytest.mark.parametrize(
    ("flags", "rounding"),
    [
        ("--step-size 0.005", 1e-6),
        pytest.param(
            "--scheme yoshida4 --step-size 0.02 --precision float64", 1e-12, marks=pytest.mark.slow
        ),
    ],
)
def test_hamiltonian_run_keeps_its_energy(flags, rounding, tmp_path):
    out = tmp_path / "run"
    assert _run(out, "--dynamics", "hamiltonian", *flags.split()) == 0
    metrics = read_metrics(out)
    assert metrics["kinetic"][0] == 0.0
    assert metrics["kinetic"][-1] > 1.0
    np.testing.assert_allclose(
        metrics["hamiltonian"], metrics["total"] + metrics["kinetic"], rtol=rounding
    )
    drift = np.abs(metrics["hamiltonian"] - metrics["hamiltonian"][0]).max()
    # Fourth order: far below the energy that has changed hands.
    assert drift < 1e-2 * metrics["kinetic"][-1]
    assert json.loads((out / "summary.json").read_text())[
        "largest_energy_drift_nats"
    ] == pytest.approx(drift)


@pytest.fixture
def light_mass(monkeypatch):
    """A mass of the mean alone in place of that of the beliefs, which takes long to compile."""

    def light(energy_fn, kinetic_fn, group, step_size, friction, *, scheme, has_aux):
        def kinetic(x, p):
            squares = jnp.sum(p.belief.mean**2, axis=-1)
            return 5e-3 * jnp.sum(squares * (1 + jnp.sum(x.belief.mean**2, axis=-1)))

        def held(x):
            return energy_fn(inertia.hold(x, "prior", "phi"))

        return scheme(held, kinetic, step_size, friction, has_aux=has_aux)

    monkeypatch.setattr(simulate_problem, "inertial_flow", light)


INERTIA = ("--dynamics", "hamiltonian", "--mass", "belief", "--quiet")


@pytest.mark.usefixtures("light_mass")
def test_an_implicit_step_that_is_not_solved_ends_in_one_error(refused, tmp_path):
    out = tmp_path / "run"
    advice = ("did not converge at step", "--resume", "smaller --step-size", str(out))
    refused(out, [*TINY, *INERTIA, "--step-size", "50"], *advice)
    assert read_metrics(out)["solver_residual"].tolist() == [0.0]


@pytest.mark.slow
@pytest.mark.usefixtures("light_mass")
def test_a_shorter_step_goes_on_where_one_was_not_solved(refused, tmp_path):
    """The remedy of the error above."""
    out = tmp_path / "run"
    refused(out, [*TINY, *INERTIA, "--step-size", "50"], "did not converge at step")
    assert main(["simulate", "--out", str(out), "--resume", "--quiet", "--step-size", "0.002"]) == 0
    metrics = read_metrics(out)
    assert metrics["step"].tolist() == [0, 2, 4]
    # The tolerance of float32, eps^(3/4).
    assert metrics["solver_residual"].max() < 7e-6
    assert metrics["kinetic"][-1] > 0


@pytest.mark.slow  # tests/problems/test_inertial_flow.py has a step that is too long for this mass
def test_a_run_with_the_mass_of_the_beliefs_keeps_its_energy_and_goes_on_bit_for_bit(tmp_path):
    out, stopped = tmp_path / "run", tmp_path / "stopped"
    assert _run(out, *INERTIA, "--step-size", "0.002") == 0
    metrics = read_metrics(out)
    assert metrics["step"].tolist() == [0, 2, 4]
    assert metrics["kinetic"][-1] > 1.0
    drift = np.abs(metrics["hamiltonian"] - metrics["hamiltonian"][0]).max()
    assert drift < 1e-2 * metrics["kinetic"][-1]
    # The tolerance of float32, eps^(3/4).
    assert 0 < metrics["solver_residual"].max() < 7e-6
    summary = json.loads((out / "summary.json").read_text())
    assert summary["largest_solver_residual"] == metrics["solver_residual"].max()
    initial, final = (
        population_arrays.load_npz(out / f"{name}.npz") for name in ("initial", "final")
    )
    np.testing.assert_array_equal(initial["mu_p"], final["mu_p"])
    assert not np.array_equal(initial["phi"], final["phi"])

    shutil.copytree(out, stopped)
    checkpoint.discard_after(stopped, 2)
    (stopped / "final.npz").unlink()
    assert main(["simulate", "--out", str(stopped), "--resume", "--quiet"]) == 0
    assert (stopped / "metrics.csv").read_bytes() == (out / "metrics.csv").read_bytes()
    again = population_arrays.load_npz(stopped / "final.npz")
    assert again.keys() == final.keys()
    assert all(again[name].tobytes() == final[name].tobytes() for name in final)


@pytest.mark.slow
def test_fields_move_with_the_mass_of_the_beliefs_by_the_midpoint_rule_under_friction(tmp_path):
    out = tmp_path / "run"
    field = "--base ring --grid 3 --support smooth --support-radius 2.5 --masses.frames 300"
    flags = "--scheme midpoint --friction 1 --precision float64 --step-size 0.001"
    assert _run(out, *INERTIA, *field.split(), *flags.split()) == 0
    metrics = read_metrics(out)
    chex.assert_tree_all_finite(metrics)
    # Friction c takes 2 c K a second. Under a constant force the rule of Simpson has the exact
    # integral of the kinetic energy K; the force changes by a few per cent.
    taken = 2 * 1 * 0.004 / 6 * np.dot([1, 4, 1], metrics["kinetic"])
    change = metrics["hamiltonian"][-1] - metrics["hamiltonian"][0]
    np.testing.assert_allclose(change, -taken, rtol=0.05)


# One's own data.


def _table(path, rng, num_agents, width, points=None):
    header = ["agent", *([] if points is None else ["point"]), *(f"o{i}" for i in range(width))]
    lines = [",".join(header)]
    for agent in range(num_agents):
        for point in (None,) if points is None else points:
            values = [f"{value:.6f}" for value in rng.normal(size=width)]
            lines.append(",".join([str(agent), *([] if point is None else [str(point)]), *values]))
    path.write_text("\n".join(lines) + "\n")
    return path


def _arrays(rng, num_agents=4, k=3, grid=()):
    spread = np.broadcast_to(np.eye(k), (num_agents, *grid, k, k)).copy()
    phi = 0.1 * rng.normal(size=(num_agents, *grid, 3))
    mean = rng.normal(size=(num_agents, *grid, k))
    return {"mu_q": mean, "Sigma_q": spread, "mu_p": 0 * mean, "Sigma_p": 2 * spread, "phi": phi}


def test_own_observations_with_edges(tmp_path, rng):
    table = _table(tmp_path / "o.csv", rng, 4, 2)
    (tmp_path / "c.csv").write_text("1,0,0\n0,1,0\n")
    (tmp_path / "e.csv").write_text("receiver,sender\n0,1\n1,2\n2,3\n3,0\n")
    out = tmp_path / "run"
    arguments = (
        "--observations",
        table,
        "--observation-matrix",
        tmp_path / "c.csv",
        "--edges",
        tmp_path / "e.csv",
    )
    assert _run(out, *arguments) == 0
    metrics = read_metrics(out)
    assert set(metrics) == {"step", *TERMS}
    assert metrics["belief_alignment"][0] != 0
    assert metrics["observation"][0] != 0
    chex.assert_shape(population_arrays.load_npz(out / "final.npz")["mu_q"], (4, 3))
    assert "errors" not in json.loads((out / "summary.json").read_text())
    assert tomllib.loads((out / "config.toml").read_text())["edges"] == str(tmp_path / "e.csv")


def test_own_observations_on_a_grid_reach_the_points_they_name(tmp_path, rng):
    table = _table(tmp_path / "o.csv", rng, 3, 3, points=(1,))
    config = SimulateConfig(observations=table, irreps=(1,), base="line", grid=(3,))
    means = np.asarray(simulate_problem.build(config).population.belief.mean)
    chex.assert_shape(means, (3, 3, 3))
    assert np.all(means[:, 1] != 0)
    assert np.all(means[:, [0, 2]] == 0)


@pytest.mark.slow
def test_own_data_under_another_group(tmp_path, rng):
    out = tmp_path / "run"
    table = _table(tmp_path / "o.csv", rng, 3, 4)
    assert _run(out, "--observations", table, "--group", "so", "--dimension", 4) == 0
    final = population_arrays.load_npz(out / "final.npz")
    chex.assert_shape([final["mu_q"], final["phi"]], [(3, 4), (3, 6)])


@pytest.mark.parametrize(
    ("precision", "rounding"),  # of covariances, through their factors and back
    [("float32", 1e-6), pytest.param("float64", 1e-14, marks=pytest.mark.slow)],
)
def test_own_population_alone(precision, rounding, tmp_path, rng):
    out = tmp_path / "run"
    arrays = {name: x.astype(precision) for name, x in _arrays(rng, grid=(2,)).items()}
    np.savez(tmp_path / "p.npz", **arrays)
    flags = ("--base", "line", "--grid", 2, "--precision", precision)
    assert _run(out, "--initial", tmp_path / "p.npz", *flags) == 0
    initial = population_arrays.load_npz(out / "initial.npz")
    chex.assert_trees_all_close(initial, arrays, rtol=rounding)
    assert np.all(read_metrics(out)["observation"] == 0)
    # A run's final state is another run's beginning.
    assert population_arrays.from_arrays(
        population_arrays.load_npz(out / "final.npz")
    ).phi.shape == (4, 2, 3)


# Bad input: one line that names the option or the file, status 2, nothing written.

_POSITIVE = (
    "agents",
    "measurements",
    "noise-std",
    "prior-std",
    "support-radius",
    "temperature",
    "prior-temperature",
    "step-size",
)
_BAD_VALUES = [
    *(
        (name, value)
        for name in (*_POSITIVE, "trust-radius", "log-every", "checkpoint-every")
        for value in ("0", "-1")
    ),
    *(
        (name, value)
        for name in ("noise-std", "temperature", "step-size", "friction")
        for value in ("nan", "inf")
    ),
    ("steps", "-1"),
    ("friction", "-0.5"),
    ("checkpoint-every", "15"),
    ("weights.observation", "-1"),
    ("weights.belief-alignment", "nan"),
    ("rates.frames", "inf"),
    ("rates.belief-mean", "-1"),
    ("masses.frames", "0"),
    ("masses.belief-cov", "nan"),
]


@pytest.mark.parametrize(
    ("name", "value"), _BAD_VALUES, ids=[f"{name} {value}" for name, value in _BAD_VALUES]
)
def test_values_out_of_range_are_refused_by_flag(name, value, refused, tmp_path):
    line = refused(tmp_path / "run", [f"--{name}", value], f" --{name} ", "must be")
    assert float(line.split(f"--{name} ")[1].split(":")[0]) == pytest.approx(
        float(value), nan_ok=True
    )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "pieces"),
    [
        ("--irreps 2", ("--irreps 2", "spin 1", "--observations")),
        ("--irreps -1", ("--irreps -1", "at least 0")),
        ("--irreps", ("--irreps", "at least 0")),
        ("--group so --dimension 1", ("--dimension 1", "at least 2")),
        ("--group so --dimension 4", ("--group so", "--observations")),
        ("--base ring", ("--grid not given", "ring", "needs one number of points")),
        ("--base plane --grid 3", ("--grid 3", "plane", "needs two numbers of points")),
        ("--grid 3", ("--grid 3", "point", "needs no points")),
        ("--observation-matrix c.csv", ("--observation-matrix", "c.csv", "without --observations")),
        ("--seed -1", ("--seed -1", "at least 0")),
        ("--mass belief", ("--mass belief", "without --dynamics hamiltonian")),
        ("--scheme midpoint", ("--scheme midpoint", "without --mass belief")),
        (
            "--dynamics hamiltonian --mass belief --scheme yoshida4",
            ("--scheme yoshida4", "verlet or midpoint with --mass belief"),
        ),
        (
            "--dynamics hamiltonian --mass belief --masses.belief-cov 3",
            ("--masses.belief-cov 3", "left out with --mass belief"),
        ),
        (
            "--dynamics hamiltonian --mass belief --weights.self-coupling 0"
            " --weights.belief-alignment 0 --weights.observation 0",
            ("--weights.self-coupling 0", "they need a mass"),
        ),
        ("--scenes 2 --contrast 1e30", ("not finite at the start", "check --contrast")),
        ("--temperature 1e-300", ("--temperature 1e-300", "1.2e-38")),
        ("--agents 2000000000", ("GiB", "--agents, --irreps or --grid")),
        ("--base ring --grid 2000000000", ("GiB", "--agents, --irreps or --grid")),
        ("--base line --grid 1", ("--grid 1", "at least 2")),
        ("--support sharp", ("--support sharp", "--base")),
        ("--config none.toml", ("none.toml", "no such file")),
        ("--observations none.csv", ("none.csv", "does not exist")),
        ("--initial none.npz", ("none.npz", "does not exist")),
        ("--edges none.csv", ("none.csv", "does not exist")),
        ("--resume", ("not a directory",)),
    ],
)
def test_options_that_do_not_fit_are_refused(flags, pieces, refused, tmp_path):
    refused(tmp_path / "run", flags.split(), *pieces)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "flags", "pieces"),
    [
        ("agent,o0,o1,o2\n0,1,2,3\n1,nan,2,3\n", "", ("line 3", "o0", "not finite")),
        ("agent,o0,o1,o2\n0,1,2,inf\n", "", ("line 2", "o2", "not finite")),
        ("agent,o0,o1,o2\n0,1,2,x\n", "", ("line 2", "o2", "not a number")),
        ("agent,o0,o1,o2\n0,1,2\n", "", ("line 2", "3 entries")),
        ("agent,o0,o1\n0,1,2\n", "", ("2 numbers", "k = 3", "--irreps")),
        ("agent,o0,o1,o2\n0,1,2,3\n", "--base ring --grid 3", ("'point'", "--base ring")),
        ("agent,point,o0,o1,o2\n0,3,1,2,3\n", "--base ring --grid 3", ("point 3", "3 points")),
        ("agent,o0,o1,o2\n1,1,2,3\n", "", ("agent 0",)),
        ("agent,o0,o1,o2\n0,1,2,3\n", "", ("1 agent", "at least 2")),
        ("agent,o0,o1,o2\n0,1,2,3\n1,1,2,1e300\n", "", ("1e+300", "--precision float64")),
    ],
    ids=["nan", "inf", "text", "short", "k", "no point", "point", "gap", "one", "large"],
)
def test_bad_observations_are_refused_by_file_and_place(content, flags, pieces, refused, tmp_path):
    table = tmp_path / "o.csv"
    table.write_text(content)
    refused(
        tmp_path / "run",
        ["--irreps", 1, "--observations", table, *flags.split()],
        str(table),
        *pieces,
    )
    assert not (tmp_path / "run").exists()


def test_files_that_do_not_fit_each_other_are_refused(refused, tmp_path, rng):
    np.savez(tmp_path / "p.npz", **_arrays(rng))
    table = _table(tmp_path / "o.csv", rng, 3, 3)
    (tmp_path / "c.csv").write_text("1,0\n0,1\n")
    (tmp_path / "e.csv").write_text("receiver,sender\n0,4\n")
    common = ["--irreps", 1, "--initial", tmp_path / "p.npz"]
    refused(
        tmp_path / "run", [*common, "--observations", table], "3 agents", "has 4", "o.csv", "p.npz"
    )
    refused(
        tmp_path / "run", [*common, "--edges", tmp_path / "e.csv"], "e.csv", "line 2", "0 and 3"
    )
    matrix = ["--irreps", 1, "--observations", table, "--observation-matrix", tmp_path / "c.csv"]
    refused(tmp_path / "run", matrix, "c.csv", "2 x 2", "3 x 3")
    assert not (tmp_path / "run").exists()


def _spoil(arrays, name):
    """One defect in a population."""
    match name:
        case "negative eigenvalue":
            arrays["Sigma_q"][2] = np.diag([1.0, -0.25, 1.0])
        case "singular":
            arrays["Sigma_p"][3] = np.diag([1.0, 0.0, 1.0])
        case "asymmetric":
            arrays["Sigma_q"][1, 0, 1] = 0.5
        case "nan":
            arrays["mu_q"][1, 0] = math.nan
        case "infinite":
            arrays["phi"][3, 2] = math.inf
        case "missing":
            del arrays["phi"]
        case "shape":
            arrays["mu_p"] = arrays["mu_p"][:3]
        case "generators":
            arrays["phi"] = arrays["phi"][:, :2]
        case _:
            assert name == "none"
    return arrays


@pytest.mark.parametrize(
    ("defect", "flags", "pieces"),
    [
        ("negative eigenvalue", "--irreps 1", ("Sigma_q", "agent 2", "-0.25")),
        ("singular", "--irreps 1", ("Sigma_p", "agent 3", "smallest eigenvalue 0")),
        ("asymmetric", "--irreps 1", ("Sigma_q", "agent 1", "symmetric")),
        ("nan", "--irreps 1", ("mu_q", "agent 1", "NaN")),
        ("infinite", "--irreps 1", ("phi", "agent 3", "infinity")),
        ("missing", "--irreps 1", ("phi", "missing")),
        ("shape", "--irreps 1", ("mu_p", "shape")),
        ("generators", "--irreps 1", ("phi", "2 components", "3 generators")),
        ("none", "--irreps 0 1", ("k = 3", "--irreps 0 1 gives 4")),
        ("none", "--group so --dimension 5", ("k = 3", "--dimension 5 gives 5")),
        ("none", "--irreps 1 --base ring --grid 3", ("p.npz", "grid", "ring")),
    ],
)
def test_bad_populations_are_refused_by_array_and_agent(
    defect, flags, pieces, refused, tmp_path, rng
):
    np.savez(tmp_path / "p.npz", **_spoil(_arrays(rng), defect))
    arguments = ["--initial", tmp_path / "p.npz", *flags.split()]
    refused(tmp_path / "run", arguments, "--initial", "p.npz", *pieces)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("stepz = 3\n", ("'stepz'", "steps")),
        ("[weights]\nself = 3\n", ("'weights.self'",)),
        ("steps = \n", ("not valid TOML", "a.toml")),
        ("steps = true\n", ("'steps'",)),
        ("resume = true\n", ("a.toml", "'resume'", "--resume")),
        ('config = "b.toml"\n', ("a.toml", "'config'")),
    ],
    ids=["unknown", "unknown nested", "malformed", "boolean", "resume", "config"],
)
def test_bad_configuration_files_are_refused(content, pieces, refused, tmp_path):
    (tmp_path / "a.toml").write_text(content)
    refused(tmp_path / "run", ["--config", tmp_path / "a.toml"], *pieces)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("flags", "piece"),
    [
        ("--stepz 3", "--stepz"),
        ("--steps x", "--steps"),
        ("--base moon", "moon"),
        ("--config a.toml", "steps"),
    ],
)
def test_bad_flags_and_types_are_named(flags, piece, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").write_text('steps = "many"\n')
    assert main(["simulate", "--out", "run", *flags.split()]) == 2
    captured = capsys.readouterr()
    assert piece in captured.err
    assert captured.out == ""
    assert not (tmp_path / "run").exists()


def _fields(kind, prefix=""):
    for entry in dataclasses.fields(kind):
        name = prefix + entry.name.replace("_", "-")
        if dataclasses.is_dataclass(entry.type):
            yield from _fields(entry.type, f"{name}.")
        else:
            yield name


def test_help_explains_every_option(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    assert main(["simulate", "--help"]) == 0
    text = capsys.readouterr().out
    for name in _fields(SimulateConfig):
        lines = (
            text.split(f"--{name} ", 1)[1].splitlines()
            if f"--{name} " in text
            else text.split(f"--{name},", 1)[1].splitlines()
        )
        # Whatever follows the option, before the next one, holds words and the default.
        following = "\n".join(lines[:4]).split("│ --", 1)[0]
        assert len(re.findall(r"[a-z]{2,}", following)) >= 3, name
        assert "default" in following, name


# Directories that are used or in use.


def test_used_directory_is_kept_without_overwrite_and_replaced_with_it(copied, refused):
    before = _contents(copied)
    assert "--overwrite" not in refused(copied, TINY, str(copied), "--resume")
    assert _contents(copied) == before
    (copied / "mine.txt").write_text("notes")
    assert _run(copied, "--overwrite", "--steps", 0) == 0
    assert read_metrics(copied)["step"].tolist() == [0]
    assert checkpoint.steps(copied) == [0]
    assert (copied / "mine.txt").read_text() == "notes"


@pytest.mark.parametrize("flag", [(), ("--overwrite",)])
def test_a_directory_that_holds_no_run_is_never_touched(flag, refused, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    refused(tmp_path, [*TINY, *flag], str(tmp_path), "--out")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_place_of_the_directory_is_refused(refused, tmp_path):
    (tmp_path / "run").write_text("a file")
    refused(tmp_path / "run", [*TINY, "--overwrite"], "not a directory")
    assert (tmp_path / "run").read_text() == "a file"


@pytest.mark.parametrize("flag", ["--overwrite", "--resume"])
def test_directory_in_use_is_refused(flag, copied, refused):
    metrics = (copied / "metrics.csv").read_bytes()
    with run_directory.open_existing(copied):
        refused(copied, [*TINY, flag], str(copied), "in use")
    assert (copied / "metrics.csv").read_bytes() == metrics
    assert checkpoint.steps(copied) == [0, 2, 4]


# Runs that go wrong.


def test_divergence_names_step_and_term_and_keeps_the_last_good_checkpoint(refused, tmp_path):
    out = tmp_path / "run"
    flags = (
        "--step-size",
        "3e-4",
        "--steps",
        "200",
        "--log-every",
        "1",
        "--checkpoint-every",
        "1",
        "--quiet",
    )
    line = refused(out, [*TINY, *flags], "diverged", "--step-size", str(out))
    names, step = re.search(r"diverged: (.+) not finite at step (\d+)\.", line).groups()
    step = int(step)
    assert set(names.split(", ")) <= set(TERMS[:-1])
    assert checkpoint.latest_step(out) == step - 1
    assert f"checkpoint is step {step - 1} " in line
    metrics = read_metrics(out)
    assert metrics["step"][-1] == step - 1
    chex.assert_tree_all_finite(metrics["total"])
    # And it says the same again, from the checkpoint that it kept.
    assert refused(out, ["--resume", "--quiet"], "diverged") == line


def test_an_energy_that_is_not_finite_at_the_start_is_refused(refused, tmp_path, rng):
    arrays = _arrays(rng)
    arrays["mu_q"][0] = 1e25  # whose square float32 cannot hold
    np.savez(tmp_path / "p.npz", **arrays)
    flags = [*TINY, "--quiet", "--initial", tmp_path / "p.npz"]
    refused(tmp_path / "run", flags, "not finite at the start", "self_coupling")


@pytest.mark.slow  # tests/runs/test_directory.py fills the disk by default
def test_full_disk_is_one_line_and_keeps_what_was_there(copied, start_process):
    before = _contents(copied / "checkpoints")
    # Without the shared compilation cache: its entries are larger than the limit, and half of one
    # would poison other tests.
    limit = (
        "import os, resource; os.environ.pop('JAX_COMPILATION_CACHE_DIR'); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))"
    )
    process = start_process("--out", copied, "--resume", "--steps", "8", "--quiet", before=limit)
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 2
    assert output == ""
    assert errors.count("\n") == 1
    assert str(copied) in errors
    assert "space" in errors
    assert _contents(copied / "checkpoints") == before
    # With room again it goes on as though nothing had happened.
    assert main(["simulate", "--out", str(copied), "--resume", "--steps", "8", "--quiet"]) == 0
    assert read_metrics(copied)["step"].tolist() == [0, 2, 4, 6, 8]


def test_settings_survive_the_way_through_the_file():
    config = SimulateConfig(irreps=(0, 2), grid=(3, 4), step_size=1e-30)
    stored = configuration.as_mapping(config)
    assert configuration.parse(SimulateConfig, [], program="test", base=stored) == config


@pytest.mark.parametrize("own", [None, 3.0])
def test_priors_have_the_temperature_of_their_option(own, monkeypatch):
    """None is that of the beliefs, which the library decides."""
    asked = {}

    def record(*_, **options):
        asked.update(options)
        return SimpleNamespace(total=0.0)

    monkeypatch.setattr(simulate_problem.free_energy, "free_energy_terms", record)
    config = SimulateConfig(temperature=7.0, prior_temperature=own)
    gaussian = Gaussian(np.zeros((2, 3)), np.tile(np.eye(3), (2, 1, 1)))
    population = Population(gaussian, gaussian, np.zeros((2, 3)))
    problem = simulate_problem.Problem(population, *[None] * 6)
    simulate_problem.energy_function(config, problem)(unconstrain(population))
    assert (asked["temperature"], asked["prior_temperature"]) == (7.0, own)

"""``vfejax filter``: what a run leaves behind, models read back, bad input as one line."""

import contextlib
import csv
import io
import itertools
import json
import re
import tomllib

import chex
import numpy as np
import pytest

from vfejax.cli.filter import model_file, models, residuals
from vfejax.cli.filter.config import FilterConfig
from vfejax.cli.main import main
from vfejax.data.series import load_series
from vfejax.errors import UserError
from vfejax.runs.load import load
from vfejax.runs.metrics import read_metrics

LOOP = ("--log-every", "2", "--checkpoint-every", "2", "--tolerance", "0")


def _table(path):
    with open(path, newline="") as file:
        rows = list(csv.DictReader(file))
    return {
        name: np.array([float(row[name]) if row[name] else np.nan for row in rows])
        for name in rows[0]
        if name != "date"
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Thirty days of a level that wanders, three of them missing."""
    rng = np.random.default_rng(0)
    level = np.cumsum(0.5 * rng.normal(size=30))
    cells = [f"{value:.4f}" for value in level + rng.normal(size=30)]
    for row in (0, 7, 8):
        cells[row] = "NA"
    lines = [f"2024-01-{day + 1:02d},{cell},0" for day, cell in enumerate(cells)]
    path = tmp_path_factory.mktemp("data") / "level.csv"
    path.write_text("date,height,other\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory, blank_pictures):
    """A run that learned two scales and looked five days ahead, and what it printed."""
    out = tmp_path_factory.mktemp("finished") / "run"
    printed = io.StringIO()
    options = ("--learn", "--steps", "4", *LOOP)
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        where = ("filter", str(data), "--out", str(out), "--columns", "height")
        status = main([*where, "--horizon", "5", *options])
    assert status == 0
    return out, printed.getvalue()


def test_a_run_directory_holds_what_it_promises(finished):
    out, printed = finished
    names = {path.name for path in out.iterdir()}
    promised = {"config.toml", "environment.json", "metrics.csv", "inputs.json", "report.html"}
    assert promised | {"summary.json", "estimates.csv", "model.toml", "figures"} <= names
    assert {path.stem for path in (out / "figures").iterdir()} == {
        *("series", "learning", "residuals")
    }
    assert "30 rows of height, 3 entries missing; smoothed estimates by local-level" in printed
    page = (out / "report.html").read_text()
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)', page))


def test_estimates_have_a_row_per_time_and_per_step_ahead(finished):
    out, _ = finished
    table = _table(out / "estimates.csv")
    assert all(len(values) == 35 for values in table.values())
    assert np.isnan(table["height"][[0, 7, 8, 30, 34]]).all()
    mean = table["height_mean"]
    chex.assert_tree_all_finite(mean)
    assert np.all(table["height_lower"] < mean)
    assert np.all(table["height_new_upper"] > table["height_upper"])
    width = table["height_upper"] - table["height_lower"]
    assert np.all(np.diff(width[29:]) > 0)
    last = (out / "estimates.csv").read_text().splitlines()[-1]
    assert last.startswith("2024-02-04,")


def test_evidence_rises_and_is_that_of_the_summary(finished):
    out, _ = finished
    metrics = read_metrics(out)
    assert metrics["step"].tolist() == [0, 2, 4]
    assert np.all(np.diff(metrics["log_evidence"]) > 0)
    summary = json.loads((out / "summary.json").read_text())
    assert summary["log_evidence_nats"] == metrics["log_evidence"][-1]
    assert summary["residuals"]["height"]["num_observations"] == 27
    assert load(out).summary == summary


def test_the_model_of_a_run_is_read_back(finished, data):
    out, _ = finished
    file = out / "model.toml"
    config = FilterConfig(file=data, model=str(file), columns="height")
    given = models.given_file(config)
    assert given.columns == ("height",)
    engine = models.build(config, given, load_series(data, ("height",)))
    summary = json.loads((out / "summary.json").read_text())
    # A number written as decimal is the same number.
    assert engine.evidence(engine.params) == pytest.approx(summary["log_evidence_nats"], rel=1e-12)
    assert engine.document(engine.params) == tomllib.loads(file.read_text())


@pytest.mark.slow
def test_a_run_that_was_made_longer_ends_as_one_that_was_not(finished, data, tmp_path):
    out, _ = finished
    short = tmp_path / "short"
    options = ["--learn", *LOOP, "--quiet", "--horizon", "5"]
    where = ["filter", "--out", str(short)]
    assert main([*where, str(data), "--columns", "height", "--steps", "2", *options]) == 0
    assert main([*where, "--resume", "--steps", "4", "--quiet"]) == 0
    assert (short / "model.toml").read_bytes() == (out / "model.toml").read_bytes()


# Models and estimates.


def _engine(tmp_path, text, rows, **options):
    (tmp_path / "m.toml").write_text(text)
    (tmp_path / "s.csv").write_text(rows)
    config = FilterConfig(file=tmp_path / "s.csv", model=str(tmp_path / "m.toml"), **options)
    series = load_series(config.file)
    return models.build(config, models.given_file(config), series), series


LINEAR = """
model = "lgssm"
initial_mean = [0]
initial_cov = [[4]]
transition = [[0.5]]
transition_cov = [[1]]
emission = [[1], [2]]
emission_cov = [[1, 0.5], [0.5, 2]]
emission_offset = [1, 0]
"""


def test_a_linear_model_from_a_file_gives_the_joint_gaussian(tmp_path):
    engine, series = _engine(tmp_path, LINEAR, "a,b\n1,2\n,1\n3,NA\n")
    # The joint Gaussian of states and observations, written out.
    states = np.array([[4, 2, 1], [2, 2, 1], [1, 1, 1.5]])
    c = np.kron(np.eye(3), [[1.0], [2.0]])
    noise = np.kron(np.eye(3), [[1, 0.5], [0.5, 2]])
    y = series.values.ravel()
    known = ~np.isnan(y)
    cov = (c @ states @ c.T + noise)[np.ix_(known, known)]
    off = (y - np.tile([1, 0], 3))[known]
    gain = (states @ c.T)[:, known] @ np.linalg.inv(cov)
    mean, spread = gain @ off, np.diag(states - gain @ (states @ c.T)[:, known].T)
    _, log_det = np.linalg.slogdet(2 * np.pi * cov)
    found = engine.estimates(engine.params, "smoothed", 0.95, 0)
    # Rounding of a handful of numbers of order 1.
    np.testing.assert_allclose(found.state_mean[:3, 0], mean, rtol=1e-12)
    np.testing.assert_allclose(found.mean[:3, 1], 2 * mean, rtol=1e-12)
    width = (found.state_upper - found.state_lower)[:3, 0] / (2 * 1.959963984540054)
    np.testing.assert_allclose(width**2, spread, rtol=1e-12)
    evidence = -0.5 * (off @ np.linalg.inv(cov) @ off + log_det)
    np.testing.assert_allclose(found.log_evidence, evidence, rtol=1e-12)
    first = found.residuals[0]
    np.testing.assert_allclose(first, [0, 2 / 18**0.5], rtol=0, atol=1e-14)


HIDDEN = """
model = "hmm"
initial = [0.5, 0.5]
transition = [[0.9, 0.2], [0.1, 0.8]]
means = [[0], [4]]
stds = [[1], [0.5]]
"""


@pytest.mark.slow
def test_a_hidden_markov_model_from_a_file_gives_the_sum_over_paths(tmp_path):
    engine, series = _engine(tmp_path, HIDDEN, "x\n0.5\n\n3\n4.2\n")
    y = series.values[:, 0]
    means, stds = np.array([0, 4.0]), np.array([1, 0.5])
    move = np.array([[0.9, 0.2], [0.1, 0.8]])
    density = np.exp(-0.5 * ((y[:, None] - means) / stds) ** 2) / (stds * (2 * np.pi) ** 0.5)
    density[np.isnan(y)] = 1.0
    weights = {}
    for path in np.ndindex(2, 2, 2, 2):
        steps = np.prod([move[b, a] for a, b in itertools.pairwise(path)])
        weights[path] = 0.5 * steps * np.prod(density[np.arange(4), path])
    total = sum(weights.values())
    found = engine.estimates(engine.params, "smoothed", 0.9, 1)
    chance = [sum(w for p, w in weights.items() if p[i]) / total for i in range(4)]
    np.testing.assert_allclose(found.states.probabilities[:4, 1], chance, rtol=1e-12)
    np.testing.assert_allclose(found.log_evidence, np.log(total), rtol=1e-12)
    assert tuple(found.states.path) == max(weights, key=weights.get)
    np.testing.assert_allclose(found.mean[:4, 0], 4 * np.array(chance), rtol=1e-12)
    # A new observation lies in its interval with the probability that was asked for.
    inside = engine.params.cumulative(found.new_upper) - engine.params.cumulative(found.new_lower)
    share = np.einsum("tk,tko->to", found.states.probabilities, inside)
    np.testing.assert_allclose(share, 0.9, rtol=1e-9)


SYMBOLS = """
model = "discrete-hmm"
initial = [1, 0]
transition = [[1, 0], [0, 1]]
emission = [[1, 0.5], [0, 0.5]]
"""


def test_impossible_rows_are_found_and_symbols_that_are_none_refused(tmp_path):
    engine, _ = _engine(tmp_path, SYMBOLS, "symbol\n0\n1\n0\n")
    assert engine.impossible(engine.params).tolist() == [1]
    with pytest.raises(UserError, match="line 3, column 'symbol': 2 is no symbol of the model"):
        _engine(tmp_path, SYMBOLS, "symbol\n0\n2\n")


@pytest.mark.slow
def test_an_impossible_observation_is_told_with_its_time(tmp_path, capsys):
    (tmp_path / "m.toml").write_text(SYMBOLS)
    (tmp_path / "s.csv").write_text("time,symbol\n10,0\n11,1\n12,0\n")
    files = [str(tmp_path / "s.csv"), "--model", str(tmp_path / "m.toml")]
    assert main(["filter", *files, "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().err
    assert "line 3, time 11: no state of the model allows the observation 1" in said
    table = _table(tmp_path / "run" / "estimates.csv")
    assert table["state_0_probability"].tolist() == [1.0, 1.0, 1.0]
    assert 'log_evidence_nats": null' in (tmp_path / "run" / "summary.json").read_text()
    learn = ["--learn", "--overwrite", "--out", str(tmp_path / "run")]
    assert main(["filter", *files, *learn]) == 2
    assert "nothing can be learned from there" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("model", ["lgssm", "hmm"])
def test_models_whose_everything_is_learned(model, tmp_path, capsys):
    rng = np.random.default_rng(1)
    state = np.repeat(np.arange(10) % 2, 12)
    values = 3.0 * state[:, None] + rng.normal(size=(120, 2))
    values[rng.random((120, 2)) < 0.1] = np.nan
    rows = "\n".join(",".join("" if np.isnan(v) else f"{v:.4f}" for v in row) for row in values)
    (tmp_path / "s.csv").write_text("a,b\n" + rows + "\n")
    out = tmp_path / "run"
    options = ["--model", model, "--learn", "--steps", "20", "--quiet", "--horizon", "3"]
    assert main(["filter", str(tmp_path / "s.csv"), "--out", str(out), *options]) == 0
    metrics = read_metrics(out)
    assert metrics["log_evidence"][-1] > metrics["log_evidence"][0]
    table = _table(out / "estimates.csv")
    if model == "hmm":
        assert np.mean(table["most_probable_path"][:120] == state) > 0.95
    again = tmp_path / "again"
    options = ["--model", str(out / "model.toml"), "--quiet", "--horizon", "3"]
    assert main(["filter", str(tmp_path / "s.csv"), "--out", str(again), *options]) == 0
    # The same numbers through another program.
    np.testing.assert_allclose(
        _table(again / "estimates.csv")["a_mean"], table["a_mean"], rtol=1e-6
    )


@pytest.mark.slow
def test_the_embedded_target_is_tracked_nearly_as_well_as_possible(tmp_path, capsys):
    out = tmp_path / "run"
    assert main(["filter", "--out", str(out), "--learn", "--steps", "150"]) == 0
    rows = json.loads((out / "summary.json").read_text())["errors"]
    raw, before, run, best = rows.values()
    assert best["at_fixes_m"] <= 1.02 * run["at_fixes_m"]
    assert run["at_fixes_m"] < 1.1 * best["at_fixes_m"]
    assert run["at_fixes_m"] < before["at_fixes_m"] < raw["at_fixes_m"]
    assert before["coverage_percent"] < 80 < run["coverage_percent"]
    assert "best possible" in capsys.readouterr().out
    assert (out / "figures" / "track.png").exists()


# Residuals.


def test_residuals_of_noise_pass_and_those_of_a_walk_do_not(rng):
    noise = rng.normal(size=400)
    noise[::7] = np.nan
    good = residuals.checks("x", noise)
    assert min(good.independence, good.normality) > 0.01
    bad = residuals.checks("x", np.cumsum(rng.normal(size=400)))
    assert bad.independence < 1e-6
    assert residuals.checks("x", rng.normal(size=400) ** 3).normality < 1e-6
    assert np.isnan(residuals.checks("x", np.ones(5)).mean)


# Bad input: one line that names the option, the file or the key.


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--interval", "95"], "--interval 95.0: must be between 0 and 1"),
        (["--horizon", "-1"], "--horizon -1: must be at least 0"),
        (["--model", "nothing"], "--model nothing: must be one of local-level"),
        (["--model", "none.toml"], "none.toml: does not exist"),
        (["--model", "hmm"], "--model hmm: must be given with --learn"),
        (["--states", "3"], "--states 3: must be left out"),
        (["--noise-std", "0"], "--noise-std 0.0: must be positive"),
        (["--columns", "nothing"], "--columns nothing: no such column; there are date, height"),
        (["--columns", "other"], "column 'other' has too few values that differ"),
        (["--online"], "--online reads standard input"),
    ],
)
def test_options_out_of_their_limits_are_named(options, said, data, tmp_path, refused):
    refused(tmp_path / "run", [str(data), *options], said, command="filter")


def test_a_series_that_cannot_be_learned_from_is_named(data, tmp_path, refused):
    options = [str(data), "--learn", "--model", "lgssm"]
    refused(tmp_path / "run", options, "column 'other' is constant", command="filter")
    (tmp_path / "s.csv").write_text("x,y\n1,1e-200\n2,3e-200\n1,2e-200\n3,1e-200\n")
    said = "column 'y': its values differ by 2e-200 at most"
    refused(tmp_path / "run", [str(tmp_path / "s.csv")], said, command="filter")


def test_uneven_times_are_refused_by_models_that_need_even_ones(tmp_path, refused):
    rows = "time,x\n0,1\n1,2\n2,2\n4,1\n5,3\n"
    (tmp_path / "s.csv").write_text(rows)
    said = "line 5: the time step to 4 is 2, and 1 elsewhere; hmm needs equal steps"
    options = [str(tmp_path / "s.csv"), "--model", "hmm", "--learn"]
    refused(tmp_path / "run", options, said, "--spacing equal", command="filter")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('"lgssm"', '"kalman"', "key 'model' must be one of local-level"),
        ("emission_offset", "offset", "unknown key 'offset'"),
        ("initial_cov = [[4]]\n", "", "key 'initial_cov' [n, n] is missing"),
        ("[[4]]", "[[4, 1], [1, 4]]", "'initial_cov' has shape [2, 2], and [1, 1] is needed"),
        ("[[4]]", "[4]", "'initial_cov' must be a list of rows of numbers"),
        ("[[4]]", '[["a"]]', "'initial_cov[0][0]' must be a number, got 'a'"),
        ("[[4]]", "[[nan]]", "'initial_cov' is nan at [0, 0]"),
        ("[[4]]", "[[-4]]", "initial_cov must be positive semidefinite"),
        ("0.5], [0.5, 2]", "2], [2, 2]", "emission_cov must be positive definite"),
        ("emission = [[1], [2]]", "emission = [[1], [2, 3]]", "rows of 'emission' have different"),
    ],
)
def test_model_files_are_refused_by_key(old, new, said, data, tmp_path, refused):
    assert old in LINEAR
    (tmp_path / "m.toml").write_text(LINEAR.replace(old, new, 1))
    options = [str(data), "--model", str(tmp_path / "m.toml")]
    refused(tmp_path / "run", options, said, "m.toml", command="filter")


def test_other_model_files_are_refused_by_key(data, tmp_path, refused):
    def call(text, said):
        (tmp_path / "m.toml").write_text(text)
        options = [str(data), "--model", str(tmp_path / "m.toml")]
        refused(tmp_path / "run", options, said, command="filter")

    call(HIDDEN.replace("0.9", "0.8"), "transition: column 0 must sum to 1; it sums to 0.9")
    call(HIDDEN.replace("[0.5]]", "[0]]"), "stds must be positive; entry [1, 0] is 0")
    call("model =", "not valid TOML")
    call(HIDDEN, "is for 1 series, and")
    local = {
        "model": "local-trend",
        "drift_std": [1.0],
        "noise_std": [0.0],
        "initial_mean": [0.0, 0.0],
        "initial_cov": [[1.0, 0.0], [0.0, 1.0]],
    }
    call(model_file.write(local), "'noise_std' is 0 at [0]; it must be positive")
    local |= {"model": "local-level"}
    call(model_file.write(local), "'initial_mean' has 2 entries, and local-level of 1 series")
    columns = 'columns = ["speed"]\n' + HIDDEN
    call(columns, "is for the columns speed, and not all of them are in")

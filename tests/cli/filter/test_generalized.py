"""``vfejax filter`` with a linear model in continuous time and smooth noise."""

import io
import json
import tomllib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.cli.filter import models
from vfejax.cli.filter.config import FilterConfig
from vfejax.cli.main import main
from vfejax.data.series import load_series
from vfejax.runs.metrics import read_metrics

MODEL = """
model = "generalized"
drift = [[-0.25, 1.0], [-0.5, -0.25]]
gain = [[1.0], [0.0]]
emission = [[1.0, 0.0], [0.0, 1.0]]
output_precision = [[50.0, 0.0], [0.0, 50.0]]
state_precision = [[100.0, 0.0], [0.0, 100.0]]
cause_precision = [[1.0]]
smoothness = 0.5
order = 4
drift_std = [[0.0, 0.0], [0.5, 0.0]]
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A series that rings, and its model."""
    folder = tmp_path_factory.mktemp("generalized")
    time = np.arange(24)
    rng = np.random.default_rng(0)
    wave = np.stack([np.sin(0.7 * time), np.cos(0.7 * time)], 1) + 0.1 * rng.normal(size=(24, 2))
    lines = "\n".join(f"{i},{a:.4f},{b:.4f}" for i, (a, b) in enumerate(wave))
    (folder / "s.csv").write_text("time,a,b\n" + lines + "\n")
    (folder / "m.toml").write_text(MODEL)
    return folder


@pytest.fixture(scope="module")
def engine(files):
    config = FilterConfig(file=files / "s.csv", model=str(files / "m.toml"))
    return models.build(config, models.given_file(config), load_series(files / "s.csv"))


def test_a_run_learns_and_reports_its_free_energy(files, tmp_path, blank_pictures, capsys):
    options = ["--learn", "--steps", "4", "--log-every", "2", "--checkpoint-every", "2"]
    options += ["--horizon", "3", "--tolerance", "0", "--out", str(tmp_path / "run")]
    assert main(["filter", str(files / "s.csv"), "--model", str(files / "m.toml"), *options]) == 0
    assert "free energy" in capsys.readouterr().out
    metrics = read_metrics(tmp_path / "run")
    assert np.all(np.diff(metrics["free_energy"]) < 0)
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["free_energy_nats"] == metrics["free_energy"][-1]
    learned = tomllib.loads((tmp_path / "run" / "model.toml").read_text())
    assert learned["drift"][0] == [-0.25, 1.0]  # known entries stay
    assert learned["drift"][1][0] != -0.5
    assert len((tmp_path / "run" / "estimates.csv").read_text().splitlines()) == 1 + 24 + 3


def test_estimates_do_not_read_later_rows_than_they_say(files, engine):
    config = FilterConfig(file=files / "s.csv", model=str(files / "m.toml"))
    series = load_series(files / "s.csv")
    values = series.values.copy()
    values[12] += 1.0
    changed = models.build(config, models.given_file(config), series._replace(values=values))
    for which, first in {"filtered": 12, "predicted": 13, "smoothed": 11}.items():
        before = engine.estimates(engine.params, which, 0.95, 0).state_mean
        after = changed.estimates(changed.params, which, 0.95, 0).state_mean
        moved = np.flatnonzero(np.any(np.abs(after - before) > 1e-12, axis=1))
        # A centred window of four rows reads one later row.
        assert moved[0] == first, which


def test_a_stream_answers_as_the_file_does(files, engine, monkeypatch, capsys, tmp_path):
    text = (files / "s.csv").read_text()
    (tmp_path / "in.csv").write_text(text + "24,,1\n25,1,1\n")
    for which in ("filtered", "predicted"):
        with open(tmp_path / "in.csv") as lines:
            monkeypatch.setattr("sys.stdin", lines)
            options = ["--online", "--model", str(files / "m.toml"), "--estimate", which]
            assert main(["filter", *options]) == 0
        printed = capsys.readouterr()
        rows = list(io.StringIO(printed.out))
        mean = [float(row.split(",")[1] or "nan") for row in rows[1:25]]
        expected = engine.estimates(engine.params, which, 0.95, 0).mean[:, 0]
        # Ten digits are printed.
        np.testing.assert_allclose(mean, expected, rtol=0, atol=1e-8)
        assert set(rows[-1].strip().split(",")[1:]) == {""}
        assert "line 26: a value is missing, or the step is not dt = 1" in printed.err


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("order = 4\n", "order = 0\n", "'order' must be a whole number from 2 to 12, got 0"),
        ("order = 4\n", "order = 2.5\n", "'order' must be a whole number"),
        ("smoothness = 0.5\n", "smoothness = 0\n", "'smoothness' must be above 0, got 0"),
        ("smoothness = 0.5\n", "smoothness = 1e3\n", "take a lower order, or fewer rows"),
        ("cause_precision = [[1.0]]\n", "", "'gain' and 'cause_precision' belong together"),
        ("[[100.0, 0.0], [0.0, 100.0]]", "[[0, 0], [0, 1]]", "'state_precision' must be positive"),
        ("order = 4\n", "order = 4\ndt = 2.0\n", "rows are 1 apart, and 'dt' in"),
        ("order = 4\n", "", "key 'order' is missing"),
        ("order = 4\n", "order = [4]\n", "must be a number, got"),
        ("gain = [[1.0], [0.0]]\n", "gain = [[1.0]]\n", "'gain' has shape [1, 1], and"),
    ],
)
def test_files_that_cannot_be_right_are_refused_by_key(old, new, said, files, tmp_path, refused):
    assert old in MODEL
    (tmp_path / "m.toml").write_text(MODEL.replace(old, new, 1))
    options = [str(files / "s.csv"), "--model", str(tmp_path / "m.toml")]
    refused(tmp_path / "run", options, said, command="filter")


def test_missing_entries_and_few_rows_are_refused(files, tmp_path, refused):
    text = (files / "s.csv").read_text().splitlines()
    for lines, said in (
        ([*text[:5], "4,,1", *text[6:]], "line 6, column 'a': there is no number"),
        (text[:4], "has 3 rows, and 'order' 4"),
    ):
        (tmp_path / "s.csv").write_text("\n".join(lines))
        options = [str(tmp_path / "s.csv"), "--model", str(files / "m.toml")]
        refused(tmp_path / "run", options, said, command="filter")


def test_utf_16_is_named(files, tmp_path, refused):
    for encoding in ("utf-16", "utf-16-le"):
        (tmp_path / "s.csv").write_bytes((files / "s.csv").read_text().encode(encoding))
        said = "is UTF-16 text, and UTF-8 is needed"
        refused(tmp_path / "run", [str(tmp_path / "s.csv")], said, command="filter")


def test_a_model_without_causes_and_with_nothing_to_learn_has_a_free_energy(files, tmp_path):
    lines = [x for x in MODEL.splitlines() if not x.startswith(("gain", "cause", "drift_std"))]
    (tmp_path / "m.toml").write_text("\n".join(lines))
    config = FilterConfig(file=files / "s.csv", model=str(tmp_path / "m.toml"))
    found = models.build(config, models.given_file(config), load_series(files / "s.csv"))
    params, before = jax.jit(found.update)(found.params)  # as the command runs it
    assert found.evidence(params) > before
    assert jnp.isfinite(before)

"""``vfejax filter --model koopman``: a spectrum that is known, intervals that hold, bad input."""

import csv
import json
import tomllib

import numpy as np
import pytest

from vfejax.cli.filter import koopman, operator_checks
from vfejax.cli.filter.config import FilterConfig
from vfejax.cli.filter.lifting import KoopmanModel, Lifting, forecasts, windows
from vfejax.cli.filter.operator_choice import Choice, Method, Split, errors
from vfejax.cli.main import main
from vfejax.data.series import load_series
from vfejax.problems import oscillations

ONE = ("--delays", "6", "--degree", "1", "--operator", "total-least-squares", "--rank", "4")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Two oscillations on dates, three rows of them missing."""
    found = oscillations.simulate(np.random.default_rng(3), 400).observations
    days = np.datetime64("2024-01-01") + np.arange(len(found)).astype("timedelta64[D]")
    lines = [f"{day},{x:.6f},{y:.6f}" for day, (x, y) in zip(days, found, strict=True)]
    for row in (50, 51, 390):
        lines[row] = f"{days[row]},,"
    path = tmp_path_factory.mktemp("koopman") / "waves.csv"
    path.write_text("date,x,y\n" + "\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    call = ["filter", str(data), "--model", "koopman", "--out", str(out), "--horizon", "30", *ONE]
    assert main([*call, "--quiet"]) == 0
    return out


def _rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_run_tells_periods_in_days_errors_and_what_it_held_out(finished):
    summary = json.loads((finished / "summary.json").read_text())
    assert summary["unit_of_time"] == "days"
    assert (summary["rows_fitted"], summary["rows_held_out"]) == (320, 80)
    periods = [mode["period"] for mode in summary["spectrum"]]
    # Noise of 0.3 and 320 rows: frequencies to 1 in 320 and a little more.
    for true in oscillations.PERIODS:
        assert min(abs(1 / p - 1 / true) for p in periods if p) < 1.5 / 320
    rows = summary["errors_in_standard_deviations"]
    assert list(rows) == ["koopman", "autoregression", "persistence"]
    assert all(list(row) == ["1", "2", "4", "8"] for row in rows.values())
    assert all(rows["koopman"][p] < rows["persistence"][p] for p in rows["koopman"])
    figures = {path.stem for path in (finished / "figures").iterdir()}
    assert {"series", "spectrum", "residuals"} <= figures


def test_gaps_are_bridged_and_the_rows_to_come_have_intervals(finished):
    rows = _rows(finished / "estimates.csv")
    assert len(rows) == 430
    assert [row["x_mean"] == "" for row in rows[:8]] == [True] * 6 + [False] * 2
    inside = [i for i, row in enumerate(rows[6:], 6) if row["x_mean"] == ""]
    assert inside == []
    width = np.array([float(r["x_new_upper"]) - float(r["x_new_lower"]) for r in rows[6:]])
    assert np.all(width > 0)
    # A forecast over the gap and the rows whose past it is in is less certain.
    assert width[51 - 6] > width[49 - 6]
    np.testing.assert_allclose(width[100:300], width[100], rtol=1e-8)  # ten digits
    assert width[-1] > width[200]
    assert rows[-1]["date"] == "2025-03-05"


def test_the_model_file_gives_the_same_run_again(finished, data, tmp_path):
    document = tomllib.loads((finished / "model.toml").read_text())
    assert document["model"] == "koopman"
    assert np.shape(document["operator"]) == (12, 12)
    again = tmp_path / "again"
    model = str(finished / "model.toml")
    call = ["filter", str(data), "--model", model, "--out", str(again), "--horizon", "30"]
    assert main([*call, "--quiet"]) == 0
    assert (again / "estimates.csv").read_text() == (finished / "estimates.csv").read_text()


def test_without_options_the_best_of_many_models_is_found(data):
    series = load_series(data)
    engine, found = koopman.build(FilterConfig(file=data, model="koopman"), None, series)
    assert found.choice.num_tried > 30
    rows = operator_checks.losses(found)
    assert rows["koopman"][8] < rows["persistence"][8]
    assert np.isfinite(engine.evidence(engine.params))


def _known_model(rate):
    operator = np.array([[rate]])
    zero, one = np.zeros(1), np.ones(1)
    return Choice(KoopmanModel(operator, zero, zero, one, one[0], one[0]), Method("", None, 0.0), 0)


def test_intervals_hold_what_comes_as_often_as_they_say():
    # x' = 0.8 x + noise: its forecasts and the variances of their errors are known.
    rng, rate, steps = np.random.default_rng(0), 0.8, 8
    inside, widths = [], []
    for _ in range(300):
        x = np.zeros(340)
        for t in range(1, 340):
            x[t] = rate * x[t - 1] + rng.normal()
        values, future = x[:-steps, None], x[-steps:]
        held = 232
        off = errors(np.array([[rate]]), values, held, 25, 1)
        split = Split(held, held)
        found = koopman.Forecaster(_known_model(rate), split, values, values, off)
        half = found.widths(0.9, steps)[:, 0]
        ahead = forecasts(np.array([[rate]]), values[-1:], steps, 1)[0, :, 0]
        inside.append(np.abs(future - ahead) <= half)
        widths.append(half)
    # Binomial of 300, four standard deviations; rows that depend on each other cost a little.
    coverage = np.mean(inside, axis=0)
    assert np.all(np.abs(coverage - 0.9) < 4 * np.sqrt(0.09 / 300))
    exact = 1.645 * np.sqrt(np.cumsum(rate ** (2 * np.arange(steps))))
    np.testing.assert_allclose(np.mean(widths, axis=0), exact, rtol=0.05)


def test_beyond_the_held_out_rows_intervals_grow_as_the_model_says():
    values = np.random.default_rng(0).normal(size=(60, 1))
    off = errors(np.array([[0.8]]), values, 40, 5, 1)
    found = koopman.Forecaster(_known_model(0.8), Split(40, 40), values, values, off)
    half = found.widths(0.9, 9)[:, 0]
    variance = np.cumsum(0.8 ** (2 * np.arange(9)))
    np.testing.assert_allclose(half[5:] / half[4], np.sqrt(variance[5:] / variance[4]))


def test_observables_of_a_gap_are_unknown():
    values = np.array([[1.0], [2.0], [np.nan], [4.0], [5.0]])
    found = windows(values, Lifting(2, 1))
    assert np.isnan(found[:, 0]).tolist() == [True, False, True, True, False]
    assert found[4].tolist() == [5.0, 4.0]


def _file(tmp_path, rows):
    path = tmp_path / "data.csv"
    path.write_text("x,y\n" + "".join(f"{a},{b}\n" for a, b in rows))
    return path


@pytest.mark.parametrize(
    ("options", "pieces"),
    [
        (("--learn",), ("--learn True", "always fitted")),
        (("--estimate", "smoothed"), ("--estimate smoothed", "predicted")),
        (("--online",), ("--model koopman", "every row")),
        (("--held-out", "0.5"), ("--held-out 0.5", "between 0 and 0.5")),
        (("--delays", "0"), ("--delays 0", "at least 1")),
        (("--rank", "2", "--operator", "ridge"), ("--rank 2", "full rank")),
        (("--ridge", "-1"), ("--ridge -1.0", "at least 0")),
        (("--degree", "2", "--operator", "total-least-squares"), ("--degree 2",)),
        (("--rank", "9", "--delays", "3", "--degree", "1"), ("--rank 9", "at most 6")),
        (("--delays", "40", "--degree", "3"), ("91880 observables", "1000 are the most")),
        (("--delays", "30", "--degree", "1", "--ridge", "0", "--operator", "ridge"), ("samples",)),
    ],
)
def test_options_that_cannot_be_meant_are_one_line(tmp_path, refused, options, pieces):
    rng = np.random.default_rng(0)
    where = [] if "--online" in options else [_file(tmp_path, rng.normal(size=(60, 2)))]
    call = [*where, "--model", "koopman", *options]
    refused(tmp_path / "run", call, *pieces, command="filter")


def test_series_that_cannot_be_forecast_are_one_line(tmp_path, refused):
    def says(rows, *pieces):
        call = [_file(tmp_path, rows), "--model", "koopman"]
        refused(tmp_path / "run", call, *pieces, command="filter")

    draws = np.random.default_rng(0).normal(size=(60, 2))
    says(draws[:12], "has 12 rows", "at least 20")
    says(np.column_stack([draws[:, 0], np.ones(60)]), "column 'y' is constant", "--columns")
    says([(a, "" if i % 2 else b) for i, (a, b) in enumerate(draws)], "missing")
    growing = [(1.1**i, 0.5 * 1.1**i + a) for i, (a, _) in enumerate(draws)]
    path = _file(tmp_path, growing)
    one = ("--delays", "1", "--degree", "1", "--ridge", "0")
    call = [path, "--model", "koopman", *one, "--horizon", "20000"]
    pieces = ("steps ahead is too large", "--horizon")
    refused(tmp_path / "run", [*call, "--operator", "ridge"], *pieces, command="filter")
    says([("inf", b) for _, b in draws], "line 2")


def test_options_of_koopman_need_koopman(tmp_path, refused):
    path = _file(tmp_path, np.random.default_rng(0).normal(size=(60, 2)))
    for option, value in (("--delays", "3"), ("--operator", "ridge"), ("--held-out", "0.3")):
        refused(tmp_path / "run", [path, option, value], option, "koopman", command="filter")


def test_spurious_modes_are_those_that_the_rows_do_not_tell_from_zero():
    values = np.random.default_rng(0).normal(size=(200, 1))
    noise = koopman.Forecaster(_known_model(0.6), Split(100, 100), values, values, values[:, None])
    factor = operator_checks.held_out_factor(noise)
    pairs = operator_checks.spectrum.eig(np.array([[0.6]]))
    (mode,) = operator_checks.modes(pairs, factor, 2.0)
    assert mode.spurious
    assert mode.period is None
    wave = np.cumprod(np.full((50, 1), 0.9), axis=0)
    exact = koopman.Forecaster(_known_model(0.9), Split(20, 20), wave, wave, wave[:, None])
    pairs = operator_checks.spectrum.eig(np.array([[0.9]]))
    (mode,) = operator_checks.modes(pairs, operator_checks.held_out_factor(exact), 2.0)
    assert not mode.spurious
    assert mode.residual < 1e-12
    np.testing.assert_allclose(mode.decay, -2.0 / np.log(0.9))

"""Metrics: exact, appended whole, cut where a run goes on, and damage is named."""

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.errors import UserError
from vfejax.runs import directory as run_directory
from vfejax.runs.metrics import append_metrics, read_metrics, truncate_metrics

COLUMNS = ("step", "total")


@pytest.fixture
def run(tmp_path):
    with run_directory.create(tmp_path / "run", {"seed": 3}) as run:
        yield run


def test_metrics_round_trip_is_exact(run, rng):
    values = [
        *rng.normal(size=50) * 10.0 ** rng.integers(-300, 300, 50),
        5e-324,
        -0.0,
        np.inf,
        -np.inf,
        np.nan,
        1 / 3,
    ]
    append_metrics(run, COLUMNS, [(i, value) for i, value in enumerate(values[:20])])
    append_metrics(run, COLUMNS, [(i, value) for i, value in enumerate(values[20:], 20)])
    read = read_metrics(run)
    chex.assert_type(read["step"], np.int64)
    np.testing.assert_array_equal(read["step"], np.arange(len(values)))
    assert read["total"].tobytes() == np.asarray(values).tobytes()
    assert (run.path / "metrics.csv").read_text().count("step") == 1


def test_metrics_take_numbers_of_every_kind(run):
    third = np.float32(1) / np.float32(3)
    row = (jnp.int32(2), third, jnp.asarray(third), np.int64(2**53), True)
    append_metrics(run, ("step", "numpy", "jax", "count", "flag"), [row])
    assert (run.path / "metrics.csv").read_text().splitlines()[1].split(",")[3:] == [
        str(2**53),
        "1",
    ]
    read = read_metrics(run)
    assert np.float32(read["numpy"][0]) == np.float32(read["jax"][0]) == third


def test_metrics_without_rows(run):
    append_metrics(run, COLUMNS, [])
    read = read_metrics(run)
    chex.assert_trees_all_equal_shapes(read, {"step": np.zeros(0), "total": np.zeros(0)})


@pytest.mark.parametrize(
    ("columns", "rows"),
    [
        (("total",), [(1.0,)]),
        (("step", "a,b"), [(1, 2.0)]),
        (COLUMNS, [(1,)]),
        (COLUMNS, [(1, np.ones(2))]),
    ],
)
def test_rows_that_do_not_fit_are_a_programming_error(run, columns, rows):
    with pytest.raises(ValueError, match=r".+"):
        append_metrics(run, columns, rows)
    assert not (run.path / "metrics.csv").exists()


def test_other_columns_are_refused(run):
    append_metrics(run, COLUMNS, [(1, 2.0)])
    with pytest.raises(UserError, match=r"metrics.csv has other columns .*step,energy"):
        append_metrics(run, ("step", "energy"), [(2, 2.0)])


# A kill can leave any piece of what was being written: a row cut anywhere, even so that it still
# reads as a row.
@pytest.mark.parametrize("piece", ["", "3", "30,", "30,1.", "30,1.5", "3,2"])
def test_truncation_drops_later_rows_and_half_a_line(run, piece):
    append_metrics(run, COLUMNS, [(10, 0.1), (20, 0.2), (30, 0.3)])
    path = run.path / "metrics.csv"
    with open(path, "a") as file:
        file.write(piece)
    np.testing.assert_array_equal(read_metrics(run)["step"], [10, 20, 30])
    if piece:
        with pytest.raises(UserError, match=r"ends in half a line.*--resume"):
            append_metrics(run, COLUMNS, [(40, 0.4)])
    truncate_metrics(run, 20)
    assert path.read_text() == "step,total\n10,0.1\n20,0.2\n"
    append_metrics(run, COLUMNS, [(30, 0.3)])
    assert path.read_text() == "step,total\n10,0.1\n20,0.2\n30,0.3\n"


@pytest.mark.parametrize("text", ["", "st", "step,total"])
def test_truncation_of_half_a_header_starts_again(run, text):
    (run.path / "metrics.csv").write_text(text)
    truncate_metrics(run, 0)
    append_metrics(run, COLUMNS, [(1, 2.0)])
    assert (run.path / "metrics.csv").read_text() == "step,total\n1,2.0\n"


def test_truncation_without_metrics_does_nothing(run):
    truncate_metrics(run, 5)
    assert not (run.path / "metrics.csv").exists()


@pytest.mark.parametrize("line", ["x,1.0", "2", "2,1.0,3.0", ""])
def test_damaged_line_is_named(run, line):
    (run.path / "metrics.csv").write_text(f"step,total\n1,2.0\n{line}\n3,2.0\n")
    with pytest.raises(UserError, match=r"metrics.csv line 3 is damaged"):
        read_metrics(run)
    with pytest.raises(UserError, match=r"metrics.csv line 3 is damaged"):
        truncate_metrics(run, 1)


@pytest.mark.parametrize(
    ("text", "message"),
    [(None, "does not exist"), ("", "is empty"), ("a,b\n1,2\n", "no column step")],
)
def test_missing_metrics_are_named(run, text, message):
    if text is not None:
        (run.path / "metrics.csv").write_text(text)
    with pytest.raises(UserError, match=rf"metrics.csv.* {message}"):
        read_metrics(run)

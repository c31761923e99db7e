"""Metrics of a run: ``metrics.csv``, a row for every logged step, exact to the last bit."""

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vfejax.data.files import atomic_write
from vfejax.errors import UserError
from vfejax.runs.append_only import append_lines, complete_lines
from vfejax.runs.directory import RunDirectory

__all__ = ["append_metrics", "read_metrics", "truncate_metrics"]


def append_metrics(
    run: RunDirectory, columns: Sequence[str], rows: Iterable[Sequence[Any]]
) -> None:
    """Add rows to ``metrics.csv``, on the disk when this returns; the header is written with the
    first of them.

    Args:
        run: the run, held.
        columns: names, one of them ``step``; the same in every call.
        rows: numbers, one per column. Integers stay integers; every float is written so that
            reading gives it back exactly.

    Raises:
        UserError: when the file has other columns or ends in half a line, or cannot be written. A
            failed write leaves no trace.
        ValueError: for a row that does not fit the columns.
    """
    columns = tuple(columns)
    if "step" not in columns or any(set(name) & set(',"\r\n') for name in columns):
        raise ValueError(
            f"columns must include step and hold no comma, quote or line break, got {columns}"
        )
    if len(set(columns)) < len(columns):
        raise ValueError(f"columns must have a name of their own each, got {columns}")
    rows = [tuple(row) for row in rows]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(
            f"every row must have {len(columns)} entries, as many as there are columns {columns}"
        )
    text = "".join(",".join(map(_cell, row)) + "\n" for row in rows)
    append_lines(run, "metrics.csv", ",".join(columns) + "\n", text)


def _cell(value: Any) -> str:
    number = np.asarray(value).item()
    return str(int(number)) if isinstance(number, int) else repr(float(number))


def truncate_metrics(run: RunDirectory, step: int) -> None:
    """Drop every row whose step is greater than ``step``, and half a line at the end, in one atomic
    step.

    Raises:
        UserError: when a line in the middle is damaged.
    """
    path = run.path / "metrics.csv"
    if not path.exists():
        return
    lines, rows = _rows(path)
    if not lines:
        path.unlink()  # only a piece of the header was written
        return
    position = lines[0].split(",").index("step")
    kept = [line for line, row in zip(lines[1:], rows, strict=True) if row[position] <= step]
    atomic_write(path, "".join(f"{line}\n" for line in (lines[0], *kept)))


def read_metrics(run: str | os.PathLike, required: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """The columns of ``metrics.csv``: ``step`` as int64, the others as float64. Half a line at the
    end is not read.

    Args:
        run: a run, or the path of one; it may be going.
        required: columns that must be there.

    Raises:
        UserError: when there are no metrics, a line is damaged, or a required column is missing.
    """
    path = Path(run) / "metrics.csv"
    lines, rows = _rows(path)
    if not lines:
        raise UserError(f"{path} is empty; the run has not come to its first logged step")
    columns = lines[0].split(",")
    missing = [name for name in required if name not in columns]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)}, so this run did not write it; move the "
            "file elsewhere, then --resume goes on and begins a new one"
        )
    table = np.asarray(rows, np.float64).reshape(len(rows), len(columns))
    return {
        name: table[:, i].astype(np.int64 if name == "step" else np.float64)
        for i, name in enumerate(columns)
    }


def _rows(path: Path) -> tuple[list[str], list[list[float]]]:
    """Complete lines of the file, and the numbers of those after the header."""
    lines = complete_lines(path)
    if lines and "step" not in lines[0].split(","):
        raise UserError(
            f"{path} line 1 has no column step, so no run wrote it; move the file elsewhere, then "
            "--resume goes on and begins a new one"
        )
    rows = []
    for number, line in enumerate(lines[1:], 2):
        try:
            row = [float(cell) for cell in line.split(",")]
        except ValueError:
            row = []
        if len(row) != lines[0].count(",") + 1:
            raise UserError(f"{path} line {number} is damaged; correct or remove the line")
        rows.append(row)
    return lines, rows

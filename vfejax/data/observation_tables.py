"""Observations of agents from a table: one row per measurement, checked and refused by line and
column.
"""

import csv
import math
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vfejax.data.files import one_line, read_errors
from vfejax.errors import UserError

__all__ = ["load_observations_csv"]

_MOST_DIGITS = 18  # of an index that int64 holds whatever its digits


def load_observations_csv(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Observations from a table with a header line and one observation per row.

    Columns, in any order: ``agent`` (integer, 0 to n-1, each with at least one row), optionally
    ``point`` (flat index of the grid point, integer), and the components ``o0, o1, ...`` of the
    observation. Rows of one agent keep their order; empty lines are skipped.

    Returns:
        ``values [n, m, o]`` float64, m being the largest number of rows of one agent; ``present [n,
        m]`` float64, 1 where there is a row; where there is none, values and points are 0. ``point
        [n, m]`` int64 if the table has the column.

    Raises:
        UserError: naming file, line and column of what is missing, unknown, no number, or not
            finite, and the agents without rows.
    """
    with read_errors(path), open(path, encoding="utf-8-sig", newline="") as file:
        header, rows = _read_table(file, os.fspath(path))
    names = _observed_names(header, os.fspath(path))
    by_agent: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        by_agent.setdefault(row["agent"], []).append(index)
    num_agents = len(by_agent)
    missing = next((agent for agent in range(num_agents) if agent not in by_agent), None)
    if missing is not None:
        raise UserError(
            f"{os.fspath(path)}: agent {missing} has no row; number the agents 0, 1, 2, ... "
            "without gaps"
        )
    num_rows = max(map(len, by_agent.values()))
    values = np.zeros((num_agents, num_rows, len(names)))
    present = np.zeros((num_agents, num_rows))
    point = np.zeros((num_agents, num_rows), np.int64)
    for agent, indices in by_agent.items():
        values[agent, : len(indices)] = [[rows[i][name] for name in names] for i in indices]
        present[agent, : len(indices)] = 1.0
        point[agent, : len(indices)] = [rows[i].get("point", 0) for i in indices]
    return {"values": values, "present": present} | ({"point": point} if "point" in header else {})


def _read_table(file: Iterator[str], path: str) -> tuple[list[str], list[dict[str, Any]]]:
    reader = csv.reader(file, skipinitialspace=True)
    try:
        lines = [
            (reader.line_num, [cell.strip() for cell in cells])
            for cells in reader
            if any(map(str.strip, cells))
        ]
    except csv.Error as error:
        raise UserError(
            f"{path} line {reader.line_num}: {one_line(error)}; correct the line"
        ) from error
    if not lines:
        raise UserError(
            f"{path} is empty; it needs a header line agent,o0,... and one row per observation"
        )
    (_, header), *body = lines
    if not body:
        raise UserError(f"{path} has a header but no rows; it needs one row per observation")
    _observed_names(header, path)
    return header, [_read_row(header, cells, f"{path} line {number}") for number, cells in body]


def _observed_names(header: list[str], path: str) -> list[str]:
    """The columns o0, o1, ... of a header that has every column it needs and, by their number, no
    other and none twice.
    """
    names = [f"o{i}" for i in range(max(1, len(header) - 1 - ("point" in header)))]
    for name in ("agent", *names):
        if name not in header:
            raise UserError(
                f"{path}: column {name} is missing; the header must be agent, optionally point, "
                f"then o0, o1, ..., got {','.join(header)}"
            )
    return names


def _read_row(header: list[str], cells: list[str], place: str) -> dict[str, Any]:
    if len(cells) != len(header):
        raise UserError(
            f"{place} has {len(cells)} entries, but the header has {len(header)}; correct the line"
        )
    readers: dict[str, Callable[[str], Any]] = {"agent": _index, "point": _index}
    row = {}
    for name, cell in zip(header, cells, strict=True):
        try:
            row[name] = readers.get(name, _number)(cell)
        except ValueError as error:
            raise UserError(f"{place}, column {name}: {error}; correct the line") from error
    return row


def _index(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{_shown(text)} is not an integer of at least 0")
    if len(text.lstrip("0")) > _MOST_DIGITS:
        raise ValueError(f"{_shown(text)} is larger than any index")
    return int(text.lstrip("0") or "0")


def _number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = None
    if value is None or "_" in text:
        raise ValueError(f"{_shown(text)} is not a number")
    if not math.isfinite(value):
        raise ValueError(f"{_shown(text)} is not finite")
    return value


def _shown(text: str, limit: int = 40) -> str:
    """A cell for a message."""
    return repr(text) if len(text) <= limit else f"{text[:limit]!r}..."

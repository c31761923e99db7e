"""Series of numbers from CSV files."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vfejax.data.files import UTF_16, read_errors
from vfejax.data.series_rows import BadRow, Layout, Row, layout, read_row, shown
from vfejax.data.timestamps import Clock
from vfejax.errors import UserError

__all__ = [
    "Series",
    "irregular_step",
    "load_series",
]


class Series(NamedTuple):
    """Several quantities over time.

    Attributes:
        names: one per quantity.
        values: ``[t, o]`` float64, NaN where an entry is missing.
        times: ``[t]`` float64, increasing; None without a column of time.
        stamps: the times as the file writes them; 0, 1, ... without a column of time.
        time_name: name of the column of time; "row" without one.
        clock: how times are read and written; None without a column of time.
        lines: line of the file of every row, ``[t]``.
    """

    names: tuple[str, ...]
    values: np.ndarray
    times: np.ndarray | None
    stamps: tuple[str, ...]
    time_name: str
    clock: Clock | None
    lines: np.ndarray


def load_series(path: Path, columns: Sequence[str] = (), time: str | None = None) -> Series:
    """Read a CSV file.

    Args:
        path: the file; UTF-8, with or without a byte order mark.
        columns: names of the quantities to read; by default all but the time.
        time: name of the column of time; see :func:`layout`.

    Returns:
        The series, of at least two rows.

    Raises:
        UserError: naming the file, the line and the column.
    """
    with read_errors(path):
        text = path.read_text(encoding="utf-8-sig")
    if "\0" in text[:2]:
        raise UserError(f"{path} is {UTF_16}")
    lines = list(_records(path, text))
    if not lines:
        raise UserError(f"{path} is empty; columns of numbers are needed")
    second = next((row for _, row in lines[1:] if row), None)
    try:
        table = layout(lines[0][1], second, columns=columns, time=time)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    body = lines if table.header is None else lines[1:]
    rows, numbers = [], []
    for number, row in body:
        if not row:
            row = [""]  # a blank line of a single column: a missing entry
        try:
            rows.append(read_row(table, row))
        except BadRow as error:
            raise UserError(f"{path} line {number}: {error}") from None
        numbers.append(number)
    return _series(path, table, rows, numbers)


def _records(path: Path, text: str) -> Iterator[tuple[int, list[str]]]:
    """Number and cells of every line. Blank lines count in a table of one column, except at the
    end.
    """
    reader = csv.reader(io.StringIO(text.rstrip("\r\n \t"), newline=""), skipinitialspace=True)
    width, number = 0, 1
    try:
        for row in reader:
            found = [cell.strip() for cell in row]
            width = width or len(found)
            _check_quotes(path, number, reader.line_num, row, text)
            if found and (any(found) or len(found) > 1):
                yield number, found
            elif width == 1:
                yield number, []
            number = reader.line_num + 1
    except csv.Error as error:
        raise UserError(f"{path} line {number}: cannot be read as CSV: {error}") from None


def _check_quotes(path: Path, number: int, last: int, row: list[str], text: str) -> None:
    """Refuse a quote that is never closed: all that follows would be one cell."""
    at_end = last > text.rstrip("\r\n \t").count("\n")
    if last > number and row and "\n" in row[-1] and at_end and text.count('"') % 2:
        raise UserError(f"{path} line {number}: a quote opens there and never ends; remove it")


def _series(path: Path, table: Layout, rows: list[Row], numbers: list[int]) -> Series:
    if len(rows) < 2:
        count = "one row" if rows else "no rows"
        raise UserError(f"{path} has {count} of numbers; at least two are needed")
    values = np.stack([row.values for row in rows])
    for name, column in zip(table.names, values.T, strict=True):
        if np.all(np.isnan(column)):
            raise UserError(f"{path}: column '{shown(name)}' has no number; leave it out")
    lines = np.array(numbers)
    if table.time_index is None:
        stamps = tuple(str(i) for i in range(len(rows)))
        return Series(table.names, values, None, stamps, "row", None, lines)
    times = np.array([row.time for row in rows], np.float64)
    later = np.diff(times)
    if np.any(later <= 0):
        i = int(np.argmax(later <= 0))
        raise UserError(
            f"{path} line {lines[i + 1]}: the time {rows[i + 1].stamp} does not come after "
            f"{rows[i].stamp} in the line before; sort the rows, one for each time"
        )
    stamps = tuple(row.stamp for row in rows)
    name = table.header[table.time_index] if table.header else "time"
    return Series(table.names, values, times, stamps, name, table.clock, lines)


def irregular_step(times: Iterable[float], tolerance: float = 1e-3) -> int | None:
    """Index of the first time whose distance from the one before differs from the median distance
    by more than ``tolerance`` of it; None when times are evenly spaced.

    >>> irregular_step([0.0, 1.0, 2.0, 4.0])
    3
    """
    steps = np.diff(np.asarray(list(times), np.float64))
    if not len(steps):
        return None
    usual = np.median(steps)
    odd = np.abs(steps - usual) > tolerance * usual
    return int(np.argmax(odd)) + 1 if np.any(odd) else None

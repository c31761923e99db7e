"""Series of numbers from CSV files, and from lines that come one by one.

A file has a header of names, or none when its first line has a number already. Cells are separated
by commas. A cell that is empty, ``NA``, ``N/A``, ``NaN``, ``null`` or ``none`` is missing. One
column may be the time: numbers, ISO dates (in days) or ISO dates with a time of day (in seconds).
"""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vfejax.data.files import read_errors
from vfejax.data.stamps import Clock, clock_for
from vfejax.errors import UserError

__all__ = [
    "BadRow",
    "Layout",
    "Row",
    "Series",
    "cells",
    "irregular_step",
    "layout",
    "load_series",
    "read_row",
]

LARGEST = 1e100  # squares of larger numbers do not fit float64
_MISSING = frozenset(("", "na", "n/a", "nan", "null", "none"))
_TIME_NAMES = ("time", "t", "date", "datetime", "timestamp")
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


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


class Layout(NamedTuple):
    """What the cells of a line mean.

    Attributes:
        header: the names in the first line; None when the first line holds numbers.
        width: number of cells of every line.
        names: of the quantities that are read.
        indices: their cells.
        time_index: the cell with the time; None without one.
        clock: how it is read.
    """

    header: tuple[str, ...] | None
    width: int
    names: tuple[str, ...]
    indices: tuple[int, ...]
    time_index: int | None
    clock: Clock | None


class Row(NamedTuple):
    """One line: the time (None without one), as it is written, and the values ``[o]``."""

    time: float | None
    stamp: str
    values: np.ndarray


class BadRow(ValueError):
    """A line that cannot be read; the message says why, without the place."""


def cells(line: str) -> list[str]:
    """Cells of a line of CSV, without the blanks around them.

    >>> cells('3, "a, b",')
    ['3', 'a, b', '']
    """
    return [cell.strip() for row in csv.reader([line], skipinitialspace=True) for cell in row]


def _number(cell: str) -> float | None:
    """The number in a cell, NaN where it is missing; None when it holds something else."""
    if cell.lower() in _MISSING:
        return np.nan
    if "_" in cell or not cell.isascii():
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def layout(
    first: Sequence[str],
    second: Sequence[str] | None = None,
    *,
    columns: Sequence[str] = (),
    time: str | None = None,
) -> Layout:
    """What the cells of a table mean, from its first lines.

    Args:
        first: cells of the first line: names, unless one of them is a number.
        second: cells of the next line, from which the kind of time is told; None when unknown.
        columns: names of the quantities to read; by default all but the time.
        time: name of the column of time. By default a column called time, t, date, datetime or
            timestamp, if there is one.

    Raises:
        UserError: naming the column, without the file.

    >>> layout(["time", "x"], ["2024-01-31", "5"]).clock.unit
    'days'
    """
    if any(_is_number(cell) for cell in first):
        return _without_header(first, columns, time)
    header = tuple(" ".join(name.split()) for name in first)  # some have line breaks
    _check_header(header)
    time_index = _time_index(header, columns, time)
    indices = _indices(header, columns, time_index)
    clock = None
    if time_index is not None and second is not None and time_index < len(second):
        clock = clock_for(second[time_index])
    names = tuple(header[i] for i in indices)
    return Layout(header, len(header), names, indices, time_index, clock)


def _is_number(cell: str) -> bool:
    number = _number(cell)
    return number is not None and not np.isnan(number)


def _without_header(first: Sequence[str], columns: Sequence[str], time: str | None) -> Layout:
    """All cells are series, but for a date in the first one."""
    if columns or time:
        wanted = ", ".join(columns) or time
        raise UserError(f"the first line has no names, so there is no column {wanted}")
    dated = len(first) > 1 and _number(first[0]) is None and bool(clock_for(first[0]).unit)
    indices = tuple(range(int(dated), len(first)))
    names = ("y",) if len(indices) == 1 else tuple(f"y{i}" for i in range(len(indices)))
    clock = clock_for(first[0]) if dated else None
    return Layout(None, len(first), names, indices, 0 if dated else None, clock)


def _check_header(header: tuple[str, ...]) -> None:
    if len(header) == 1:
        for delimiter, name in _OTHER_DELIMITERS.items():
            if delimiter in header[0]:
                raise UserError(
                    f"cells are separated by {name}, and commas are needed (with a point in "
                    "decimal numbers); save it as comma-separated values"
                )
    seen: dict[str, int] = {}
    for number, name in enumerate(header, 1):
        if name and name in seen:
            raise UserError(
                f"columns {seen[name]} and {number} have the same name '{_shown(name)}'; rename one"
            )
        seen[name] = number


def _time_index(header: tuple[str, ...], columns: Sequence[str], time: str | None) -> int | None:
    if time is not None:
        if time not in header:
            raise UserError(f"--time {time}: no such column; there are {_listed(header)}")
        if time in columns:
            raise UserError(f"--time {time}: is one of --columns too; leave it out of one of them")
        return header.index(time)
    named = [
        index
        for index, name in enumerate(header)
        if name.lower() in _TIME_NAMES and name not in columns
    ]
    return named[0] if named and len(header) > 1 else None


def _indices(
    header: tuple[str, ...], columns: Sequence[str], time_index: int | None
) -> tuple[int, ...]:
    for name in columns:
        if name not in header:
            raise UserError(f"--columns {name}: no such column; there are {_listed(header)}")
    if len(set(columns)) < len(columns):
        raise UserError(f"--columns {' '.join(columns)}: a column is given twice; remove one")
    if columns:
        return tuple(header.index(name) for name in columns)
    indices = tuple(i for i in range(len(header)) if i != time_index)
    for index in indices:
        if not header[index]:
            raise UserError(
                f"column {index + 1} has no name; name it, or choose others with --columns"
            )
    if not indices:
        raise UserError("there is no column besides the time")
    return indices


def _listed(names: Sequence[str]) -> str:
    return ", ".join(_shown(name) for name in names if name)


def read_row(table: Layout, row: Sequence[str]) -> Row:
    """The values of one line.

    Args:
        table: what its cells mean.
        row: the cells.

    Raises:
        BadRow: when the number of cells is another one, a cell is no number, or the time is
            missing.

    >>> read_row(layout(["x", "y"]), ["1.5", "NA"]).values.tolist()
    [1.5, nan]
    """
    if len(row) != table.width:
        if table.header is not None and tuple(row) == table.header:
            raise BadRow("repeats the header; remove it")
        found = "1 cell" if len(row) == 1 else f"{len(row)} cells"
        wanted = "is 1 column" if table.width == 1 else f"are {table.width} columns"
        raise BadRow(f"has {found} where there {wanted}")
    if table.header is not None and tuple(row) == table.header:
        raise BadRow("repeats the header; remove it")
    values = np.array([_value(table.header, i, row[i]) for i in table.indices])
    if table.time_index is None or table.clock is None:
        return Row(None, "", values)
    stamp = row[table.time_index]
    name = table.header[table.time_index] if table.header else "time"
    if stamp.lower() in _MISSING:
        raise BadRow(f"column '{name}': there is no time")
    time = table.clock.parse(stamp)
    if time is None:
        raise BadRow(f"column '{name}': '{_shown(stamp)}' is no time; {table.clock.wanted}")
    return Row(time, stamp, values)


def _value(header: tuple[str, ...] | None, index: int, cell: str) -> float:
    value = _number(cell)
    column = f"column '{_shown(header[index])}'" if header else f"column {index + 1}"
    if value is None:
        hint = ""
        if clock_for(cell).unit:
            hint = f"; if it is the time, give --time {header[index]}" if header else ""
        elif cell.count(",") == 1 and _number(cell.replace(",", ".")) is not None:
            hint = "; decimal numbers need a point"
        raise BadRow(f"{column}: '{_shown(cell)}' is not a number (a missing one is empty){hint}")
    if np.isinf(value) or abs(value) > LARGEST:
        raise BadRow(f"{column}: {_shown(cell)} is too large; at most {LARGEST:g} can be used")
    return value


def _shown(text: str, limit: int = 40) -> str:
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= limit else f"{text[:limit]}..."


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
            raise UserError(f"{path}: column '{_shown(name)}' has no number; leave it out")
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

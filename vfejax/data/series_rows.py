"""Rows of a table of numbers: what the cells of a line mean, and how they are read.

A table has a header of names, or none when its first line has a number already. Cells are separated
by commas. A cell that is empty, ``NA``, ``N/A``, ``NaN``, ``null`` or ``none`` is missing. One
column may be the time: numbers, ISO dates (in days) or ISO dates with a time of day (in seconds).
"""

import csv
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from vfejax.data.timestamps import Clock, clock_for
from vfejax.errors import UserError

__all__ = ["LARGEST", "BadRow", "Layout", "Row", "cells", "layout", "read_row", "shown"]


LARGEST = 1e100  # squares of larger numbers do not fit float64
_MISSING = frozenset(("", "na", "n/a", "nan", "null", "none"))
_TIME_NAMES = ("time", "t", "date", "datetime", "timestamp")
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}


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
                f"columns {seen[name]} and {number} have the same name '{shown(name)}'; rename one"
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
    return ", ".join(shown(name) for name in names if name)


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
        raise BadRow(f"column '{name}': '{shown(stamp)}' is no time; {table.clock.wanted}")
    return Row(time, stamp, values)


def _value(header: tuple[str, ...] | None, index: int, cell: str) -> float:
    value = _number(cell)
    column = f"column '{shown(header[index])}'" if header else f"column {index + 1}"
    if value is None:
        hint = ""
        if clock_for(cell).unit:
            hint = f"; if it is the time, give --time {header[index]}" if header else ""
        elif cell.count(",") == 1 and _number(cell.replace(",", ".")) is not None:
            hint = "; decimal numbers need a point"
        raise BadRow(f"{column}: '{shown(cell)}' is not a number (a missing one is empty){hint}")
    if np.isinf(value) or abs(value) > LARGEST:
        raise BadRow(f"{column}: {shown(cell)} is too large; at most {LARGEST:g} can be used")
    return value


def shown(text: str, limit: int = 40) -> str:
    """Text as an error shows it: printable, and no longer than the limit.

    >>> shown("a\\tb")
    'a\\\\tb'
    """
    text = "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
    return text if len(text) <= limit else f"{text[:limit]}..."

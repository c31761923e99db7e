"""Series from CSV: what is read, and one line for everything that cannot be."""

import numpy as np
import pytest

from vfejax.data.series import irregular_step, load_series
from vfejax.data.timestamps import DATES, MOMENTS, clock_for
from vfejax.errors import UserError


def _load(tmp_path, text, *arguments, encoding="utf-8"):
    path = tmp_path / "series.csv"
    path.write_bytes(text.encode(encoding))
    return load_series(path, *arguments)


def test_columns_times_and_missing_entries_are_read(tmp_path):
    text = 'time, x ,"y"\r\n0, 1.5,NA\r\n0.5,,2e3\r\n2,nan,-1\r\n\r\n'
    series = _load(tmp_path, text)
    assert series.names == ("x", "y")
    np.testing.assert_array_equal(series.times, [0.0, 0.5, 2.0])
    np.testing.assert_array_equal(series.values, [[1.5, np.nan], [np.nan, 2000], [np.nan, -1]])
    assert series.lines.tolist() == [2, 3, 4]
    assert series.stamps == ("0", "0.5", "2")


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path):
    assert _load(tmp_path, "x\n1\n2\n", encoding="utf-8-sig").names == ("x",)


def test_a_line_break_in_a_name_is_a_blank(tmp_path):
    found = _load(tmp_path, '"x\r\n(m)",note\r\n1,"2"\r\n3,4\r\n')
    assert found.names == ("x (m)", "note")


def test_numbers_without_a_header_are_rows(tmp_path):
    series = _load(tmp_path, "1,2\n3,4\n")
    assert series.names == ("y0", "y1")
    assert series.values.tolist() == [[1, 2], [3, 4]]


def test_dates_are_known_without_a_header(tmp_path):
    series = _load(tmp_path, "2024-01-01,1,2\n2024-01-03,3,4\n")
    assert series.names == ("y0", "y1")
    assert np.diff(series.times).tolist() == [2.0]


def test_a_blank_line_in_one_column_is_a_missing_entry_but_not_at_the_end(tmp_path):
    np.testing.assert_array_equal(_load(tmp_path, "x\n1\n\n3\n\n\n").values[:, 0], [1, np.nan, 3])
    assert len(_load(tmp_path, "x,y\n1,2\n\n3,4\n").values) == 2


def test_columns_are_chosen_by_name_in_the_order_given(tmp_path):
    series = _load(tmp_path, "a,b,c\n1,x,3\n4,y,6\n", ("c", "a"))
    assert series.values.tolist() == [[3, 1], [6, 4]]


def test_dates_are_days_and_times_of_day_are_seconds(tmp_path):
    series = _load(tmp_path, "date,x\n2024-02-28,1\n2024-03-01,2\n")
    assert np.diff(series.times).tolist() == [2.0]
    series = _load(tmp_path, "at,x\n2024-02-28T10:00:00,1\n2024-02-28T10:00:30Z,2\n", (), "at")
    assert np.diff(series.times).tolist() == [30.0]
    assert clock_for("2024-02-28T10:00:00") is MOMENTS


@pytest.mark.parametrize("clock", [DATES, MOMENTS])
def test_times_are_written_as_they_are_read(clock):
    text = "2024-02-28" if clock is DATES else "2024-02-28T10:00:00"
    assert clock.write(clock.parse(text)) == text
    assert clock.days(clock.parse("1970-01-02")) == 1.0


BAD = {
    "": "is empty",
    "x\n": "no rows of numbers",
    "x\n1\n": "one row of numbers",
    "x,y\n1,2\n3,abc\n": "line 3: column 'y': 'abc' is not a number",
    "x,y\n1,2\n3\n": "line 3: has 1 cell where there are 2 columns",
    "x\n1\n2,5\n": "line 3: has 2 cells where there is 1 column",
    "x,y\n1,2\nx,y\n3,4\n": "line 3: repeats the header",
    "x,x\n1,2\n3,4\n": "columns 1 and 2 have the same name 'x'",
    "x;y\n1,5;2\n3;4\n": "separated by semicolons",
    "x\n1e400\n2\n": "line 2: column 'x': 1e400 is too large",
    "x\n1\n-inf\n": "line 3: column 'x': -inf is too large",
    "x\n1_000\n2\n": "'1_000' is not a number",
    "time,x\n1,2\n1,3\n": "line 3: the time 1 does not come after 1",
    "time,x\n2024-01-02,2\n2024-01-01,3\n": "line 3: the time 2024-01-01 does not come after",
    "time,x\n1,2\n,3\n": "line 3: column 'time': there is no time",
    "time,x\n2024-01-02,2\n5,3\n": "line 3: column 'time': '5' is no time; the others are dates",
    "when,x\n2024-01-02,2\n2024-01-03,3\n": "give --time when",
    "x,y\n1,\n2,NA\n": "column 'y' has no number",
    ",x\n0,1\n1,2\n": "column 1 has no name",
    'x\n"1\n2\n3\n': "line 2: a quote opens there and never ends",
    "x\n1\na\x1b[2J\n": r"line 3: column 'x': 'a\x1b[2J' is not a number",
}


@pytest.mark.parametrize("text", BAD, ids=list(BAD.values()))
def test_what_cannot_be_read_is_one_line_that_names_the_place(text, tmp_path):
    with pytest.raises(UserError) as caught:
        _load(tmp_path, text)
    assert BAD[text] in str(caught.value)
    assert "series.csv" in str(caught.value)


@pytest.mark.parametrize(
    ("columns", "time", "said"),
    [
        (("z",), None, "--columns z: no such column; there are x, y"),
        (("x", "x"), None, "a column is given twice"),
        ((), "z", "--time z: no such column"),
        (("x",), "x", "is one of --columns too"),
    ],
)
def test_columns_that_are_not_there_are_named(columns, time, said, tmp_path):
    with pytest.raises(UserError, match=said):
        _load(tmp_path, "x,y\n1,2\n3,4\n", columns, time)


def test_names_without_a_header_are_refused(tmp_path):
    with pytest.raises(UserError, match="no names, so there is no column x"):
        _load(tmp_path, "1,2\n3,4\n", ("x",))


def test_an_encoding_that_is_not_utf8_is_named(tmp_path):
    with pytest.raises(UserError, match="is UTF-16 text, and UTF-8 is needed"):
        _load(tmp_path, "x\n1\n2\n", encoding="utf-16")


def test_the_first_irregular_step_is_found():
    assert irregular_step([0.0, 0.1, 0.2, 0.30000001]) is None
    assert irregular_step([0.0, 1.0, 2.0, 2.5, 3.5]) == 3
    assert irregular_step([1.0]) is None

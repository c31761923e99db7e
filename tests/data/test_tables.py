"""Small tables: matrices and neighbour lists from CSV."""

import chex
import numpy as np
import pytest

from vfejax.data.tables import load_edges_csv, load_matrix_csv
from vfejax.errors import UserError


@pytest.fixture
def write(tmp_path):
    def to_file(content):
        path = tmp_path / "table.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return to_file


def _refused(load, path, argument, *pieces):
    with pytest.raises(UserError) as caught:
        load(path, argument)
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    assert all(piece in message for piece in pieces)


@pytest.mark.parametrize(
    "content", ["1,2.5,-3e2\n0,1,0\n", "\ufeff1, 2.5, -3e2\r\n0,1,0", "1,2.5,-300\n\n0,1,0\n\n"]
)
def test_matrix(content, write):
    np.testing.assert_array_equal(
        load_matrix_csv(write(content), (2, 3)), [[1.0, 2.5, -300.0], [0.0, 1.0, 0.0]]
    )


@pytest.mark.parametrize(
    ("content", "shape"), [("1,2,3\n", (1, 3)), ("1\n2\n3\n", (3, 1)), ("4\n", (1, 1))]
)
def test_a_matrix_of_one_row_or_column_keeps_its_shape(content, shape, write):
    chex.assert_shape(load_matrix_csv(write(content), shape), shape)


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("1,2\n3,4\n5,6\n", ("3 x 2", "2 x 3")),
        ("1,2,3\n4,5,nan\n", ("row 2", "column 3", "not finite")),
        ("1,2,3\n4,inf,6\n", ("row 2", "column 2", "not finite")),
        ("a,b,c\n1,2,3\n", ("numbers",)),
        ("1,2,3\n4,5\n", ("numbers",)),
        ("1,,3\n4,5,6\n", ("numbers",)),
        ("", ("2 x 3",)),
        (b"\xff\xfe1,2,3", ("UTF-8",)),
    ],
    ids=["transposed", "nan", "inf", "header", "ragged", "hole", "empty", "not text"],
)
def test_bad_matrices_are_refused_by_name(content, pieces, write):
    _refused(load_matrix_csv, write(content), (2, 3), *pieces)


def test_edges(write):
    receivers, senders = load_edges_csv(write("receiver,sender\n0,1\n 2 , 0 \n\n1,1\n"), 3)
    np.testing.assert_array_equal(receivers, [0, 2, 1])
    np.testing.assert_array_equal(senders, [1, 0, 1])
    chex.assert_type([receivers, senders], np.int32)


def test_agents_may_be_written_with_leading_zeros(write):
    receivers, senders = load_edges_csv(write("receiver,sender\n00,002\n"), 3)
    assert (receivers.tolist(), senders.tolist()) == ([0], [2])


@pytest.mark.parametrize(
    ("content", "pieces"),
    [
        ("", ("receiver,sender",)),
        ("0,1\n", ("receiver,sender",)),
        ("sender,receiver\n0,1\n", ("receiver,sender",)),
        ("receiver,sender\n", ("no edges",)),
        ("receiver,sender\n0,1\n0,3\n", ("line 3", "0,3", "0 and 2")),
        ("receiver,sender\n-1,0\n", ("line 2",)),
        ("receiver,sender\n0.5,1\n", ("line 2",)),
        ("receiver,sender\nnan,1\n", ("line 2",)),
        ("receiver,sender\n0,1,2\n", ("line 2",)),
        ("receiver,sender\n0\n", ("line 2",)),
        ("receiver,sender\n\u00b2,0\n", ("line 2",)),
        (f"receiver,sender\n0,{'1' * 5000}\n", ("line 2", "0,111", "...")),
        (b"\xff\xfe", ("UTF-8",)),
    ],
    ids=[
        "empty",
        "no header",
        "swapped",
        "header only",
        "beyond",
        "negative",
        "fraction",
        "nan",
        "three",
        "one",
        "superscript",
        "5000 digits",
        "binary",
    ],
)
def test_bad_edges_are_refused_by_file_and_line(content, pieces, write):
    _refused(load_edges_csv, write(content), 3, *pieces)


@pytest.mark.parametrize(("load", "argument"), [(load_matrix_csv, (1, 1)), (load_edges_csv, 2)])
def test_missing_file_and_folder(load, argument, tmp_path):
    _refused(load, tmp_path / "none.csv", argument, "does not exist")
    _refused(load, tmp_path, argument, "cannot read")

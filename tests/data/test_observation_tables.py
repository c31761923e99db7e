import chex
import numpy as np
import pytest

from vfejax.data.observation_tables import load_observations_csv
from vfejax.errors import UserError


@pytest.fixture
def table(tmp_path):
    def write(text):
        path = tmp_path / "data.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def test_observations_are_padded(table):
    found = load_observations_csv(table("agent,o0,o1\n1,3,-4e-1\n0, 0.1 ,2\n\n1,5,6\n"))
    assert set(found) == {"values", "present"}
    np.testing.assert_array_equal(found["values"], [[[0.1, 2], [0, 0]], [[3, -0.4], [5, 6]]])
    np.testing.assert_array_equal(found["present"], [[1, 0], [1, 1]])
    chex.assert_type([found["values"], found["present"]], np.float64)


def test_points_and_any_order_of_columns(table):
    found = load_observations_csv(
        table("\ufeffo1,point,agent,o0\r\n2,7,0,1\r\n4,0,0,3\r\n6,5,1,5\r\n")
    )
    np.testing.assert_array_equal(found["point"], [[7, 0], [5, 0]])
    np.testing.assert_array_equal(found["values"], [[[1, 2], [3, 4]], [[5, 6], [0, 0]]])
    np.testing.assert_array_equal(found["present"], [[1, 1], [1, 0]])
    chex.assert_type(found["point"], np.int64)


def test_numbers_are_read_exactly(table, rng):
    values = rng.normal(size=(20, 1, 2)) * 10.0 ** rng.integers(-200, 200, (20, 1, 2))
    rows = "".join(f"{agent},{x!r},{y!r}\n" for agent, (x, y) in enumerate(values[:, 0].tolist()))
    found = load_observations_csv(table("agent,o0,o1\n" + rows))
    np.testing.assert_array_equal(found["values"], values)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n \n", "is empty"),
        ("agent,o0\n", "has a header but no rows"),
        ("o0,o1\n1,2\n", "column agent is missing"),
        ("agent\n0\n", "column o0 is missing"),
        ("agent,o0,o2\n0,1,2\n", "column o1 is missing"),
        ("agent,o0,x\n0,1,2\n", "column o1 is missing; .*got agent,o0,x"),
        ("agent,o0,o0\n0,1,2\n", "column o1 is missing"),
        ("agent,point,point,o0\n0,1,2,3\n", "column o1 is missing"),
        ("agent;o0\n0;1\n", "column agent is missing; .*got agent;o0"),
        ("agent,o0\n0,1\n0,abc\n", "line 3, column o0: 'abc' is not a number"),
        ("agent,o0\n0,1\n\n0,\n", "line 4, column o0: '' is not a number"),
        ("agent,o0\n0,1_0\n", "line 2, column o0: '1_0' is not a number"),
        ("agent,o0\n0,nan\n", "line 2, column o0: 'nan' is not finite"),
        ("agent,o0\n0,1\n0,-inf\n", "line 3, column o0: '-inf' is not finite"),
        ("agent,o0\n0,1e999\n", "line 2, column o0: '1e999' is not finite"),
        ("agent,o0\n1.5,1\n", "line 2, column agent: '1.5' is not an integer"),
        ("agent,o0\n-1,1\n", "line 2, column agent: '-1' is not an integer of at least 0"),
        ("agent,point,o0\n0,-1,1\n", "line 2, column point: '-1' is not an integer"),
        (f"agent,point,o0\n0,{'1' * 23},1\n", "line 2, column point: .* larger than any index"),
        (f"agent,o0\n{'7' * 5000},1\n", "line 2, column agent: '7777.*larger than any index"),
        (f"agent,o0\n0,{'x' * 5000}\n", r"column o0: 'x{40}'\.\.\. is not a number"),
        ("agent,o0\n0,1,2\n", "line 2 has 3 entries, but the header has 2"),
        ("agent,o0\n0,1\n0\n", "line 3 has 1 entries"),
        ("agent,o0\n0,1\n2,1\n", "agent 1 has no row"),
        ("agent,o0\n1000000000000,1\n", "agent 0 has no row"),
        (b"agent,o0\n0,\xff\n", "is not UTF-8 text"),
        ('agent,o0\n0,"' + "1" * 200_000 + '"\n', "line 2: field larger"),
    ],
)
def test_bad_table_is_one_line_that_says_where(table, text, message):
    with pytest.raises(UserError, match=rf"data.csv.*{message}") as caught:
        load_observations_csv(table(text))
    assert "\n" not in str(caught.value)


def test_missing_table_is_named(tmp_path):
    with pytest.raises(UserError, match=r"data.csv does not exist"):
        load_observations_csv(tmp_path / "data.csv")

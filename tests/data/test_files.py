import errno
import os

import pytest

from vfejax.data import files
from vfejax.errors import UserError


@pytest.mark.parametrize(
    ("content", "stored"), [("é\n", "é\n".encode()), (b"\x00\xff", b"\x00\xff"), ("", b"")]
)
def test_atomic_write_stores_text_and_bytes_and_leaves_nothing_else(tmp_path, content, stored):
    files.atomic_write(tmp_path / "a", "old")
    files.atomic_write(tmp_path / "a", content)
    assert (tmp_path / "a").read_bytes() == stored
    assert os.listdir(tmp_path) == ["a"]


def test_failed_body_leaves_the_old_content(tmp_path):
    files.atomic_write(tmp_path / "a", "old")

    def fail():
        with files.atomic_file(tmp_path / "a") as file:
            file.write(b"new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert (tmp_path / "a").read_text() == "old"
    assert os.listdir(tmp_path) == ["a"]


def test_content_is_not_visible_before_the_end(tmp_path):
    with files.atomic_file(tmp_path / "a") as file:
        file.write(b"new")
        file.flush()
        assert not (tmp_path / "a").exists()
        assert [files.is_temporary(name) for name in os.listdir(tmp_path)] == [True]
    assert (tmp_path / "a").read_bytes() == b"new"


@pytest.mark.parametrize("name", [".hidden", "a.tmp", "config.toml"])
def test_files_of_others_are_not_temporary(name):
    assert not files.is_temporary(name)


@pytest.mark.parametrize("place", ["missing/a", "taken"])
def test_unwritable_place_is_one_line_that_names_it(tmp_path, place):
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match=f"^cannot write .*{place}: .*; .*--out$") as caught:
        files.atomic_write(tmp_path / place, "x")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("ENOSPC", "free some space"),
        ("EACCES", "check its permissions"),
        ("EIO", "choose another place"),
    ],
)
def test_write_errors_says_what_helps(code, remedy):
    number = getattr(errno, code)
    with (
        pytest.raises(UserError, match=f"^cannot write x: {os.strerror(number)}; {remedy}"),
        files.write_errors("x"),
    ):
        raise OSError(number, os.strerror(number))


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (FileNotFoundError(2, "No such file"), "^x does not exist"),
        (IsADirectoryError(21, "Is a directory"), "^cannot read x: Is a directory"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "^x is not UTF-8 text"),
    ],
)
def test_read_errors_names_the_file(error, message):
    with pytest.raises(UserError, match=message), files.read_errors("x"):
        raise error


def test_other_errors_pass():
    with pytest.raises(ZeroDivisionError), files.write_errors("x"), files.read_errors("x"):
        raise ZeroDivisionError


def test_one_line_shortens_and_joins():
    assert files.one_line(ValueError("a\n  b")) == "a b"
    assert files.one_line(ValueError("a" * 500), 10) == "a" * 10
    assert files.one_line(ValueError()) == "ValueError"

"""What commands write: nothing of the user's is replaced unasked, devices stay devices, and no text
is lost.
"""

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from vfejax.cli import output
from vfejax.errors import UserError


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("mine")
    return path


def test_a_file_with_content_is_replaced_only_when_asked(file):
    with pytest.raises(UserError, match=r"^--out .*a.txt: exists already; .*--overwrite"):
        output.check_replaceable(file, overwrite=False)
    output.check_replaceable(file, overwrite=True)
    output.write(file, "new")
    assert file.read_text() == "new"
    assert os.listdir(file.parent) == ["a.txt"]


def test_a_link_is_its_file(file, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(file)
    with pytest.raises(UserError, match="exists already"):
        output.check_replaceable(link, overwrite=False)
    output.write(link, "new")
    assert link.is_symlink()
    assert file.read_text() == "new"


def test_what_does_not_exist_or_is_empty_is_written(tmp_path):
    (tmp_path / "empty").touch()
    (tmp_path / "dangling").symlink_to(tmp_path / "target")
    for name in ("absent", "empty", "dangling"):
        output.check_replaceable(tmp_path / name, overwrite=False)
        output.write(tmp_path / name, name)
        assert (tmp_path / name).read_text() == name
    assert (tmp_path / "dangling").is_symlink()


def test_a_directory_and_a_name_that_cannot_be_are_refused(tmp_path):
    with pytest.raises(UserError, match="is a directory"):
        output.check_replaceable(tmp_path, overwrite=True)
    with pytest.raises(UserError, match="NUL"):
        output.check_replaceable(tmp_path / "a\0", overwrite=True)
    output.check_replaceable(None, overwrite=False)


def test_a_folder_that_does_not_exist_is_named_before_anything_is_computed(tmp_path):
    (tmp_path / "dangling").symlink_to(tmp_path / "absent" / "a.txt")
    for name in ("absent/a.txt", "dangling"):
        with pytest.raises(UserError, match=r"^--out .*: there is no folder .*absent; make it"):
            output.check_replaceable(tmp_path / name, overwrite=True)


def test_devices_and_pipes_stay_what_they_are(tmp_path):
    device = Path(os.devnull)
    output.check_replaceable(device, overwrite=False)
    output.write(device, "gone")
    assert device.is_char_device()
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    output.check_replaceable(pipe, overwrite=False)
    read = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_text()))
    reader.start()
    output.write(pipe, "through")
    reader.join(10)
    assert read == ["through"]
    assert pipe.is_fifo()


@pytest.mark.parametrize(
    ("encoding", "expected"),
    [
        ("utf-8", b"caf\xe9 \xc3\xa9 \xe2\x98\xba\n"),
        ("latin-1", b"caf\xe9 \xe9 \\u263a\n"),
        ("ascii", b"caf\xe9 \\xe9 \\u263a\n"),
    ],
)
def test_a_terminal_that_lacks_a_character_shows_its_escape(encoding, expected, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    output.show("caf\udce9 \xe9 \u263a")
    assert stream.buffer.getvalue() == expected


def test_a_notebook_and_a_closed_terminal_are_no_trouble(monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    output.show("caf\udce9")
    assert sys.stdout.getvalue() == "caf\\udce9\n"
    monkeypatch.setattr(sys, "stdout", None)
    output.show("a line that is lost")


def test_bytes_of_an_argument_are_written_as_they_came(tmp_path):
    output.write(tmp_path / "a", "caf\udce9 \ud800")
    assert (tmp_path / "a").read_bytes() == b"caf\xe9 \\ud800"

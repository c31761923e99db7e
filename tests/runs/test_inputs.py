"""Checksums of a run's input files."""

import json
import os

import pytest

from vfejax.errors import UserError
from vfejax.runs import directory as run_directory
from vfejax.runs import inputs


@pytest.fixture
def run(tmp_path):
    with run_directory.create(tmp_path / "run", {}) as run:
        yield run


@pytest.fixture
def given(tmp_path):
    (tmp_path / "a.csv").write_text("1,2\n")
    folder = tmp_path / "texts"
    folder.mkdir()
    for name in ("train.txt", "valid.txt", "README"):
        (folder / name).write_text(name)
    return {
        "observations": tmp_path / "a.csv",
        "text": folder,
        "edges": None,
        "topics": inputs.Content("help topics", "word"),
    }


def test_a_missing_file_of_a_directory_is_named(tmp_path):
    files = inputs.Files(tmp_path, ("config.json", "model.safetensors"))
    (tmp_path / "config.json").touch()
    missing = pytest.raises(UserError, match=r"--phi .*model\.safetensors: does not exist")
    with run_directory.create(tmp_path / "run", {}) as run, missing:
        inputs.record(run, {"phi": files})


def test_unchanged_inputs_pass_from_any_folder_and_after_a_move(run, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    inputs.record(run, {**given, "observations": "a.csv"})
    monkeypatch.chdir("/")
    inputs.check(run, given)
    inputs.check(run.path, given)
    (tmp_path / "a.csv").rename(tmp_path / "b.csv")
    inputs.check(run, {**given, "observations": tmp_path / "b.csv"})
    recorded = json.loads((run.path / "inputs.json").read_text())
    assert recorded["observations"]["path"] == str(tmp_path / "a.csv")
    assert set(recorded["text"]["files"]) == {"train.txt", "valid.txt"}
    assert set(recorded) == {"observations", "text", "topics"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "a.csv").write_text("1,3\n"), r"--observations .*a.csv: changed since"),
        (lambda p: (p / "a.csv").unlink(), r"--observations .*a.csv: does not exist"),
        (
            lambda p: (p / "texts/train.txt").write_text("x"),
            r"--text .*train.txt: changed.*\b1 now",
        ),
        (lambda p: (p / "texts/test.txt").write_text("x"), r"--text .*other files.*\(test.txt\)"),
        (lambda p: (p / "texts/valid.txt").unlink(), r"--text .*other files.*\(valid.txt\)"),
    ],
    ids=["changed", "missing", "part changed", "part added", "part missing"],
)
def test_changed_inputs_are_refused_by_option_and_file(change, message, run, given, tmp_path):
    inputs.record(run, given)
    change(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        inputs.check(run, given)
    assert "\n" not in str(caught.value)


def test_an_input_that_the_run_was_made_without_is_refused(run, given, tmp_path):
    inputs.record(run, given)
    with pytest.raises(UserError, match=r"--edges: .*made without it"):
        inputs.check(run, {**given, "edges": tmp_path / "a.csv"})


def test_other_help_topics_are_refused(run, given):
    inputs.record(run, given)
    with pytest.raises(UserError, match=r"--topics help topics: changed"):
        inputs.check(run, {**given, "topics": inputs.Content("help topics", "words")})


def test_a_run_without_a_record_passes(run, given):
    assert not inputs.is_recorded(run)
    inputs.check(run, given)


@pytest.mark.parametrize("text", ["", "[]", '{"a": 3}', "[" * 100_000])
def test_a_damaged_record_is_named(text, run, given):
    (run.path / "inputs.json").write_text(text)
    with pytest.raises(UserError, match=r"inputs.json is damaged"):
        inputs.check(run, given)


def test_a_pipe_or_a_device_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/null"):
        with pytest.raises(UserError, match=r"--text .*: is no regular file"):
            inputs.check_readable({"text": path})


def test_help_topics_are_a_text():
    topics = inputs.help_topics()
    assert topics.name == "help topics of Python"
    assert len(topics.text) > 100_000

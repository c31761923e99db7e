"""The directory of a run, as several processes see it."""

import pytest

from vfejax.errors import UserError
from vfejax.runs import directory, processes, shared_directory


def test_the_others_read_a_run_that_the_first_holds(tmp_path):
    with directory.create(tmp_path / "run", {"steps": 3}) as run:
        with shared_directory.join(run.path) as seen:
            assert directory.read_config(seen) == {"steps": 3}
            shared_directory.meet(seen)  # one process is always agreed with itself
        assert not (run.path / directory.OWN / "mark").exists()


def test_a_directory_that_does_not_show_is_told_by_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(shared_directory, "_TRIES", 1)
    assert shared_directory._seen(tmp_path / "mark") == 0
    (tmp_path / "mark").write_text("17")
    assert shared_directory._seen(tmp_path / "mark") == 17


def test_a_process_elsewhere_is_named_with_the_place_where_it_looked(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run" / directory.OWN).mkdir(parents=True)
    monkeypatch.setattr(processes, "count", lambda: 2)
    monkeypatch.setattr(processes, "barrier", lambda: None)
    monkeypatch.setattr(processes, "gathered", lambda value: [value, 0])
    with (
        shared_directory.join("run") as run,
        pytest.raises(UserError, match="process 1 does not") as error,
    ):
        shared_directory.meet(run)
    assert str(tmp_path / "run") in str(error.value)


def test_one_process_leads_and_agrees_with_itself():
    assert (processes.index(), processes.count()) == (0, 1)
    assert processes.any_of(True)
    assert processes.said_by_first(0.1) == 0.1

"""The status file: whole at any moment, and never in the way."""

import json
import os
import threading
import time

import jax.numpy as jnp
import pytest

from vfejax.runs import status
from vfejax.runs.status import StatusFile


def _wait_for(condition):
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited for ten seconds")


def test_a_status_is_written_while_the_body_lasts_and_its_end_is_told(tmp_path):
    path = tmp_path / "status.json"
    with StatusFile(path) as told:
        told.publish({"cycles": 60, "rate": float("nan"), "by": {"1": float("inf")}})
        _wait_for(path.exists)
        content = json.loads(path.read_text())
        assert (content["state"], content["pid"]) == ("running", os.getpid())
        assert abs(content["written"] - time.time()) < 60
        assert (content["cycles"], content["rate"], content["by"]) == (60, None, {"1": None})
        told.publish({"cycles": 61})
    content = json.loads(path.read_text())
    assert (content["state"], content["cycles"]) == ("ended", 61)


def test_what_a_program_returns_is_written_as_it_is(tmp_path):
    """A status that JSON refuses ended the thread, and then the body of ``with``."""
    path = tmp_path / "status.json"
    with StatusFile(path) as told:
        told.publish({"mean": jnp.asarray(0.5), "belief": jnp.asarray([1.0, jnp.nan]), "at": (1,)})
    content = json.loads(path.read_text())
    assert (content["mean"], content["belief"], content["at"]) == (0.5, [1.0, None], [1])


def test_an_exception_is_told_as_a_failure(tmp_path):
    with pytest.raises(KeyError), StatusFile(tmp_path / "status.json"):
        raise KeyError
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "failed"


def test_a_slow_disk_holds_up_nobody_and_only_the_newest_status_is_written(tmp_path, monkeypatch):
    disk, written = threading.Event(), []

    def slow_write(path, content):
        written.append(json.loads(content))
        disk.wait()

    monkeypatch.setattr(status, "atomic_write", slow_write)
    with StatusFile(tmp_path / "status.json") as told:
        told.publish({"cycles": 1})
        _wait_for(lambda: written)
        told.publish({"cycles": 2})
        told.publish({"cycles": 3})  # all of this while the disk is busy
        disk.set()
    cycles = [content["cycles"] for content in written]
    assert cycles[0] == 1
    assert cycles[-1] == 3
    assert 2 not in cycles


def test_a_file_that_cannot_be_written_is_told_and_nothing_is_raised(tmp_path):
    with StatusFile(tmp_path / "missing" / "status.json") as told:
        told.publish({"cycles": 1})
    assert "cannot write" in str(told.error)

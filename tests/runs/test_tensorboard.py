"""Metrics for TensorBoard: the rows reach its event files, and the extra is asked for by name."""

import math
import sys

import numpy as np
import pytest

from vfejax.errors import UserError
from vfejax.runs import directory as run_directory
from vfejax.runs import tensorboard


def _scalars(folder):
    """Step and value of every scalar that TensorBoard shows, by name: where a session begins, it
    drops what it has of that step and of later ones.
    """
    from tensorboardX.event_file_writer import event_pb2
    from tensorboardX.record_writer import masked_crc32c

    found = {}
    for path in sorted(folder.iterdir()):
        data = path.read_bytes()
        while data:
            size = int(np.frombuffer(data[:8], np.uint64)[0])
            assert masked_crc32c(data[:8]) == np.frombuffer(data[8:12], np.uint32)[0]
            event = event_pb2.Event.FromString(data[12 : 12 + size])
            data = data[16 + size :]
            if event.session_log.status == event_pb2.SessionLog.START:
                found = {tag: [x for x in xs if x[0] < event.step] for tag, xs in found.items()}
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value.simple_value))
    return found


def test_rows_reach_the_event_files_and_are_known_to_overwrite(tmp_path):
    with run_directory.create(tmp_path / "run", {}) as run:
        with tensorboard.writer(run, None) as write:
            write(0, {"loss": math.nan, "rate": 0.5})
            write(2, {"loss": np.float64(1.25), "rate": 0.25})
            write(4, {"loss": 9.0, "rate": 9.0})  # after the last checkpoint
        with tensorboard.writer(run, 2) as write:
            write(4, {"loss": 1.0, "rate": 0.125})
    folder = tmp_path / "run" / tensorboard.FOLDER
    found = _scalars(folder)
    assert found["loss"] == [(2, 1.25), (4, 1.0)]
    assert found["rate"] == [(0, 0.5), (2, 0.25), (4, 0.125)]
    (folder / "mine").write_text("mine")
    run_directory.create(tmp_path / "run", {}, overwrite=True).close()
    assert [path.name for path in folder.iterdir()] == ["mine"]


def test_without_the_extra_the_pip_command_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(UserError, match=r"--tensorboard: .*pip install 'vfejax\[tensorboard\]'$"):
        tensorboard.require()

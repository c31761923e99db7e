"""Processes join, or say in one line why not. What several do together is tested by ``vfejax
train`` and ``vfejax simulate``, in ``tests/cli/test_distributed.py``.
"""

import json
import os
import socket
import subprocess
import sys

import jax
import pytest

from vfejax.errors import UserError
from vfejax.runs import process_group
from vfejax.runs.connections import Links
from vfejax.runs.interrupt import INTERRUPTED

HEARTBEAT = """E0101 coordination_service.cc:1549] Use error polling to propagate the error
UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats):
{}
The tasks have crashed. Check the task logs for an earlier error"""

CODE = """
import sys
from vfejax.errors import UserError
from vfejax.runs import process_group, processes

try:
    with process_group.joined(process_group.Group(sys.argv[1], 2, int(sys.argv[2])), "train"):
        if processes.leads():
            raise UserError("no disk")
        processes.barrier()
except UserError as error:
    print(error)
"""


@pytest.mark.parametrize("lost", [[1], [2, 5], [12]])
def test_the_messages_of_the_service_name_the_lost_processes(lost):
    names = "\n".join(map(str, lost))
    assert process_group._named(HEARTBEAT.format(names)) == lost
    tasks = "\n".join(f"/job:jax_worker/replica:0/task:{number}" for number in lost)
    assert process_group._named(HEARTBEAT.format(tasks)) == lost


def test_settings_that_decide_numbers_are_compared():
    group = process_group.Group("a:1", 2, 0)
    versions = process_group._versions(group)
    assert json.loads(json.dumps(versions)) == versions
    with jax.threefry_partitionable(False), jax.default_matmul_precision("float32"):
        other = process_group._versions(group)
    differing = {name for name, value in versions.items() if other[name] != value}
    assert differing == {"JAX_THREEFRY_PARTITIONABLE", "JAX_DEFAULT_MATMUL_PRECISION"}


def test_a_lost_service_is_that_of_the_first_process():
    assert process_group._named("UNAVAILABLE: Failed to send RPC to coordination service.") == [0]
    assert process_group._named("something else") == []


def test_the_end_of_a_connection_is_found_behind_other_errors():
    met = UserError("cannot write the checkpoint")
    met.__cause__ = jax.errors.JaxRuntimeError("Gloo AllGather failed: Connection reset by peer")
    assert process_group._is_of_connection(met)
    assert not process_group._is_of_connection(UserError("no connection to gloo is meant here"))
    assert not process_group._is_of_connection(ValueError("shapes do not fit"))


@pytest.mark.parametrize(
    ("rank", "finished", "done", "status", "expected"),
    [
        (0, False, 0, 0, ""),  # the first process has written everything
        (0, False, INTERRUPTED, INTERRUPTED, "vfejax train: interrupted\n"),
        (
            1,
            False,
            0,
            process_group.FAILED,
            "process 0 of 2 ended or was lost, so",
        ),  # perhaps it had not
        (1, True, 0, 0, "process 0 of 2 ended or was lost as all left; the run is complete"),
        (1, True, INTERRUPTED, INTERRUPTED, "vfejax train: interrupted\n"),
        (1, True, None, process_group.FAILED, "process 0 of 2 ended or was lost, so"),
        (0, False, None, process_group.FAILED, "process 1 of 2 ended or was lost, so"),
    ],
)
def test_a_loss_while_all_leave_does_not_fail_a_run_that_is_complete(
    rank, finished, done, status, expected, monkeypatch, capfd
):
    monkeypatch.setattr(process_group, "_WORD", 0.0)

    def left(status):
        raise SystemExit(status)

    monkeypatch.setattr(os, "_exit", left)
    links = Links(rank, {})
    links.finished = finished
    watch = process_group._Watch(process_group.Group("a:1", 2, rank), "train", None, links)
    watch.connected, watch.done = True, done
    with pytest.raises(SystemExit) as ended:
        watch.lost_connection()
    assert ended.value.code == status
    assert expected in capfd.readouterr().err


@pytest.mark.slow
def test_the_error_of_one_process_ends_the_others_with_what_it_says():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    pair = [
        subprocess.Popen(
            [sys.executable, "-c", CODE, coordinator, rank],
            env=os.environ | {"JAX_PLATFORMS": "cpu"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    said = [process.communicate(timeout=120) for process in pair]
    assert [process.returncode for process in pair] == [process_group.FAILED, process_group.FAILED]
    assert said[0][0] == "no disk\n"
    assert said[1] == ("", "vfejax train: process 0 ended: no disk\n")

"""Two processes make one run. They are real ones, on this machine, with four devices each."""

import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest

from vfejax.cli.main import main
from vfejax.cli.train.config import TrainConfig
from vfejax.cli.train.together import check_group, joined
from vfejax.errors import UserError
from vfejax.runs import checkpoint, processes
from vfejax.runs.interrupt import INTERRUPTED
from vfejax.runs.metrics import read_metrics

ARGUMENTS = (
    *("--synthetic.kind", "periodic", "--synthetic.tokens", "400", "--synthetic.symbols", "7"),
    *("--model", "transformer", "--transformer.layers", "1", "--transformer.dim", "16"),
    *("--transformer.heads", "2", "--transformer.hidden", "16", "--length", "4"),
    *("--batch-size", "8", "--steps", "10", "--log-every", "2", "--checkpoint-every", "4"),
    *("--warmup-steps", "0", "--eval-every", "8", "--eval-windows", "8", "--final-windows", "8"),
    *("--sample-tokens", "0", "--shard", "zero3"),
)

CODE = """
import os, signal, sys
from matplotlib.figure import Figure
from vfejax.cli.main import main
from vfejax.data.batches import Batches
from vfejax.runs import report

step_of_signal, number, *arguments = sys.argv[1:]
blank = report.figure_png(Figure(figsize=(0.1, 0.1)), dpi=10)
report.figure_png = lambda figure: blank
batches_at = Batches.at

def at(self, step, num_steps):
    if self.shard[0] == 1 and step == int(step_of_signal):
        os.kill(os.getpid(), int(number))
    return batches_at(self, step, num_steps)

Batches.at = at
sys.exit(main(["train", *arguments]))
"""


@pytest.fixture
def run_pair(cache_folder):
    """Run two processes to their end, the second of which sends itself a signal at a step; returns
    exit status, standard output and standard error of each.
    """

    def run(number: int, *, step: int, arguments: tuple[str, ...]) -> list[tuple[int, str, str]]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = os.environ | {
            "JAX_PLATFORMS": "cpu",
            "JAX_NUM_CPU_DEVICES": "4",
            "JAX_ENABLE_X64": "1",
            "JAX_COMPILATION_CACHE_DIR": str(cache_folder),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        group = ("--coordinator", f"127.0.0.1:{port}", "--processes", "2", "--process")
        command = (sys.executable, "-c", CODE, str(step), str(int(number)))
        pair = [
            subprocess.Popen(
                [*command, *arguments, *group, which],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for which in ("0", "1")
        ]
        said = [process.communicate(timeout=300) for process in pair]
        return [(process.returncode, *lines) for process, lines in zip(pair, said, strict=True)]

    return run


def check_near(found, expected, *, rtol: float) -> None:
    """The rows of a run are those that another begins with."""
    rows, wanted = read_metrics(found), read_metrics(expected)
    assert rows.keys() == wanted.keys()
    for name, values in rows.items():
        np.testing.assert_allclose(values, wanted[name][: len(values)], rtol, err_msg=name)


@pytest.mark.slow
@pytest.mark.usefixtures("library_promotion")
def test_two_processes_train_as_one_does_and_survive_the_loss_of_one(tmp_path, run_pair):
    pair, alone, one = tmp_path / "pair", tmp_path / "alone", tmp_path / "one"
    (status, said, errors), lost = run_pair(
        signal.SIGKILL, step=6, arguments=("--out", str(pair), *ARGUMENTS)
    )
    assert (status, said) == (2, "")
    *_, line = errors.splitlines()
    assert line.startswith("vfejax train: process 1 of 2 ended or was lost")
    assert "--resume" in line
    assert "Gloo" not in errors
    assert "stack trace" not in errors
    assert lost == (-signal.SIGKILL, "", "")  # the first one speaks for all
    assert checkpoint.steps(pair) == [0, 4]
    shutil.copytree(pair, alone)
    before = read_metrics(pair)
    assert before["step"].tolist() == [0, 2, 4, 6]

    # A signal to one stops both after the same steps.
    ended = run_pair(signal.SIGTERM, step=6, arguments=("--out", str(pair), "--resume"))
    assert [status for status, *_ in ended] == [INTERRUPTED, INTERRUPTED], ended
    assert checkpoint.steps(pair) == [0, 4, 8]
    after = read_metrics(pair)
    assert after["step"].tolist() == [0, 2, 4, 6, 8]
    for name, values in before.items():  # step 6 was lost, and is the same bit for bit
        np.testing.assert_array_equal(after[name][:4], values, err_msg=name)
    assert (pair / "report.html").exists()

    # On one device sums are added up in another order: a few rounding errors of float32.
    assert main(["train", "--out", str(alone), "--resume", "--quiet"]) == 0
    assert main(["train", "--out", str(one), "--quiet", *ARGUMENTS]) == 0
    check_near(pair, one, rtol=1e-6)
    check_near(alone, one, rtol=1e-6)


@pytest.mark.parametrize(
    ("given", "pieces"),
    [
        (("a:1", None, None), ["--coordinator: given without --processes and --process"]),
        ((None, 2, 0), ["--processes and --process: given without --coordinator"]),
        (("a:1", 2, 2), ["--process 2", "below --processes 2"]),
        (("a:1", 0, 0), ["--processes 0", "at least 1"]),
        (("a:99999", 2, 0), ["--coordinator a:99999", "HOST:PORT"]),
        (("4000", 2, 0), ["--coordinator 4000", "HOST:PORT"]),
    ],
)
def test_options_that_join_processes_are_checked(given, pieces):
    names = ("coordinator", "processes", "process")
    with pytest.raises(UserError) as error:
        check_group(TrainConfig(**dict(zip(names, given, strict=True))))
    for piece in pieces:
        assert piece in str(error.value)


def test_a_process_that_is_told_of_no_others_is_alone():
    config = TrainConfig()
    check_group(config)
    with joined(config):
        assert processes.count() == 1

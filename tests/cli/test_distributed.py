"""Two processes make one run. They are real ones, on this machine, with four devices each."""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys

import numpy as np
import pytest
from helpers.tiny_run import TINY

from vfejax.cli.distributed import GroupOptions, check_group, joined
from vfejax.cli.main import main
from vfejax.data import population_arrays
from vfejax.errors import UserError
from vfejax.runs import checkpoint, process_group, processes
from vfejax.runs.interrupt import INTERRUPTED
from vfejax.runs.metrics import read_metrics

TRAINING = (
    *("--synthetic.kind", "periodic", "--synthetic.tokens", "400", "--synthetic.symbols", "7"),
    *("--model", "transformer", "--transformer.layers", "1", "--transformer.dim", "16"),
    *("--transformer.heads", "2", "--transformer.hidden", "16", "--length", "4"),
    *("--batch-size", "8", "--steps", "10", "--log-every", "2", "--checkpoint-every", "4"),
    *("--warmup-steps", "0", "--eval-every", "8", "--eval-windows", "8", "--final-windows", "8"),
    *("--sample-tokens", "0", "--shard", "zero3"),
)
POPULATION = (*TINY, "--agents", "8", "--precision", "float64")

CODE = """
import os, signal, sys
from matplotlib.figure import Figure
from vfejax.cli.main import main
from vfejax.runs import loop_state, processes, report

step_of_signal, number, *arguments = sys.argv[1:]
blank = report.figure_png(Figure(figsize=(0.1, 0.1)), dpi=10)
report.figure_png = lambda figure: blank
chunk_length = loop_state._chunk_length

def signalled(step, cadence):
    if processes.index() == 1 and step == int(step_of_signal):
        os.kill(os.getpid(), int(number))
    return chunk_length(step, cadence)

loop_state._chunk_length = signalled
sys.exit(main(arguments))
"""


@pytest.fixture
def run_pair(cache_folder):
    """Run a command as two processes to their end, the second of which sends itself a signal at a
    step; returns exit status, standard output and standard error of each.
    """

    def run(number: int, *arguments: str, step: int) -> list[tuple[int, str, str]]:
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
        signal.SIGKILL, "train", "--out", str(pair), *TRAINING, step=6
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
    ended = run_pair(signal.SIGTERM, "train", "--out", str(pair), "--resume", step=6)
    assert [status for status, *_ in ended] == [INTERRUPTED, INTERRUPTED], ended
    assert checkpoint.steps(pair) == [0, 4, 8]
    after = read_metrics(pair)
    assert after["step"].tolist() == [0, 2, 4, 6, 8]
    for name, values in before.items():  # step 6 was lost, and is the same bit for bit
        np.testing.assert_array_equal(after[name][:4], values, err_msg=name)
    assert (pair / "report.html").exists()

    # On one device sums are added up in another order: a few rounding errors of float32.
    assert main(["train", "--out", str(alone), "--resume", "--quiet"]) == 0
    assert main(["train", "--out", str(one), "--quiet", *TRAINING]) == 0
    check_near(pair, one, rtol=1e-6)
    check_near(alone, one, rtol=1e-6)


@pytest.mark.slow
def test_two_processes_move_a_population_as_one_does_and_one_goes_on(tmp_path, run_pair):
    pair, one = tmp_path / "pair", tmp_path / "one"
    # A signal to one stops both after the same steps, of which the first one makes a report.
    (status, said, errors), other = run_pair(
        signal.SIGTERM, "simulate", "--out", str(pair), *POPULATION, step=0
    )
    assert status == INTERRUPTED, errors
    assert other == (INTERRUPTED, "", "vfejax simulate: interrupted\n")
    assert "uses all 8 devices, each with 1 of the agents\n" in errors
    assert f"report: {pair / 'report.html'}" in said
    assert main(["simulate", "--out", str(one), "--quiet", *POPULATION, "--steps", "2"]) == 0
    check_population(pair, one)
    for run in (pair, one):
        assert main(["simulate", "--out", str(run), "--quiet", "--resume", "--steps", "6"]) == 0
        assert checkpoint.steps(run)[-1] == 6
    check_population(pair, one)


def check_population(found, expected):
    """Populations and rows are equal to 1e-9: devices add 8 agents up in another order, for a few
    steps, and float64 rounds by 1e-16.
    """
    for name in ("initial.npz", "final.npz"):
        arrays, wanted = (population_arrays.load_npz(run / name) for run in (found, expected))
        assert arrays.keys() == wanted.keys()
        for key, values in wanted.items():
            np.testing.assert_allclose(arrays[key], values, 1e-9, 1e-9, err_msg=key)
    check_near(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("given", "pieces"),
    [
        (("a:1", None, None), ["--coordinator: given without --processes and --process"]),
        ((None, 2, 0), ["--processes and --process: given without --coordinator"]),
        (("a:1", 2, 2), ["--process 2", "below --processes 2"]),
        (("a:1", 0, 0), ["--processes 0", "at least 1"]),
        (("a:99999", 2, 0), ["--coordinator a:99999", "HOST:PORT"]),
        (("4000", 2, 0), ["--coordinator 4000", "HOST:PORT"]),
        (("a:\u0664", 2, 0), ["HOST:PORT"]),
        (("a:" + 5000 * "1", 2, 0), ["HOST:PORT"]),
        (("http://a:1", 2, 0), ["HOST:PORT"]),
        (("::1:4000", 2, 0), ["HOST:PORT", "[::1]:4000"]),
        (("a:1", 2**31, 0), ["--processes 2147483648", "at most"]),
    ],
)
def test_options_that_join_processes_are_checked(given, pieces):
    names = ("coordinator", "processes", "process")
    with pytest.raises(UserError) as error:
        check_group(GroupOptions(**dict(zip(names, given, strict=True))))
    for piece in pieces:
        assert piece in str(error.value)


def test_too_little_memory_of_one_process_is_explained_to_all(monkeypatch):
    told = []

    @contextlib.contextmanager
    def all_told(*_):
        try:
            yield
        except UserError as error:
            told.append(str(error))

    monkeypatch.setattr(process_group, "joined", all_told)
    with joined(GroupOptions(coordinator="[::1]:4000", processes=2, process=1), "train"):
        raise MemoryError("Unable to allocate 72 GiB")
    assert told[0].startswith("not enough memory (Unable to allocate 72 GiB); choose a smaller --b")


def test_processes_compare_what_they_read_and_not_where_it_lies(tmp_path, monkeypatch):
    alike = []

    @contextlib.contextmanager
    def compared(_group, _name, values):
        alike.append(values)
        yield

    monkeypatch.setattr(process_group, "joined", compared)
    for name, text in (("a", "spin"), ("b", "spin"), ("c", "spun"), ("d", None)):
        file = tmp_path / name
        if text is not None:
            file.write_text(text)
        config = GroupOptions(coordinator="[::1]:4000", processes=2, process=1)
        with joined(config, "train", lambda file=file: {"text": file, "phi": None}):
            pass
    first, moved, other, missing = alike
    assert first == moved
    assert [key for key in first if first[key] != other[key]] == ["--text"]
    assert first["--text"].startswith("4 bytes, SHA-256 ")
    unread = "inputs that it cannot read:"
    assert first[unread] == "none"
    assert str(tmp_path / "d") in missing[unread]


def test_a_process_that_is_told_of_no_others_is_alone():
    config = GroupOptions()
    check_group(config)
    with joined(config, "train"):
        assert processes.count() == 1

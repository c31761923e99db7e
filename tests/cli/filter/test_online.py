"""``vfejax filter --online``: an estimate after every line, in constant memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.cli.filter.stream import local_stream
from vfejax.cli.input_lines import LONGEST, lines
from vfejax.cli.main import main
from vfejax.inference.chains.local_models import LocalModel

SCALES = ("--noise-std", "1", "--drift-std", "0.5")


@pytest.fixture
def stream(monkeypatch, capsys):
    """Call the command with this standard input; gives its status, lines of output, and errors."""

    def call(text, *options):
        reader, writer = os.pipe()
        threading.Thread(target=_fill, args=(writer, text), daemon=True).start()
        monkeypatch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: reader))
        status = main(["filter", "--online", *options])
        os.close(reader)
        captured = capsys.readouterr()
        return status, captured.out.splitlines(), captured.err

    return call


def _fill(writer, text):
    with os.fdopen(writer, "wb") as file:
        file.write(text if isinstance(text, bytes) else text.encode())


def test_every_row_is_answered_as_the_filter_answers(rng):
    steps = rng.exponential(1.0, 11) + 0.1
    y = rng.normal(size=(12, 1))
    mask = np.ones((12, 1), bool)
    mask[[3, 7]] = False
    model = LocalModel(jnp.ones(1), jnp.ones(1), jnp.zeros(2), 5.0 * jnp.eye(2))
    found = local_stream("local-trend", model, ("x",), 1.96, "filtered")
    step = jax.jit(chex.assert_max_traces(found.step, n=1))
    state, rows, total = found.init, [], 0.0
    for elapsed, value, known in zip([0.0, *steps], y, mask, strict=True):
        state, answer = step(state, np.float64(elapsed), value, known)
        rows.append(np.asarray(answer.numbers))
        total += float(answer.log_evidence)
    mean, cov, evidence = _filtered(np.zeros(2), 5.0 * np.eye(2), steps, y[:, 0], mask[:, 0])
    table = dict(zip(found.columns, np.array(rows).T, strict=True))
    # Rounding of a dozen steps.
    np.testing.assert_allclose(table["x_mean"], mean[:, 0], rtol=1e-11)
    np.testing.assert_allclose(table["x_slope_mean"], mean[:, 1], rtol=1e-11)
    width = 1.96 * np.sqrt(cov[:, 0, 0])
    np.testing.assert_allclose(table["x_upper"] - table["x_mean"], width, rtol=1e-11)
    np.testing.assert_allclose(total, evidence, rtol=1e-11)


def _filtered(mean, cov, steps, values, mask):
    """The textbook's filter of a trend with unit scales, step by step."""
    means, covs, evidence = [], [], 0.0
    for h, value, known in zip([0.0, *steps], values, mask, strict=True):
        a = np.array([[1, h], [0, 1]])
        cov = a @ cov @ a.T + np.array([[h**3 / 3, h**2 / 2], [h**2 / 2, h]])
        mean = a @ mean
        if known:
            spread = cov[0, 0] + 1.0
            off, gain = value - mean[0], cov[:, 0] / spread
            evidence -= 0.5 * (np.log(2 * np.pi * spread) + off**2 / spread)
            mean, cov = mean + gain * off, cov - np.outer(gain, cov[0])
        means.append(mean)
        covs.append(cov)
    return np.array(means), np.array(covs), evidence


def test_lines_that_cannot_be_read_are_told_and_skipped(stream):
    text = b"\xef\xbb\xbftime,x\n0,1\n1,abc\n2,\n1,5\n3,2,4\n\n4,\xff\n5,3"
    status, out, said = stream(text, *SCALES, "--model", "local-level")
    assert status == 0
    assert out[0] == "time,x_mean,x_lower,x_upper,x_new_lower,x_new_upper"
    assert [line.split(",")[0] for line in out[1:]] == ["0", "2", "5"]
    for piece in (
        "line 3: column 'x': 'abc' is not a number",
        "line 5: the time 1 does not come after 2; skipped",
        "line 6: has 3 cells where there are 2 columns",
        "line 8: is not UTF-8 text",
        "3 rows, 4 skipped; log evidence",
        "median",
    ):
        assert piece in said


def test_scales_are_set_by_the_first_rows(stream):
    rows = "\n".join(str(value) for value in [1, 2, 1.5, 2.5, 2, 3, 2.5])
    status, out, said = stream(rows, "--warm-up", "5")
    assert status == 0
    assert len(out) == 8
    assert "the first 5 rows set the scales" in said
    assert out[1].startswith("0,")


def test_streams_with_nothing_to_read_are_one_line(stream):
    for text in ("", "x\n", "\n\n"):
        status, out, said = stream(text, *SCALES)
        assert (status, out) == (2, [])
        assert "standard input has no row of numbers" in said
    assert stream("a;b\n1;2\n", *SCALES)[0] == 2
    status, _, said = stream("1\n", "--model", "hmm")
    assert status == 2
    assert "a file of its parameters with --online; learn one" in said


def test_a_stream_without_names_needs_them_for_a_model_of_fewer_series(stream, tmp_path):
    text = 'model = "hmm"\ninitial = [1]\ntransition = [[1]]\nmeans = [[0]]\nstds = [[1]]\n'
    (tmp_path / "m.toml").write_text(text)
    status, _, said = stream("0,1\n", "--model", str(tmp_path / "m.toml"))
    assert status == 2
    assert "standard input has 2; begin with a line of their names" in said


def test_a_hidden_markov_model_tells_an_impossible_line(stream, tmp_path):
    (tmp_path / "m.toml").write_text(
        'model = "discrete-hmm"\ninitial = [1, 0]\ntransition = [[1, 0], [0, 1]]\n'
        "emission = [[1, 0.5], [0, 0.5]]\n"
    )
    status, out, said = stream("0\n1\n0\n", "--model", str(tmp_path / "m.toml"))
    assert status == 0
    assert out[0] == "row,y_mean,state_0_probability,state_1_probability,most_probable_state"
    assert [line.split(",")[2] for line in out[1:]] == ["1", "1", "1"]
    assert "line 2: no state of the model allows this row" in said


def test_lines_are_given_as_they_come_and_long_ones_are_dropped():
    reader, writer = os.pipe()
    found = lines(reader, lambda: False)
    os.write(writer, b"1\n2")
    assert next(found) == b"1"
    os.write(writer, b"3\r\n")
    assert next(found) == b"23"
    thread = threading.Thread(target=_fill, args=(writer, b"x" * (LONGEST + 70000) + b"\nlast"))
    thread.start()
    assert list(found) == [None, b"last"]
    thread.join()
    os.close(reader)


def test_lines_end_when_they_are_told_to():
    reader, writer = os.pipe()
    assert list(lines(reader, lambda: True)) == []
    os.close(reader)
    os.close(writer)


@pytest.mark.slow
def test_answers_come_at_once_and_ctrl_c_ends_cleanly():
    code = "import sys; from vfejax.cli.main import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "filter", "--online", *SCALES],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    answers = []
    for value in (b"1\n", b"2\n"):
        process.stdin.write(value)
        process.stdin.flush()
        if not answers:
            answers.append(process.stdout.readline())  # the header
        answers.append(process.stdout.readline())
    assert answers[1].startswith(b"0,1,")
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == 0
    assert b"2 rows; log evidence" in process.stderr.read()
    for pipe in (process.stdin, process.stdout, process.stderr):
        pipe.close()

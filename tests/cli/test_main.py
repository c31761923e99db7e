"""The entry point: dispatch, exit statuses, one line per error."""

import contextlib
import gc
import importlib
import logging
import os
import signal
import subprocess
import sys
import types

import jax
import pytest

from vfejax import __version__
from vfejax.cli import compilation_cache
from vfejax.cli import main as entry
from vfejax.cli.main import main
from vfejax.errors import UserError


def _command(monkeypatch, body):
    """Put a command in place of ``simulate``; it records what it was called with."""
    calls = []

    def run(arguments):
        calls.append(arguments)
        return body()

    command = types.SimpleNamespace(main=run)
    importing = types.SimpleNamespace(import_module=lambda name: command)
    monkeypatch.setattr(entry, "importlib", importing)
    return calls


def _raiser(error):
    def body():
        raise error

    return body


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_lists_every_command_and_succeeds(flag, capsys):
    assert main([flag]) == 0
    printed = capsys.readouterr().out
    assert "usage" in printed
    assert all(
        name in printed and command.about in printed for name, command in entry.COMMANDS.items()
    )


def test_without_a_command_the_usage_is_shown_and_the_status_says_bad_input(capsys):
    assert main([]) == 2
    assert "usage" in capsys.readouterr().out


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.split() == ["vfejax", __version__]


def test_unknown_command_is_named_with_the_known_ones(capsys):
    assert main(["stimulate"]) == 2
    captured = capsys.readouterr()
    assert "'stimulate'" in captured.err
    assert "simulate" in captured.err.split("commands:")[1]
    assert captured.err.count("\n") == 1
    assert captured.out == ""


def test_arguments_and_status_pass_through(monkeypatch):
    calls = _command(monkeypatch, lambda: 1)
    assert main(["simulate", "--steps", "3"]) == 1
    assert calls == [["--steps", "3"]]


def test_matplotlib_is_quiet_during_a_command_unless_it_fails(monkeypatch, caplog):
    caplog.set_level(logging.WARNING, logger="matplotlib")  # and as it was, afterwards

    def draw():
        matplotlib = logging.getLogger("matplotlib.font_manager")
        matplotlib.warning("a temporary folder for the cache")
        matplotlib.error("no fonts")
        return 0

    _command(monkeypatch, draw)
    assert main(["simulate"]) == 0
    assert caplog.messages == ["no fonts"]


def test_arguments_default_to_the_command_line(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["vfejax", "--version"])
    assert main() == 0
    assert __version__ in capsys.readouterr().out


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (UserError("the file is bad"), 2, "vfejax simulate: the file is bad\n"),
        (
            MemoryError("Unable to allocate 72 GiB\n"),
            2,
            "vfejax simulate: not enough memory (Unable to allocate 72 GiB); choose a smaller "
            "--agents, --irreps, --grid or --log-every\n",
        ),
        (
            jax.errors.JaxRuntimeError("INTERNAL: Out of memory allocating 4 bytes."),
            2,
            "vfejax simulate: not enough memory (INTERNAL: Out of memory allocating 4 bytes.); "
            "choose a smaller --agents, --irreps, --grid or --log-every\n",
        ),
        (KeyboardInterrupt(), 130, "vfejax simulate: interrupted\n"),
        (SystemExit(2), 2, ""),
        (SystemExit(0), 0, ""),
    ],
    ids=["user", "memory", "device-memory", "interrupt", "parser", "parser-help"],
)
def test_errors_become_one_line_and_a_status(error, status, line, monkeypatch, capsys):
    _command(monkeypatch, _raiser(error))
    assert main(["simulate"]) == status
    captured = capsys.readouterr()
    assert captured.err == line
    assert captured.out == ""


@pytest.mark.parametrize(
    "error", [ZeroDivisionError("a bug"), jax.errors.JaxRuntimeError("INTERNAL: a bug")]
)
def test_an_error_that_is_not_the_users_is_not_hidden(error, monkeypatch):
    _command(monkeypatch, _raiser(error))
    with pytest.raises(type(error), match="a bug"):
        main(["simulate"])


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("JAX_NUM_CPU_DEVICES", "x", 'Invalid value "x" for JAX flag jax_num_cpu_devices'),
        ("XLA_FLAGS", "--xla_nonsense", "Unknown flag in XLA_FLAGS: --xla_nonsense"),
    ],
)
def test_an_environment_that_jax_cannot_read_is_one_line(variable, value, said):
    code = "import sys; from vfejax.cli.main import main; sys.exit(main(['simulate', '--help']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {variable: value},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (2, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("vfejax simulate: ")
    assert said in line


def test_an_environment_without_a_device_is_one_line(monkeypatch, capsys):
    _command(monkeypatch, _raiser(AssertionError()))
    no_device = _raiser(RuntimeError("no GPU"))
    monkeypatch.setattr(jax.numpy, "zeros", lambda shape: no_device())
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert main(["simulate"]) == 2
    line = capsys.readouterr().err
    assert "JAX has no device to use (no GPU); see what the environment asks for: JAX_PLATF" in line


def test_a_reader_that_went_away_is_no_traceback_and_help_needs_no_jax():
    code = (
        "import sys\nfrom vfejax.cli.main import main\nstatus = main(['--help'])\n"
        "sys.exit(99 if 'jax' in sys.modules else status)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    process.stdout.close()
    errors = process.stderr.read()
    process.stderr.close()
    assert process.wait(timeout=60) == 1
    assert errors == b""


def _shell(redirection, arguments="--version"):
    """The command as a process of its own, with streams that are buffered, as they are unless
    somebody says otherwise.
    """
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    code = "import sys; from vfejax.cli.main import main; sys.exit(main())"
    command = f'exec "{sys.executable}" -c "{code}" {arguments} {redirection}'
    return subprocess.run(
        ["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("redirection", [">&-", "2>&-", ">&- 2>&-", "<&-"])
def test_closed_streams_are_no_traceback(redirection):
    done = _shell(redirection)
    assert (done.returncode, done.stderr) == (0, "")


def test_bad_input_with_closed_streams_keeps_its_status():
    assert _shell(">&- 2>&-", "stimulate").returncode == 2


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_output_that_cannot_be_written_is_one_line():
    done = _shell("> /dev/full")
    assert done.returncode == 1
    assert done.stderr == "vfejax: cannot write the output: No space left on device\n"
    assert _shell("> /dev/full 2> /dev/full").returncode == 1
    assert _shell("2> /dev/full", "stimulate").returncode == 1


def test_the_streams_are_as_they_were_afterwards(monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    assert main(["--version"]) == 0
    assert sys.stdout is None
    assert sys.stderr is None


def test_a_message_is_one_line_that_every_terminal_takes(monkeypatch, capsys):
    _command(monkeypatch, _raiser(UserError("the file caf\udce9.txt\nis bad")))
    assert main(["simulate"]) == 2
    assert capsys.readouterr().err == "vfejax simulate: the file caf\\udce9.txt is bad\n"


def test_a_command_in_a_process_of_its_own_looks_for_unused_cycles_rarely(monkeypatch):
    before, frozen, usual = gc.get_threshold(), gc.get_freeze_count(), (700, 10, 10)
    found = []

    def body():
        found.append(gc.get_threshold()[0])
        return 0

    _command(monkeypatch, body)
    monkeypatch.setattr(compilation_cache, "keep_programs", lambda: None)
    gc.set_threshold(*usual)
    try:
        assert main(["simulate"]) == 0  # called by other code
        assert gc.get_freeze_count() == frozen
        monkeypatch.setattr(sys, "argv", ["vfejax", "simulate"])
        assert main() == 0
        assert gc.get_freeze_count() > frozen
        assert found[0] == usual[0] < found[1]
        assert gc.get_threshold() == usual
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)


def test_ctrl_c_ends_a_command_that_is_imported_even_where_exceptions_are_dropped(
    monkeypatch, capfd
):
    statuses = []

    def dropped(name):
        with contextlib.suppress(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        raise UserError("imported")

    monkeypatch.setattr(sys, "argv", ["vfejax", "plan"])
    monkeypatch.setattr(importlib, "import_module", dropped)
    monkeypatch.setattr(os, "_exit", statuses.append)
    # A shell's background job has it ignored, and commands leave that as it is.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert main() == 2
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert statuses == [entry.INTERRUPTED]
    assert capfd.readouterr().err.splitlines()[0] == "vfejax plan: interrupted"

"""Shared by the command's tests: one compilation cache, and runs too small to take time."""

import contextlib
import functools
import io
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache
from matplotlib.figure import Figure

from vfejax.cli.main import main
from vfejax.runs import report


@pytest.fixture(scope="session")
def cache_folder(tmp_path_factory):
    """A fresh folder, unless the environment names one that is kept between runs."""
    kept = os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(kept) if kept else tmp_path_factory.mktemp("xla_cache")


@pytest.fixture(scope="module", autouse=True)
def compile_cache(cache_folder):
    """Runs of one shape compile once, in this process and in the processes that tests start."""
    settings = {
        "jax_compilation_cache_dir": str(cache_folder),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": 0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module", autouse=True)
def blank_pictures():
    """Figures are made but not drawn, which takes most of a tiny run; gives the true function to
    those who want it.
    """
    true = report.figure_png
    with pytest.MonkeyPatch.context() as patch:
        blank = true(Figure(figsize=(0.1, 0.1)), dpi=10)

        def figure_png(figure):
            if callable(figure):
                figure()
            return blank

        patch.setattr(report, "figure_png", figure_png)
        yield true


@pytest.fixture(scope="module")
def printed():
    """What commands within ``drawn`` say on standard output and standard error."""
    return io.StringIO(), io.StringIO()


@pytest.fixture(scope="module")
def drawn(blank_pictures, printed):
    """Within it pictures are drawn, coarsely, and what is said is kept."""

    @contextlib.contextmanager
    def coarsely():
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(printed[0]),
            contextlib.redirect_stderr(printed[1]),
        ):
            patch.setattr(report, "figure_png", functools.partial(blank_pictures, dpi=20))
            yield

    return coarsely


@pytest.fixture
def refused(capfd):
    """Call the command, expect exit status 2 and one line on standard error that holds every given
    piece; returns the line.
    """

    def call(out: Path, arguments: list[str], *pieces: str, command: str = "simulate") -> str:
        assert main([command, "--out", str(out), *map(str, arguments)]) == 2
        captured = capfd.readouterr()
        assert captured.err.startswith(f"vfejax {command}: ")
        assert captured.err.count("\n") == 1
        assert captured.err.endswith("\n")
        for piece in pieces:
            assert piece in captured.err
        assert captured.out == ""
        return captured.err

    return call


@pytest.fixture(scope="session")
def start_process(cache_folder):
    """Start a command as a process of its own; ``before`` is Python that it runs first."""

    def start(*arguments: str, before: str = "pass", command: str = "simulate") -> subprocess.Popen:
        # The configuration of the tests themselves, so that both sides find each other's compiled
        # programs.
        environment = os.environ | {
            "JAX_ENABLE_X64": "1",
            "MPLBACKEND": "of no kind",  # which must not matter
            "JAX_COMPILATION_CACHE_DIR": str(cache_folder),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
        }
        code = (
            f"{before}\nimport sys\nfrom vfejax.cli.main import main\nsys.exit(main(sys.argv[1:]))"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, command, *map(str, arguments)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return start

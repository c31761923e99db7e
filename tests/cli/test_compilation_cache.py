"""Compiled programs that one command leaves to the next."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from vfejax.cli import compilation_cache

COMPILE = """
import jax
from vfejax.cli.compilation_cache import keep_programs
keep_programs()
print(jax.jit(lambda x: 3 * x)(1.0))
"""


def _compile(home):
    """A process that compiles one program, without the cache of the tests; what is kept of it."""
    other = {name: x for name, x in os.environ.items() if not name.startswith(("JAX_C", "JAX_P"))}
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COMPILE],
        env=other | {"XDG_CACHE_HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "3.0\n"), done.stderr
    return list(home.rglob("*-cache"))


def test_a_program_is_kept_for_the_next_process_and_a_damaged_one_is_compiled_again(tmp_path):
    (kept,) = [path for path in _compile(tmp_path) if "lambda" in path.name]
    assert kept.is_relative_to(tmp_path / "vfejax" / "programs")
    assert kept.parent.stat().st_mode & 0o077 == 0  # only the user can write there, or read
    kept.write_bytes(kept.read_bytes()[:40])
    assert kept in _compile(tmp_path)


@pytest.mark.parametrize(
    ("chosen", "enabled", "caches", "jaxlib"),
    [
        ("/chosen", True, "", "0.10.2"),
        (None, False, "", "0.10.2"),
        (None, True, "/dev/null", "0.10.2"),
        (None, True, "", "0.10.1"),  # it would fill the terminal with messages
    ],
)
def test_jax_stays_as_it_is_where_the_user_chose_or_no_program_can_be_kept(
    chosen, enabled, caches, jaxlib, monkeypatch, tmp_path
):
    monkeypatch.setattr(compilation_cache, "version", lambda _: jaxlib)
    given = {"jax_compilation_cache_dir": chosen, "jax_enable_compilation_cache": enabled}
    monkeypatch.setattr(compilation_cache.jax, "config", SimpleNamespace(**given))
    monkeypatch.setenv("XDG_CACHE_HOME", caches or str(tmp_path))
    compilation_cache.keep_programs()  # would fail: this configuration has no update
    assert not list(tmp_path.iterdir())


def test_a_relative_folder_and_a_missing_home_are_not_used(monkeypatch):
    def homeless():
        raise RuntimeError

    monkeypatch.setattr(compilation_cache.Path, "home", homeless)
    assert compilation_cache.programs_folder({"XDG_CACHE_HOME": "here"}) is None


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="folders have no owner")
def test_a_folder_that_strangers_can_write_to_is_not_used(tmp_path):
    assert compilation_cache._prepare(tmp_path / "own")
    (tmp_path / "own").chmod(0o777)
    assert not compilation_cache._prepare(tmp_path / "own")


def test_the_oldest_files_go_when_there_are_too_many(tmp_path):
    for age in range(4):
        path = tmp_path / str(age)
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    compilation_cache.sweep(tmp_path, 400)
    assert len(list(tmp_path.iterdir())) == 4
    compilation_cache.sweep(tmp_path, 399)
    assert {path.name for path in tmp_path.iterdir()} == {"0"}
    (tmp_path / "empty").touch()  # as a full disk leaves it
    compilation_cache.sweep(tmp_path, 400)
    assert {path.name for path in tmp_path.iterdir()} == {"0"}
    compilation_cache.sweep(tmp_path / "missing", 0)
    compilation_cache.sweep(tmp_path, 0)
    assert not list(tmp_path.iterdir())

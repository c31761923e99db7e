"""Executables that one command leaves to the next."""

import os
import threading

import jax
import numpy as np
import pytest
from jax.experimental.compilation_cache import compilation_cache

from vfejax.cli import cache_key, executable_cache, jax_cache
from vfejax.cli.compilation_cache import programs_folder
from vfejax.cli.function_digest import Nameless
from vfejax.training.optimizer import warmup_cosine

pytestmark = pytest.mark.skipif(
    jax.device_count() > 1 or jax.default_backend() != "cpu", reason="kept for one CPU only"
)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Where programs are kept for the time of a test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(cache_key, "_sources", lambda: "as they are")
    monkeypatch.setattr(cache_key, "BEGAN", np.inf)
    before = jax.config.jax_compilation_cache_dir
    own = programs_folder(os.environ)
    own.mkdir(parents=True)

    def choose(path):
        jax.config.update("jax_compilation_cache_dir", path)
        compilation_cache.reset_cache()
        cache_key.surroundings.cache_clear()

    choose(str(own))
    yield own
    choose(before)


def _rate():
    return warmup_cosine(1.0, 1, 4, 0.1)


def _fresh(traced):
    """The rate as another process would compile it; ``traced`` grows when it is traced."""
    function = executable_cache.jit(_rate())
    true = function._compiled

    class Watched:
        def lower(self, *arguments):
            traced.append(arguments)
            return true.lower(*arguments)

    function._compiled = Watched()
    return function


def test_a_kept_program_is_not_traced_again_and_a_damaged_one_is_replaced(folder):
    step, traced = np.float32(2), []
    results = [float(_fresh(traced)(step)) for _ in range(2)]
    assert len(traced) == 1
    (path,) = folder.glob("*.kept")
    whole = path.read_bytes()
    _fresh([])(np.zeros(1, np.float32))
    (other,) = {*folder.glob("*.kept")} - {path}
    damage = (whole[:-9], b"", whole[:-1] + bytes([whole[-1] ^ 1]), other.read_bytes())
    for damaged in damage:
        path.write_bytes(damaged)
        results += [float(_fresh(traced)(step)) for _ in range(2)]
    assert len(traced) == 5
    assert results == [results[0]] * 10


def test_other_arguments_and_settings_are_other_programs(folder):
    traced = []
    _fresh(traced)(np.float32(2))
    _fresh(traced)(np.int32(2))
    _fresh(traced)(np.zeros(1, np.float32))
    with jax.default_matmul_precision("float32"):
        _fresh(traced)(np.float32(2))
    assert len(traced) == 4


def test_shapes_are_kept(folder, monkeypatch):
    step = np.zeros((3, 2), np.float32)
    first = executable_cache.shapes(_rate(), step)
    monkeypatch.setattr(jax, "eval_shape", None)
    again = executable_cache.shapes(_rate(), step)
    assert (again.shape, again.dtype) == (first.shape, first.dtype) == ((3, 2), np.float32)


def test_static_arguments_and_traced_calls_are_those_of_jit(folder):
    power = executable_cache.jit(jax.numpy.linalg.matrix_power, static_argnums=1)
    x = 2 * np.eye(2, dtype=np.float32)
    assert [float(power(x, n)[0, 0]) for n in (2, 3)] == [4.0, 8.0]
    assert float(jax.jit(lambda x: power(x, 2))(x)[0, 0]) == 4.0
    assert len(list(folder.glob("*.kept"))) == 2


def test_what_calls_functions_outside_xla_is_not_kept(folder):
    """Their addresses are of one process, and another would end at the first call."""
    for function, num in ((jax.numpy.linalg.cholesky, 0), (jax.numpy.cumsum, 1)):
        executable_cache.jit(function)(jax.numpy.eye(2))
        assert len(list(folder.glob("*.kept"))) == num


def test_nothing_is_kept_that_has_no_full_description(folder, monkeypatch):
    assert float(executable_cache.jit(lambda x: 2 * x)(3.0)) == 6.0

    def changed():
        raise Nameless("a file of the package is newer than this process")

    monkeypatch.setattr(cache_key, "_sources", changed)
    cache_key.surroundings.cache_clear()
    assert float(executable_cache.jit(_rate())(np.float32(1))) == 1.0
    assert not list(folder.glob("*.kept"))


def test_a_file_that_changed_since_the_process_began_makes_all_nameless(monkeypatch):
    cache_key._sources.cache_clear()
    monkeypatch.setattr(cache_key, "BEGAN", 0.0)
    with pytest.raises(Nameless):
        cache_key._sources()


def test_nothing_is_written_when_a_file_has_changed_meanwhile(folder, monkeypatch):
    cache_key.surroundings()
    monkeypatch.setattr(cache_key, "BEGAN", 0.0)
    assert float(executable_cache.jit(_rate())(np.float32(1))) == 1.0
    assert not list(folder.glob("*.kept"))


def test_what_libraries_read_in_the_environment_is_a_setting(tmp_path, monkeypatch):
    told = [cache_key.settings()]
    monkeypatch.setenv("FLAX_FIX_RNG_SEPARATOR", "1")
    told.append(cache_key.settings())
    flags = tmp_path / "flags"
    monkeypatch.setenv("XLA_FLAGS", str(flags))
    for content in ("--xla_cpu_enable_fast_math=true", "--xla_cpu_enable_fast_math=false"):
        flags.write_text(content)
        told.append(cache_key.settings())
    assert len(set(map(tuple, told))) == 4


def test_a_package_that_changed_under_the_same_version_is_another(tmp_path, monkeypatch):
    (tmp_path / "worked_on").mkdir()
    (tmp_path / "worked_on" / "__init__.py").touch()
    module = tmp_path / "worked_on" / "module.py"
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(cache_key, "BEGAN", np.inf)  # they change later than this process began
    found = set()
    for content, moment in (("1", 0), ("2", 1), ("10", 1)):
        module.write_text(content)
        os.utime(module, (moment, moment))
        found.add(cache_key._times("worked_on"))
    assert len(found) == 3


def test_a_program_that_a_thread_makes_is_waited_for_and_traced_once(folder, monkeypatch):
    traced, step = [], np.float32(2)
    monkeypatch.setattr(jax, "eval_shape", None)
    shape = jax.ShapeDtypeStruct(step.shape, step.dtype)
    with jax_cache.aside():  # as while another thread compiles
        assert executable_cache.begin(_fresh(traced), shape)
        assert not executable_cache.begin(_fresh(traced), shape)
        shapes = [executable_cache.shapes(_fresh(traced), step)]
        found = float(_fresh(traced)(step))
    shapes.append(executable_cache.shapes(_fresh(traced), step))  # as the next process finds them
    assert len(traced) == 1
    assert [(x.shape, x.dtype) for x in shapes] == [((), np.float32)] * 2
    np.testing.assert_allclose(found, float(_rate()(step)), rtol=4 * np.finfo(np.float32).eps)
    assert not executable_cache.begin(_fresh(traced), shape)  # it is kept by now
    assert jax_cache.folder() == str(folder)


def test_a_program_is_used_before_it_is_written_and_not_made_twice(folder, monkeypatch):
    traced, step, written = [], np.float32(2), threading.Event()
    write = executable_cache._write
    monkeypatch.setattr(executable_cache, "_write", lambda *x: written.wait(60) and write(*x))
    try:
        assert executable_cache.begin(_fresh(traced), step)
        results = [float(_fresh(traced)(step)) for _ in range(2)]
        assert not executable_cache.begin(_fresh(traced), step)
        assert not [*folder.glob("*.kept")]
    finally:
        written.set()
    assert results == [results[0]] * 2
    assert len(traced) == 1


def test_an_error_in_a_thread_is_met_by_who_calls_the_function(folder):
    inverse, oblong = executable_cache.jit(jax.numpy.linalg.inv), np.zeros((2, 3), np.float32)
    assert executable_cache.begin(inverse, oblong)
    with pytest.raises(ValueError, match="n, n"):
        inverse(oblong)

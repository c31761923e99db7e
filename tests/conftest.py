"""Shared set-up: float64 available, strict promotion, warnings are errors (pyproject.toml), and
programs compiled quickly.
"""
# ruff: noqa: E402 (JAX reads the environment when it is imported)

import gc
import os
import shutil
import tempfile
import threading
from importlib.metadata import version

os.environ.setdefault("JAX_PLATFORMS", os.environ.get("VFEJAX_TEST_PLATFORM", ""))

# On a GPU (VFEJAX_TEST_PLATFORM=cuda) the tests share its memory, products are those of float32,
# and sums have one order: a run that goes on bit for bit needs the last.
FLAGS = set()
if os.environ["JAX_PLATFORMS"] == "cuda":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
    FLAGS.add("--xla_gpu_deterministic_ops=true")

# Eight devices of a host meet in collectives, which give up after 40 s: too soon on a busy machine.
FLAGS.add("--xla_cpu_collective_call_terminate_timeout_seconds=600")

# One cache of compiled programs for the whole run. The workers of pytest-xdist and the processes
# that tests start inherit these variables, so that no program is compiled twice. A cache that the
# user keeps is used instead.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["VFEJAX_TEST_CACHE"] = tempfile.mkdtemp(prefix="vfejax-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["VFEJAX_TEST_CACHE"]
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "0")

# Most tests are nearly all compilation, of programs that then run for milliseconds: XLA optimises
# little and compiles a program in one piece, and jaxlib 0.10 leaves out the emitters of fused
# loops, which take half of its time (later versions have no such flag). VFEJAX_TEST_OPTIMIZED=1
# compiles everything as users do.
if os.environ.get("VFEJAX_TEST_OPTIMIZED", "0") == "0":
    os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
    FLAGS.add("--xla_cpu_parallel_codegen_split_count=1")
    if version("jaxlib").startswith("0.10."):
        FLAGS.add("--xla_cpu_use_fusion_emitters=false")

# The last one counts: the user's own.
os.environ["XLA_FLAGS"] = " ".join([*sorted(FLAGS), os.environ.get("XLA_FLAGS", "")])

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.interpreters import mlir

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


# jax 0.10 makes a context of MLIR for every program, in 3 ms of processor time, a tenth of all
# that the tests take. Later versions let a thread's next ten programs have the same one.
if version("jax").startswith("0.10."):
    _contexts = threading.local()
    _new_context = mlir.make_ir_context

    def _context():
        if getattr(_contexts, "left", 0) == 0:
            _contexts.context, _contexts.left = _new_context(), 10
        _contexts.left -= 1
        return _contexts.context

    mlir.make_ir_context = _context

# Traced programs are millions of small objects that live on, and Python's collector would look
# through all of them again and again, for more than a second each time.
gc.set_threshold(100_000, 50, 100)


def pytest_unconfigure(config):
    """Remove the cache that was made for this run, when its last process ends."""
    if "VFEJAX_TEST_CACHE" in os.environ and not hasattr(config, "workerinput"):
        shutil.rmtree(os.environ["VFEJAX_TEST_CACHE"], ignore_errors=True)


@pytest.fixture(scope="session", autouse=True)
def files_need_not_survive_a_power_cut():
    """Commands wait for the disk thousands of times. Processes that tests start do so here too."""
    before, os.fsync = os.fsync, lambda descriptor: None
    yield
    os.fsync = before


@pytest.fixture(scope="module", autouse=True)
def unchanged_configuration():
    """A module that leaves JAX configured otherwise fails, not the tests that come after it."""
    before = dict(jax.config.values)
    yield
    assert dict(jax.config.values) == before


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    """Run a test once in each precision."""
    return jnp.dtype(request.param)


@pytest.fixture
def rng():
    """A NumPy generator for test data, fresh and identical in every test."""
    return np.random.default_rng(20260731)


@pytest.fixture(scope="module")
def library_promotion():
    """What flax's layers and optax's Adam need: they mix dtypes and ranks, which the settings above
    refuse.
    """
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def optimized():
    """Compile what the test compiles as users do: for claims about the bits or the time of
    optimised programs. Module-level functions that are compiled already stay as they are.
    """
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)

"""Programs for CUDA, without a GPU.

What every public function was called with in the example of its docstring is lowered after the
example, with its gradient, by ``tests/test_docstrings.py``. Here are the models, and the check
itself.
"""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.lowering import Call, Recorder, complaint, complaints, public_functions, unexpected

from vfejax.geometry import haar
from vfejax.models.table import MODELS
from vfejax.training.optimizer import adamw
from vfejax.training.step import trainer

VOCABULARY, LENGTH, BATCH = 11, 12, 4


def _everything(model, method, state, windows):
    """An update, and what the weights then say: at once, and token by token."""
    state, info = method.step(state, windows)
    params = method.weights(state)
    decoded = model.init_decode(params, BATCH)
    if model.read is not None:
        _, decoded = model.read(params, decoded, windows[:, :3])
    logits, decoded = model.decode(params, decoded, windows[:, 3])
    return state, info, decoded, logits, model.apply(params, windows[:, :-1], None).logits


@pytest.mark.slow  # seconds of tracing for every model
@pytest.mark.usefixtures("library_promotion")
@pytest.mark.parametrize("name", MODELS)
def test_every_model_learns_and_decodes_on_a_gpu(name):
    entry = MODELS[name]
    counts = {"counts": np.ones(VOCABULARY)} if entry.needs_counts else {}
    model = entry.build(entry.tiny, VOCABULARY, LENGTH, jnp.float32, **counts)
    key, rate = jax.random.key(0), lambda step: jnp.float32(1e-3)
    if entry.trainer is not None:
        method = entry.trainer(model, entry.tiny, rate, key)
    else:
        method = trainer(model, adamw(rate), key)
    state = jax.eval_shape(method.init, key)
    windows = jax.ShapeDtypeStruct((BATCH, LENGTH + 1), np.int32)
    everything = functools.partial(_everything, model, method)
    found = complaint(Call(everything, (state, windows), {}), gradient=False)
    assert unexpected(f"vfejax.models.{name}", found) == ""
    assert complaint(Call(method.init, (key,), {}), gradient=False) == ""


@jax.custom_vjp
def backwards_on_the_host(x):
    return x


backwards_on_the_host.defvjp(
    lambda x: (x, None), lambda _, dx: (jax.pure_callback(np.copy, dx, dx),)
)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (jnp.sin, ""),
        (lambda x: jnp.where(x > 0, x, -jnp.inf), ""),  # Python's numbers have no width
        (jnp.linalg.cholesky, ""),
        (lambda x: x * np.float64(2.0), "double precision"),
        (lambda x: jnp.zeros(3), "double precision"),
        (lambda x: jnp.sum(x + jnp.zeros(())).astype(x.dtype), "double precision"),
        (lambda x: jax.pure_callback(np.copy, x, x), "lowering platform|callback"),
        (backwards_on_the_host, "lowering platform|callback"),
        (jax.lax.linalg.schur, "NotImplementedError"),
        (lambda x: float(x[0, 0]), "ConcretizationTypeError"),
    ],
)
@pytest.mark.usefixtures("library_promotion")
def test_what_is_no_program_for_cuda_is_found(function, reason):
    found = complaint(Call(function, (jax.ShapeDtypeStruct((2, 2), np.float32),), {}))
    assert re.search(reason, found)
    assert bool(reason) == bool(found)


def test_functions_that_functions_return_are_recorded_by_their_fields():
    recorder = Recorder()

    def counter(start):
        return jax.tree_util.Partial, lambda x: x + start

    _, add = recorder.wrap("counter", counter)(1)
    recorder.wrap("make", lambda: add)()(jnp.ones(2))
    assert list(recorder.calls) == ["counter", "make", "make()"]
    assert recorder.calls["make()"].args[0].shape == (2,)


def test_a_public_function_without_an_example_is_named():
    assert set(complaints(haar, Recorder(), complete=True)) == set(public_functions(haar))
    assert complaints(haar, Recorder(), complete=False) == {}


def test_an_exception_that_is_none_any_more_is_named():
    name = "vfejax.attention.ring.ring()"
    assert unexpected(name, "double precision: as it says") == ""
    assert unexpected(name, "not for CUDA: callback") == "not for CUDA: callback"
    assert "none of the EXCEPTIONS" in unexpected(name, "")
    assert unexpected("vfejax.attention.ring.other", "wrong") == "wrong"

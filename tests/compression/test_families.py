"""Every model of the table learns from another one, with its layers compared."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression.distill import distillation, trainable
from vfejax.models import table
from vfejax.models.table import MODELS
from vfejax.training.losses import next_token_loss

pytestmark = [pytest.mark.usefixtures("library_promotion"), pytest.mark.slow]

NAMES = tuple(MODELS)
VOCABULARY, LENGTH = 7, 5


@functools.cache
def _started(name):
    """A model that begins with weights that are there already, as a trained one does."""
    model = table.build(name, MODELS[name].tiny, VOCABULARY, LENGTH, jnp.float64)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
    return model._replace(init=lambda key: params)


@pytest.mark.parametrize("name", NAMES)
def test_each_family_learns_from_the_next(name, rng):
    """The gradient reaches all that learns and nothing of the teacher; a row of two tokens and
    padding counts as one prediction.
    """
    teacher = _started(NAMES[(NAMES.index(name) + 1) % len(NAMES)])
    model = distillation(_started(name), teacher, hidden_weight=0.5, padding=0)
    params = model.init(jax.random.key(0))
    windows = rng.integers(1, VOCABULARY, (2, LENGTH + 1)) * (np.arange(6) < [[6], [2]])

    def loss_fn(params):
        return next_token_loss(model, params, windows, None, 0)

    found = jax.jit(jax.value_and_grad(loss_fn, has_aux=True))(params)
    (loss, info), slope = jax.device_get(found)
    assert np.isfinite(loss)
    assert int(info.num_tokens) == LENGTH + 1
    assert info.losses["hidden"] > 0
    learns = trainable(params, MODELS[name].constants)
    for (path, x), learn in zip(
        jax.tree_util.tree_leaves_with_path(slope), jax.tree.leaves(learns), strict=True
    ):
        assert np.isfinite(x).all(), path
        assert x.any() == learn, path


def test_resolvents_of_two_mixers_with_different_numbers_of_heads_are_compared():
    entry = MODELS["resnet-bk"]
    student, teacher = (
        entry.build(dataclasses.replace(entry.tiny, mixer=mixer, heads=heads), VOCABULARY, LENGTH)
        for mixer, heads in (("features", 2), ("operator", 4))
    )
    model = distillation(student, teacher, resolvent_weight=0.5)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert params["projection"]["resolvent"].shape == (2, 2, 4)
    windows = jax.ShapeDtypeStruct((2, LENGTH + 1), jnp.int32)
    _, info = jax.eval_shape(lambda p, w: next_token_loss(model, p, w), params, windows)
    assert info.losses["resolvent"].dtype == jnp.float32

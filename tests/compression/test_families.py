"""Every model of the table learns from another one, with its layers compared."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.compression.distill import taught, trained
from vfejax.models import table
from vfejax.models.table import MODELS
from vfejax.training.losses import next_token_loss

pytestmark = [pytest.mark.usefixtures("library_promotion"), pytest.mark.slow]

NAMES = tuple(MODELS)
VOCABULARY, LENGTH = 7, 5


def _build(name, **options):
    config = dataclasses.replace(MODELS[name].tiny, **options)
    return table.build(name, config, VOCABULARY, LENGTH, jnp.float64)


@pytest.mark.parametrize("name", NAMES)
def test_each_family_learns_from_the_next(name, rng):
    """The loss falls along its gradient, which reaches all that learns and nothing of the teacher;
    a row of two tokens and padding counts as one prediction.
    """
    model = taught(
        _build(name),
        _build(NAMES[(NAMES.index(name) + 1) % len(NAMES)]),
        hidden_weight=0.5,
        padding=0,
    )
    windows = rng.integers(1, VOCABULARY, (2, LENGTH + 1)) * (np.arange(6) < [[6], [2]])

    @jax.jit
    def descend(params):
        def loss_fn(p):
            return next_token_loss(model, p, windows, None, 0)

        (loss, info), slope = jax.value_and_grad(loss_fn, has_aux=True)(params)
        moved = jax.tree.map(lambda x, g: x - 1e-4 * g, params, slope)
        return loss, info, slope, loss_fn(moved)[0]

    params = jax.jit(model.init)(jax.random.key(0))
    loss, info, slope, after = jax.device_get(descend(params))
    norms = jax.tree.map(lambda x: np.sum(np.square(x)), slope)
    assert after < loss
    # First order: the rest is of second order in the step.
    learned = sum(jax.tree.leaves(norms))
    np.testing.assert_allclose(loss - after, 1e-4 * learned, rtol=0.2)
    learns = trained(params, MODELS[name].constants)
    for has, norm in zip(*map(jax.tree.leaves, (learns, norms)), strict=True):
        assert np.isfinite(norm)
        assert has or norm == 0 or MODELS[name].constants
    assert not any(jax.tree.leaves(norms["teacher"]))
    assert info.losses["hidden"] > 0
    assert int(info.num_tokens) == LENGTH + 1

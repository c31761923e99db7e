"""Gradients that compute blocks again: the same, from less that is kept."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models import table
from vfejax.models.table import MODELS

pytestmark = pytest.mark.usefixtures("library_promotion")

RECOMPUTED = {*MODELS} - {"reversible", "pure-fep"}
VOCABULARY, LENGTH = 7, 32


def _loss_fns(name):
    """The mean square of logits by weights and key, as it is and with blocks computed again."""
    model = table.build(name, MODELS[name].tiny, VOCABULARY, LENGTH, jnp.float64)
    tokens = np.random.default_rng(0).integers(0, VOCABULARY, (4, LENGTH))

    def loss_fn(apply):
        return lambda params, key: jnp.mean(apply(params, tokens, key).logits ** 2)

    return model.init, loss_fn(model.apply), loss_fn(model.recompute)


def test_only_models_whose_gradient_runs_through_a_stack_compute_it_again():
    for name, entry in MODELS.items():
        model = table.build(name, entry.tiny, VOCABULARY, LENGTH)
        assert (model.recompute is not None) == (name in RECOMPUTED), name


def test_a_gradient_with_blocks_computed_again_is_the_same():
    init, *loss_fns = _loss_fns("transformer")

    @jax.jit
    def gradients(key):
        params = init(key)
        return [jax.grad(loss_fn)(params, key) for loss_fn in loss_fns]

    kept, again = gradients(jax.random.key(0))
    # The same operations, merged differently: a few roundings of float64.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-15), kept, again)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name == "transformer" else pytest.mark.slow)
        for name in sorted(RECOMPUTED)
    ],
)
def test_a_gradient_keeps_products_of_each_block_or_only_its_input(name, monkeypatch):
    init, *loss_fns = _loss_fns(name)
    key = jax.random.key(0)
    params = jax.eval_shape(init, key)

    def kept(loss_fn):
        """Bytes that the backward pass reads, from the program as it is traced."""
        backward = jax.eval_shape(lambda p: jax.vjp(loss_fn, p, key)[1], params)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))

    products, inputs = map(kept, loss_fns)
    monkeypatch.setattr(jax, "checkpoint", lambda step, **_: step)
    whole = kept(_loss_fns(name)[1])
    # The quantum model hands on a density matrix besides the stream. Others: 0.11 to 0.26, and
    # 0.05 to 0.15.
    most = (0.7, 0.4) if name == "quantum" else (0.3, 0.2)
    assert products < most[0] * whole
    assert inputs < most[1] * whole

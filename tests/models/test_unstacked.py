"""Weights with every block on its own: what is decoded with them, by every model of the table and
by one with a list of stacks.
"""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import random_weights

from vfejax.models import phi, table

pytestmark = pytest.mark.usefixtures("library_promotion")

TOKENS = np.asarray([[3, 1, 4], [1, 5, 9]])


def _phi():
    """A model whose second block is of another kind, a stack of its own."""
    small = {"vocab_size": 11, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
    further = {"model_type": "phi", "num_hidden_layers": 3, "max_position_embeddings": 8}
    config = dataclasses.replace(phi.config.from_json(small | further), dtype="float64")
    return phi.model.build(phi.config.with_swapped(config, [None, phi.config.Toroidal(), None]))


def _model(name):
    if name == "phi":
        return _phi()
    return table.build(name, table.MODELS[name].tiny, 11, 8, jnp.float64)


# One stack, two kinds of blocks in turn, one whose memory is measured by a block, several stacks.
KINDS = ("transformer", "koopman", "vfe", "phi")
OTHERS = [name for name in table.MODELS if name not in {*KINDS, "pure-fep"}]  # which is no stack


@pytest.mark.parametrize(
    "name", [*KINDS, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_decoding_is_that_with_stacked_blocks(name):
    model = _model(name)
    params = random_weights(model, 2, 0.6)
    prepared = model.prepare(params)
    chex.assert_trees_all_equal(model.prepare(prepared), prepared)
    assert jax.tree.structure(prepared) != jax.tree.structure(params)

    @jax.jit
    def decoded(params):
        def step(state, token):
            logits, state = model.decode(params, state, token)
            return state, logits

        return jax.lax.scan(step, model.init_decode(params, 2), TOKENS.T)

    # The same products of the same numbers, which a compiler may add up in another order.
    chex.assert_trees_all_close(decoded(prepared), decoded(params), rtol=1e-12, atol=1e-12)

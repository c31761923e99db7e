"""Every model of the table shows what its blocks do: the streams between them, in their places."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models import phi, table
from vfejax.models.phi.config import from_json
from vfejax.models.table import MODELS
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, LENGTH, PADDING = 7, 6, 2
QUICK = {"resnet-bk", "pure-fep"}  # modules share one way of being watched, pure-fep has its own
STACKS = ("blocks", "layers", "alive")  # leaves with the layer as first axis are below these


def _member(name):
    return pytest.param(name, marks=() if name in QUICK else pytest.mark.slow)


def _build(config, name):
    return table.build(name, config, VOCABULARY, LENGTH, jnp.float64)


def _shallow(config, name):
    """The same model with one block."""
    numbers = {"blocks": 1} if name == "quantum" else {"layers": 1}
    if name == "pure-fep":
        numbers["max_layers"] = 1
    if name == "koopman":
        numbers["operators"] = ()
    return _build(dataclasses.replace(config, **numbers), name)


def _first_block(params):
    """Weights of the model with one block."""

    def first(path, x):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return x[:1] if name.split("/")[0] in STACKS else x

    if "operators" in params:
        params = {name: part for name, part in params.items() if name != "operators"}
    return jax.tree_util.tree_map_with_path(first, params)


@pytest.mark.parametrize("name", [_member(name) for name in MODELS])
def test_streams_are_shown_after_each_block_and_in_their_places(name, rng):
    """Row 1 begins with padding, and is read without it too. What is seen after the first block is
    the same as that of a model which has no other.
    """
    config = MODELS[name].tiny
    model, shallow = _build(config, name), _shallow(config, name)
    tokens = rng.integers(0, VOCABULARY, (2, LENGTH))
    mask = np.arange(LENGTH) >= np.asarray([[0], [PADDING]])

    @jax.jit
    def look(key):
        params = model.init(key)
        _, found = model.watch(params, Batch(tokens, mask), None)
        _, bare = model.watch(params, tokens[1:, PADDING:])
        _, first = shallow.watch(_first_block(params), Batch(tokens, mask), None)
        return found, bare, first

    layers, bare, first = jax.device_get(look(jax.random.key(0)))
    # Sums in another order, at most.
    close = {"rtol": 1e-9, "atol": 1e-12}
    assert layers.hidden.shape[:3] == (2, 2, LENGTH)
    assert (layers.resolvent is None) == (name != "resnet-bk")
    for shown, alone, one in zip(*map(jax.tree.leaves, (layers, bare, first)), strict=True):
        np.testing.assert_allclose(shown[:, 1, PADDING:], alone[:, 0], **close)
        np.testing.assert_allclose(shown[:1], one, **close)
        assert np.ptp(shown[:, 0], axis=(0, 1)).all()


def test_the_layers_of_all_segments_of_a_phi_model_are_shown(rng):
    """Attention on a torus with one platter is the attention that was there, in a segment of its
    own.
    """
    small = {"hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 3}
    model = phi.model.build(from_json({"model_type": "phi", "vocab_size": VOCABULARY} | small))
    tokens = rng.integers(0, VOCABULARY, (1, LENGTH))

    params = jax.jit(model.init)(jax.random.key(0))
    swapped, moved = phi.swap_attention(model, params, [1])

    @jax.jit
    def both(params, moved):
        return model.watch(params, tokens)[1], swapped.watch(moved, tokens)[1]

    whole, parts = jax.device_get(both(params, moved))
    assert whole.hidden.shape == (3, 1, LENGTH, 8)
    # The torus computes the same attention in another order, in float32.
    np.testing.assert_allclose(parts.hidden, whole.hidden, rtol=1e-4, atol=1e-5)

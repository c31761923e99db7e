"""Phi models against what PyTorch transformers computes with the same checkpoints."""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.models.phi.model import build
from vfejax.models.sampling import generate, sampler
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

# Logits of the order of 6 after some twenty sums in float32, on either side.
TOLERANCE = 1e-5


def batch_of(expected, side):
    return Batch(jnp.asarray(expected[f"{side}_tokens"]), jnp.asarray(expected[f"{side}_mask"]))


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_are_those_of_transformers_under_padding_on_either_side(each, side):
    batch = batch_of(each.expected, side)
    logits = np.asarray(each.apply(each.params, batch))
    real = each.expected[f"{side}_mask"]
    difference = np.abs(logits - each.expected[f"{side}_logits"])[real]
    assert difference.max() < TOLERANCE
    assert (
        np.abs(each.expected[f"{side}_logits"]).max() > 3
    )  # logits that every weight has a part in


@pytest.mark.parametrize("name", ["grouped", pytest.param("partial", marks=pytest.mark.slow)])
def test_greedy_text_is_that_of_transformers_with_prompts_padded_on_the_left(
    name, checkpoint, monkeypatch
):
    """The prompts of 8 and 5 tokens have 4 in common that are not the last: a chunk of 3."""
    monkeypatch.setattr("vfejax.models.sampling._CHUNK", 3)
    held = checkpoint(name)
    expected = held.expected["greedy"]
    write = partial(generate, held.model, num_tokens=expected.shape[1], sampler_fn=sampler(0.0))
    prompt, key = batch_of(held.expected, "left"), jax.random.key(0)
    np.testing.assert_array_equal(jax.jit(write)(held.params, prompt, key=key), expected)


def test_reading_in_chunks_is_reading_at_once(checkpoint):
    held = checkpoint("grouped")
    tokens = jnp.asarray(held.expected["right_tokens"])
    state = held.model.init_decode(held.params, 2)
    chex.assert_shape(state.keys[0], (2, 2, 32, 2, 4))  # no key twice for heads that share it
    read = jax.jit(held.model.read)
    for start in (0, 4):
        logits, state = read(held.params, state, tokens[:, start : start + 4])
        wanted = held.expected["right_logits"][:, start + 3]
        rows = held.expected["right_mask"][:, start + 3]
        assert np.abs(np.asarray(logits) - wanted)[rows].max() < TOLERANCE
    assert int(state.position) == 8


@pytest.mark.slow
def test_prompts_read_in_chunks_are_continued_as_those_read_one_by_one(
    checkpoint, rng, monkeypatch
):
    held = checkpoint("plain")
    monkeypatch.setattr("vfejax.models.sampling._CHUNK", 3)
    tokens = jnp.asarray(rng.integers(0, 19, (2, 8)), jnp.int32)
    prompt = Batch(tokens, jnp.asarray(np.arange(8) >= np.array([[0], [1]])))
    texts = [
        jax.jit(partial(generate, model, num_tokens=5, sampler_fn=sampler(1.0)))(
            held.params, prompt, key=jax.random.key(3)
        )
        for model in (held.model, held.model._replace(read=None))
    ]
    np.testing.assert_array_equal(*texts)


def test_no_prediction_knows_a_later_token(checkpoint, rng):
    held = checkpoint("qk_norm")
    tokens = rng.integers(0, 19, (2, 8)).astype(np.int32)
    mask = jnp.ones((2, 8), bool)
    logits = held.apply(held.params, Batch(jnp.asarray(tokens), mask))
    tokens[0, 5] = (tokens[0, 5] + 1) % 19
    changed = held.apply(held.params, Batch(jnp.asarray(tokens), mask))
    chex.assert_trees_all_equal(changed[0, :5], logits[0, :5])
    chex.assert_trees_all_equal(changed[1], logits[1])
    assert np.all(np.any(changed[0, 5:] != logits[0, 5:], axis=-1))


def test_new_weights_have_the_structure_of_those_that_are_read(each):
    first = jax.eval_shape(each.model.init, jax.random.key(0))
    chex.assert_trees_all_equal_structs(first, each.params)
    chex.assert_trees_all_equal_shapes(first, each.params)


def test_precision_of_the_arithmetic_is_not_that_of_the_weights(checkpoint):
    held = checkpoint("grouped")
    params = held.params
    for dtype in ("bfloat16", "float64"):
        model = build(dataclasses.replace(held.model.config, dtype=dtype))
        chex.assert_type(jax.tree.leaves(params), jnp.bfloat16)
        logits = jax.eval_shape(model.apply, params, jnp.ones((1, 4), int)).logits
        chex.assert_type(logits, dtype)

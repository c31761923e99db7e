"""Options drawn at random from all of them together: causal to the bit, decoding is reading,
padding is inert, what is not a number does not hide, and gradients are finite.
"""

import dataclasses
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.causality import assert_reads_only_the_past
from helpers.designs import latin_draw
from helpers.weights import random_weights

from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.model import build
from vfejax.models.vfe.options import CHOICES
from vfejax.training.losses import next_token_loss
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, BATCH, LENGTH, WIDTH = 7, 2, 5, 7
DRAWS = 8
QUICK = {"xla_backend_optimization_level": 0}  # compilation is all the cost

VALUES = {name: list(choices) for name, choices in CHOICES.items()} | {
    "layers": [1, 2],
    "heads": [1, 2],
    "spins": [(0, 1), (1,), (2, 0)],
    "vector_dim": [2, 3, 4],
    "steps": [1, 3],
    "step_size": [0.1, 1.0],
    "decay": [0.5, 1.0],
    "trust_radius": [1e-3, 1.0],
    "mass": [0.5, 2.0],
    "friction": [0.0, 1.0],
    "link": [True, False],
    "base": [1.0, 100.0],
    "turned": [0.5, 1.0],
    "mean_norm": [True, False],
    "mean_bias": [0.0, 0.2],
    "spread_range": [0.0, 1.0],
    "temperature": [0.01, 10.0],
    "coupling": [0.1, 3.0],
    "window": [None, 2, 3],
    "stride": [0, 2, 3],
    "mask_self": [True, False],
    "hidden": [0, 5],
    "observation": [0.0, 1.0],
    "dropout": [0.0, 0.5],
}


def _drawn(seed):
    drawn, rng = latin_draw(VALUES, seed, DRAWS)
    components = sum(2 * spin + 1 for spin in drawn["spins"])
    if drawn["group"] == "so":
        components = drawn["vector_dim"]
    if drawn["window"] is None:
        drawn["stride"] = 0
    return VFEConfig(dim=drawn["heads"] * components * int(rng.integers(1, 3)), **drawn)


def test_every_option_is_drawn():
    assert {*VALUES, "dim"} == {field.name for field in dataclasses.fields(VFEConfig)}


def _batch(tokens, targets, mask, rng):
    """These texts where the mask is True, and arbitrary numbers elsewhere."""
    real = [rng.integers(-9, 99, mask.shape).astype(np.int32) for _ in range(2)]
    for values, texts in zip(real, (tokens, targets), strict=True):
        values[mask] = texts.ravel()
    return Batch(real[0], mask, None, real[1])


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, DRAWS))]
)
def test_any_combination_of_options_keeps_what_every_model_must(seed, rng):
    config = _drawn(seed)
    model = build(config, VOCABULARY, WIDTH, jnp.float64)
    params = random_weights(model, seed, 0.3)
    tokens, targets = rng.integers(0, VOCABULARY, (2, BATCH, LENGTH)).astype(np.int32)
    right = np.tile(np.arange(WIDTH) < LENGTH, (BATCH, 1))

    def loss(params, batch):
        seen = []

        def apply(*inputs):
            seen.append(model.apply(*inputs))
            return seen[-1]

        return next_token_loss(model._replace(apply=apply), params, batch, None)[0], seen[0]

    learn = jax.jit(jax.value_and_grad(loss, has_aux=True), compiler_options=QUICK)

    def logits(tokens, mask=right, params=params):
        (_, found), _ = learn(params, _batch(tokens, targets, mask, rng))
        return np.asarray(found.logits)[mask].reshape(BATCH, LENGTH, VOCABULARY)

    assert_reads_only_the_past(logits, tokens, VOCABULARY)
    expected = logits(tokens)
    assert np.all(np.isfinite(expected))
    np.testing.assert_array_equal(logits(tokens, right[:, ::-1]), expected)

    @partial(jax.jit, compiler_options=QUICK)
    def decoded(params, tokens):
        start = model.init_decode(params, BATCH)
        _, found = jax.lax.scan(lambda s, t: model.decode(params, s, t)[::-1], start, tokens.T)
        return jnp.swapaxes(found, 0, 1)

    # Sums in another order, amplified by divergences over the least temperature: as far as weights
    # with a few more rounding errors lead, whose errors are other ones.
    noise = [1.0 + 1e-15 * rng.standard_normal(x.shape) for x in jax.tree.leaves(params)]
    structure = jax.tree.structure(params)
    rounded = jax.tree.map(jnp.multiply, params, structure.unflatten(noise))
    apart = np.max(np.abs(logits(tokens, params=rounded) - expected))
    near = {"rtol": 1e-7, "atol": max(1e-8, 30 * apart)}
    assert near["atol"] < 1e-2
    np.testing.assert_allclose(decoded(params, tokens), expected, **near)
    batch = _batch(tokens, targets, right, rng)
    learned = learn(params, batch)
    chex.assert_tree_all_finite(learned)
    leaves, structure = jax.tree.flatten(params)
    for i, (path, slope) in enumerate(jax.tree_util.tree_leaves_with_path(learned[1])):
        nothing = np.full_like(leaves[i], np.nan)
        (total, _), _ = learn(structure.unflatten([*leaves[:i], nothing, *leaves[i + 1 :]]), batch)
        assert np.isnan(total) or np.all(slope == 0), path

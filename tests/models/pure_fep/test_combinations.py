"""Options drawn at random from all of them together: causal to the bit, decoding is reading,
padding is inert in reading and in learning, what is not a number does not hide, and a step of
learning is finite.
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

from vfejax.models.pure_fep.config import PureFEPConfig
from vfejax.models.pure_fep.energy import EnergyTerms
from vfejax.models.pure_fep.model import build
from vfejax.models.pure_fep.trainer import trainer
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, BATCH, LENGTH, WIDTH = 7, 2, 5, 7
DRAWS = 8
QUICK = {"xla_backend_optimization_level": 0}  # compilation is all the cost

# What each option may be. Those that are drawn together stand in one line.
CHOICES = [
    {"spins": [(0, 1), (1,), (2, 0), (1, 0, 0)], "position": ["frame", "sinusoidal", "none"]},
    {"layers": [1, 2], "max_layers": [2, 3]},
    {"hidden": [1, 5], "inference_steps": [1, 3], "log_variance_bound": [0.1, 1.5, 20.0]},
    {"self_weight": [0.3, 2.0], "belief_weight": [0.5, 3.0], "prior_weight": [0.0, 0.4]},
    {"temperature": [1e-3, 0.5, 1e3], "output_temperature": [0.3, 10.0]},
    {"embedding": ["bank", "learned", "hybrid"], "output": ["kl", "linear", "both"]},
    {"tower_depth": [0, 1, 2], "tower_weight": [0.25, 5.0], "tower_decay": [0.0, 0.5, 1.0]},
    {"nudge": [1e-3, 0.1, 10.0], "nudge_steps": [1, 3]},
    {"prior_update": ["gradient", "average"], "average_gain": [0.0, 50.0]},
    {"scaling": ["plain", "fisher", "rms"], "momentum": [0.0, 0.9], "memory": [0.9, 0.99]},
    {"spawn_pressure": [0.0, 1e-6], "merge_divergence": [0.0, 1e9], "cool_down": [0, 3]},
]


def _drawn(seed):
    choices = {name: values for line in CHOICES for name, values in line.items()}
    drawn, rng = latin_draw(choices, seed, DRAWS)
    width = sum(2 * spin + 1 for spin in drawn["spins"])
    return PureFEPConfig(dim=width * int(rng.integers(1, 3)), **drawn)


def test_every_option_is_drawn():
    names = {name for line in CHOICES for name in line} | {"dim"}
    assert names == {field.name for field in dataclasses.fields(PureFEPConfig)}


def _batch(tokens, targets, mask, rng):
    """These texts where the mask is True, and arbitrary numbers elsewhere."""
    real = [rng.integers(-9, 99, mask.shape).astype(np.int32) for _ in range(2)]
    for values, texts in zip(real, (tokens, targets), strict=True):
        values[mask] = texts.ravel()
    return Batch(real[0], mask, None, real[1])


def _state(method, params):
    """Before the first update, without compiling what draws first parameters."""
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    nothing = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)
    return nothing._replace(params=params)


@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, DRAWS))]
)
def test_any_combination_of_options_keeps_what_every_model_must(seed, rng):
    config = _drawn(seed)
    model = build(config, VOCABULARY, WIDTH, jnp.float64)
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    params = jax.tree.map(lambda x: rng.uniform(-1, 1, x.shape), shapes)
    params = params._replace(alive=1.0 * (np.arange(config.max_layers) < config.layers))
    tokens, targets = rng.integers(0, VOCABULARY, (2, BATCH, LENGTH)).astype(np.int32)
    right = np.tile(np.arange(WIDTH) < LENGTH, (BATCH, 1))
    apply = jax.jit(model.apply, compiler_options=QUICK)

    def logits(tokens, mask=right):
        found = apply(params, _batch(tokens, targets, mask, rng)).logits
        return np.asarray(found)[mask].reshape(BATCH, LENGTH, VOCABULARY)

    assert_reads_only_the_past(logits, tokens, VOCABULARY)
    expected = logits(tokens)
    assert np.all(np.isfinite(expected))
    np.testing.assert_array_equal(logits(tokens, right[:, ::-1]), expected)

    leaves, structure = jax.tree.flatten(params)
    for i, leaf in enumerate(leaves):
        broken = structure.unflatten([*leaves[:i], np.full_like(leaf, np.nan), *leaves[i + 1 :]])
        found = apply(broken, _batch(tokens, targets, right, rng)).logits
        assert np.isnan(found[:, LENGTH - 1]).any()

    @partial(jax.jit, compiler_options=QUICK)
    def decoded(params, tokens):
        start = model.init_decode(params, BATCH)
        _, found = jax.lax.scan(lambda s, t: model.decode(params, s, t)[::-1], start, tokens.T)
        return jnp.swapaxes(found, 0, 1)

    # Sums in another order, amplified by divergences over the least temperature.
    np.testing.assert_allclose(decoded(params, tokens), expected, rtol=1e-8, atol=1e-8)

    method = trainer(model, config, lambda step: 1e-2, jax.random.key(1))
    step, state = jax.jit(method.step, compiler_options=QUICK), _state(method, params)
    learned = [step(state, _batch(tokens, targets, m, rng)) for m in (right, right[:, ::-1])]
    chex.assert_trees_all_equal(*learned)
    state, info = learned[0]
    chosen = np.take_along_axis(expected, targets[..., None], axis=-1)[..., 0]
    nats = np.log(np.sum(np.exp(expected - chosen[..., None]), axis=-1))
    np.testing.assert_allclose(info.loss, np.mean(nats), rtol=1e-8)  # before targets are shown
    found = info.parts.diagnostics
    terms = sum(found[name] for name in EnergyTerms._fields)
    np.testing.assert_allclose(found["free_energy"], terms, rtol=1e-12)
    chex.assert_tree_all_finite((state, info, step(state, _batch(tokens, targets, right, rng))))

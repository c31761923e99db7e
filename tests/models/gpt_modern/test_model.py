"""The modern GPT against its formula in NumPy, and what its positions promise."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import random_weights

from vfejax.models.gpt_modern.config import ModernGPTConfig
from vfejax.models.gpt_modern.model import build
from vfejax.models.table import MODELS
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, LENGTH = 11, 6
CONFIG = ModernGPTConfig(layers=2, dim=16, heads=2, hidden=12, base=100.0)
QUICK = {"xla_backend_optimization_level": 0}  # compilation is all the cost


@pytest.fixture(scope="module")
def model():
    return build(CONFIG, VOCABULARY, LENGTH, jnp.float64)


@pytest.fixture(scope="module")
def params(model):
    # Larger than at first, and no norm of scale 1, so that every part of the formula matters.
    return random_weights(model, 0, 0.5)


@pytest.fixture(scope="module")
def apply(model):
    return jax.jit(lambda *inputs: model.apply(*inputs).logits, compiler_options=QUICK)


def _norm(x, scale):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + 1e-6) * scale


def _turn(x, positions):
    half = x.shape[-1] // 2
    rates = CONFIG.base ** (-np.arange(half) / half)
    plane = (x[..., :half] + 1j * x[..., half:]) * np.exp(1j * positions[:, None, None] * rates)
    return np.concatenate([plane.real, plane.imag], axis=-1)


def _formula(params, tokens):
    """Logits of one sequence, ``[n, v]``."""
    params = jax.tree.map(np.asarray, params)
    embedding, block = params["tokens"]["embedding"], params["blocks"]["block"]
    n, positions = len(tokens), np.arange(len(tokens))
    x = embedding[tokens]
    for layer in range(CONFIG.layers):
        p = jax.tree.map(lambda leaf, layer=layer: leaf[layer], block)
        qkv = _norm(x, p["attention_norm"]["scale"]) @ p["qkv"]["kernel"]
        q, k, v = np.moveaxis(qkv.reshape(n, 3, CONFIG.heads, -1), 1, 0)
        q = _turn(_norm(q, p["query_norm"]["scale"]), positions)
        k = _turn(_norm(k, p["key_norm"]["scale"]), positions)
        scores = np.einsum("nhc,mhc->hnm", q, k) / np.sqrt(q.shape[-1])
        weights = np.exp(np.where(np.tri(n, dtype=bool), scores, -np.inf))
        weights /= weights.sum(-1, keepdims=True)
        attended = np.einsum("hnm,mhc->nhc", weights, v).reshape(n, -1)
        x = x + attended @ p["attention_out"]["kernel"]
        gate, value = np.split(_norm(x, p["mlp_norm"]["scale"]) @ p["mlp_in"]["kernel"], 2, axis=-1)
        x = x + (gate / (1 + np.exp(-gate)) * value) @ p["mlp_out"]["kernel"]
    return _norm(x, params["norm"]["scale"]) @ embedding.T


def test_logits_are_the_formula(apply, params, rng):
    tokens = rng.integers(0, VOCABULARY, (2, LENGTH))
    expected = np.stack([_formula(params, row) for row in tokens])
    chex.assert_trees_all_close(apply(params, tokens), jnp.asarray(expected), rtol=1e-10)


def test_only_distances_between_positions_matter(apply, params, rng):
    tokens = jnp.asarray(rng.integers(0, VOCABULARY, (2, LENGTH)))
    logits = [
        apply(params, Batch(tokens, positions=jnp.arange(LENGTH) + jnp.asarray([[0], [shift]])))
        for shift in (0, 400)
    ]
    # Angles of hundreds of radians are rounded.
    chex.assert_trees_all_close(*logits, rtol=1e-8)
    stretched = apply(
        params, Batch(tokens, positions=3 * jnp.arange(LENGTH) + jnp.zeros_like(tokens))
    )
    assert np.abs(stretched - logits[0])[:, 2:].max() > 1e-3


def test_weights_of_one_length_read_another(apply, params, rng):
    tokens = rng.integers(0, VOCABULARY, (1, 4 * LENGTH))
    longer = build(CONFIG, VOCABULARY, 4 * LENGTH, jnp.float64)
    logits = jax.jit(longer.apply, compiler_options=QUICK)(params, tokens).logits
    chex.assert_trees_all_close(logits[:, :LENGTH], apply(params, tokens[:, :LENGTH]), rtol=1e-10)
    cache = longer.init_decode(params, 2)
    chex.assert_shape(cache.keys, (CONFIG.layers, 2, 4 * LENGTH, CONFIG.heads, 8))


def test_it_has_as_many_weights_as_the_other_models():
    def count(name):
        model = MODELS[name].build(MODELS[name].config(), 65, 64)
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))

    modern = count("gpt-modern")
    # Hidden widths of ResNet-BK are powers of two: to 1.5 percent. The benchmark takes others.
    for other, tolerance in (("transformer", 0.005), ("resnet-bk", 0.015)):
        np.testing.assert_allclose(count(other), modern, rtol=tolerance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dim": 15}, "dim must be a multiple of 2 heads, got dim 15 and heads 2"),
        ({"base": 0.0}, "base must be positive and finite, got 0.0"),
        ({"hidden": 0}, "hidden must be at least 1, got 0"),
    ],
)
def test_options_that_do_not_fit_are_named(options, message):
    config = ModernGPTConfig(**{"layers": 1, "dim": 16, "heads": 2} | options)
    with pytest.raises(ValueError, match=message):
        build(config, VOCABULARY, LENGTH)

"""The toroidal GPT: the modern GPT on the simplest torus, causal on every other, of any length in
constant memory, with weights that mean what they say.
"""

import dataclasses
from typing import get_args, get_type_hints

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.causality import assert_reads_only_the_past

from vfejax.attention.depth_fusion import FUSIONS
from vfejax.attention.encodings import ENCODINGS
from vfejax.models import gpt_modern
from vfejax.models.blocks import OptionError
from vfejax.models.table import MODELS
from vfejax.models.toroidal.config import ToroidalConfig
from vfejax.models.toroidal.model import build, maps
from vfejax.models.toroidal.options import DEPTH_MODES, DISTANCES, first_slopes, torus_of
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, LENGTH = 11, 8
TINY = ToroidalConfig(layers=2, dim=16, heads=4, hidden=8)
QUICK = {"xla_backend_optimization_level": 0}  # compilation is all the cost


def _jit(function):
    return jax.jit(function, compiler_options=QUICK)


def _built(length=LENGTH, **options):
    return build(dataclasses.replace(TINY, **options), VOCABULARY, length, jnp.float64)


def _drawn(model):
    """Weights of which none is a special one, such as a fusion that is the identity."""
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda x: rng.uniform(-1, 1, x.shape).astype(x.dtype), shapes)


def _tokens(rng, batch, length):
    return rng.integers(0, VOCABULARY, (batch, length)).astype(np.int32)


def test_the_simplest_torus_is_the_modern_gpt(rng):
    """One platter, standard positions, no slope, no fusion, a ring as long as the text."""
    plain = {"depth": 1, "encoding": "standard", "base": 100.0, "fusion": "none"}
    model = _built(**plain, slopes=(0.0,), learn_slopes=False)
    config = gpt_modern.config.ModernGPTConfig(layers=2, dim=16, heads=4, hidden=8, base=100.0)
    modern = gpt_modern.model.build(config, VOCABULARY, LENGTH, jnp.float64)
    params = _drawn(modern)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    shapes = jax.eval_shape(model.init, jax.random.key(0))
    assert names == [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(shapes)]
    same = jax.tree.unflatten(jax.tree.structure(shapes), jax.tree.leaves(params))
    tokens = _tokens(rng, 2, LENGTH)
    # The same sums in another order.
    chex.assert_trees_all_close(
        _jit(model.apply)(same, tokens).logits,
        _jit(modern.apply)(params, tokens).logits,
        rtol=1e-10,
    )


def test_it_has_as_many_weights_as_the_other_models():
    def count(name):
        model = MODELS[name].build(MODELS[name].config(), 65, 64)
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))

    # The others are compared in tests/models/gpt_modern.
    np.testing.assert_allclose(count("toroidal"), count("gpt-modern"), rtol=0.006)


VARIANTS = {
    "joint": {"window": 5, "encoding": "snapped"},
    "axial": {"depth": 4, "depth_mode": "axial", "distance": "circular", "slopes": (3.0,)},
    "mixed": {"depth": 4, "encoding": "mixed", "fusion": "mean", "slopes": (2.0, 1.0, 0.5, 0.0)},
    "plain": {"encoding": "none", "fusion": "none", "window": 3, "slopes": (1.0, 2.0)},
}
FIXED = {"mixed", "plain"}
each_variant = pytest.mark.parametrize(
    "name", ["joint", *(pytest.param(n, marks=pytest.mark.slow) for n in VARIANTS if n != "joint")]
)


def _variant(name):
    return _built(**VARIANTS[name], learn_slopes=name not in FIXED)


@each_variant
def test_texts_of_any_length_are_read_and_decoded_in_the_memory_of_a_window(name, rng):
    """Far beyond the circumference, and causal to the last bit there."""
    model, tokens = _variant(name), _tokens(rng, 2, 3 * LENGTH + 1)
    params, apply, decode = _drawn(model), _jit(model.apply), _jit(model.decode)
    expected = apply(params, tokens).logits
    assert_reads_only_the_past(lambda t: apply(params, t).logits, tokens, VOCABULARY)
    state = model.init_decode(params, 2)
    window, depth = VARIANTS[name].get("window", LENGTH), VARIANTS[name].get("depth", 2)
    meet = depth if VARIANTS[name].get("depth_mode", "joint") == "joint" else 1
    chex.assert_shape(state.ring[0], (TINY.layers, 2, 4 // meet, window, meet, 4))
    found = []
    for token in tokens.T:
        logits, state = decode(params, state, token)
        found.append(logits)
    # Sums in another order, amplified by norms.
    chex.assert_trees_all_close(jnp.stack(found, axis=1), expected, rtol=1e-9, atol=1e-11)


@pytest.mark.slow
def test_a_window_is_all_that_a_layer_reads(rng):
    model = _built(layers=1, window=3)
    params, apply = _drawn(model), _jit(lambda p, t: model.apply(p, t).logits)
    tokens = _tokens(rng, 1, LENGTH)
    changed = tokens.copy()
    changed[:, 1] = (changed[:, 1] + 1) % VOCABULARY
    differs = np.any(apply(params, tokens) != apply(params, changed), axis=(0, 2))
    assert differs.tolist() == [False, True, True, True, False, False, False, False]


@pytest.mark.slow  # given places that count are in tests/models
def test_given_places_turn_and_the_order_of_the_tokens_decides_who_is_read(rng):
    model, tokens = _built(), _tokens(rng, 1, LENGTH)
    params, apply = _drawn(model), _jit(lambda p, b: model.apply(p, b).logits)
    back = np.array([[0, 3, 1, 2, 0, 5, 4, 7]], np.int32)
    assert_reads_only_the_past(
        lambda t: apply(params, Batch(t, positions=back)), tokens, VOCABULARY
    )
    shifted = apply(params, Batch(tokens, positions=np.arange(LENGTH, dtype=np.int32)[None] + 3))
    # The same turns modulo the ring, and the same distances.
    chex.assert_trees_all_close(shifted, apply(params, Batch(tokens)), rtol=1e-9, atol=1e-11)


@pytest.mark.slow  # other fusions have no weights, and the table's model has one of them
def test_every_weight_learns_the_fusion_once_it_is_off_the_identity(rng):
    model, tokens = _built(), _tokens(rng, 4, LENGTH)
    gradient = _jit(jax.grad(lambda p: jnp.mean(model.apply(p, tokens).logits ** 2)))(_drawn(model))
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.all(np.isfinite(leaf)), path
        assert np.any(leaf != 0), path


def test_first_slopes_are_those_that_were_asked_for():
    def slopes(*values):
        return first_slopes(dataclasses.replace(TINY, slopes=values), 64)

    np.testing.assert_allclose(slopes(), 64 * 2.0 ** -np.array([2, 4, 6, 8]), rtol=1e-15)
    assert slopes(2.0) == (2.0,) * 4
    assert slopes(8.0, 1.0) == (8.0, 1.0)
    assert slopes(4.0, 3.0, 2.0, 1.0) == (4.0, 3.0, 2.0, 1.0)


def test_the_circumference_is_the_length_or_what_the_encoding_needs():
    wide = dataclasses.replace(TINY, dim=128)  # 16 pairs of channels, two of them for depth
    assert torus_of(wide, 64).circumference == torus_of(wide, 64).window == 64
    assert torus_of(wide, 8).circumference == 28
    assert torus_of(dataclasses.replace(wide, encoding="mixed"), 8).circumference == 32
    assert torus_of(dataclasses.replace(wide, depth_mode="axial"), 8).circumference == 32
    assert torus_of(dataclasses.replace(wide, encoding="standard"), 8).circumference == 8
    assert torus_of(dataclasses.replace(wide, circumference=100), 8).circumference == 100


@pytest.mark.parametrize("mode", ["joint", pytest.param("axial", marks=pytest.mark.slow)])
def test_maps_are_shares_of_the_attention_that_has_been_paid(mode, rng):
    config = dataclasses.replace(TINY, depth_mode=mode, window=6)
    shown = maps(config, VOCABULARY, LENGTH, jnp.float64)
    params = _drawn(build(config, VOCABULARY, LENGTH, jnp.float64))
    panels = _jit(shown.values)(params, _tokens(rng, 3, LENGTH))
    readers = 1 if mode == "joint" else 2  # a panel of one platter that reads, or of both
    assert len(panels) == TINY.layers * TINY.depth / readers
    for panel in panels.values():
        chex.assert_shape(panel, (2, LENGTH))
        np.testing.assert_allclose(np.sum(panel), readers, rtol=1e-12)
        assert np.all(panel[:, :6] > 0)
        assert np.all(panel[:, 6:] == 0)  # beyond the window


def test_options_of_names_are_the_tables_of_the_mathematics():
    hints = get_type_hints(ToroidalConfig)
    assert get_args(hints["encoding"]) == (*ENCODINGS, "none")
    assert get_args(hints["fusion"]) == tuple(FUSIONS)
    assert get_args(hints["depth_mode"]) == tuple(DEPTH_MODES)
    assert get_args(hints["distance"]) == tuple(DISTANCES)


@pytest.mark.parametrize(
    ("options", "name", "message"),
    [
        (
            {"depth": 3},
            "depth",
            r"depth must be a divisor of the heads 4 \(one of 1, 2, 4\), got 3",
        ),
        ({"dim": 12}, "dim", "dim must be a multiple of twice the heads 4, got 12"),
        ({"dim": 8}, "dim", "dim must be at least 16, .* got 8"),
        ({"window": 9}, "window", "window must be at most the circumference 8, got 9"),
        ({"circumference": 1}, "circumference", "circumference must be 0, or from 2 .*, got 1"),
        ({"slopes": (1.0,) * 3}, "slopes", "slopes must be as many as one of 1, 2, 4, got"),
        ({"slopes": (0.0,)}, "slopes", "slopes must be positive and finite, got"),
        ({"slopes": (-1.0,), "learn_slopes": False}, "slopes", "not negative and finite"),
        ({"fusion": "sum"}, "fusion", "fusion must be one of low-rank, attention, mean, none"),
        ({"encoding": "alibi"}, "encoding", "encoding must be one of geometric, .* got 'alibi'"),
        ({"base": 0.0}, "base", "base must be positive and finite, got 0.0"),
        ({"dropout": 1.0}, "dropout", "dropout must be at least 0 and below 1, got 1.0"),
    ],
)
def test_options_that_do_not_fit_are_named_with_what_fits(options, name, message):
    with pytest.raises(OptionError, match=message) as caught:
        _built(**options)
    assert caught.value.name == name

"""The VFE transformer: steps chosen at test time, carried beliefs, observed targets, decoding in a
ring, options that do not fit.
"""

import dataclasses
import typing

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.weights import random_weights

from vfejax.models.blocks import OptionError
from vfejax.models.table import MODELS
from vfejax.models.vfe import embeddings, inference, layers, options, readout
from vfejax.models.vfe.beliefs import Belief, Transport
from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.covariances import COVARIANCES
from vfejax.models.vfe.energy import Places
from vfejax.models.vfe.inference import Strength
from vfejax.models.vfe.irreps import phases
from vfejax.models.vfe.model import build, with_steps
from vfejax.models.vfe.options import rule_of
from vfejax.types import Batch

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, LENGTH = 7, 6
SMALL = VFEConfig(layers=1, dim=16, heads=2, hidden=0, steps=2)
CARRIED = dataclasses.replace(SMALL, priors="carried", frames="evolved")
QUICK = {"xla_backend_optimization_level": 0}  # compilation is all the cost


def _model(config=SMALL, length=LENGTH):
    return build(config, VOCABULARY, length, jnp.float64)


@pytest.fixture
def tokens(rng):
    return rng.integers(0, VOCABULARY, (2, LENGTH))


def _apply(model, params, batch):
    return jax.jit(model.apply, compiler_options=QUICK)(params, batch)


def test_steps_are_chosen_when_a_model_is_used(tokens):
    model = _model()
    params = random_weights(model, 0, 0.5)
    none, more = (with_steps(model, steps) for steps in (0, 5))
    shapes = jax.eval_shape(more.init, jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(shapes, params)
    alone, together = (_apply(m, params, tokens) for m in (none, more))
    assert np.abs(alone.logits - together.logits).max() > 1e-3
    assert alone.diagnostics["inference_residual"] == 0
    assert together.diagnostics["inference_residual"] > 0
    # Without steps no token reads another.
    same = tokens == tokens[-1, -1]
    expected = np.broadcast_to(alone.logits[-1, -1], (np.sum(same), VOCABULARY))
    np.testing.assert_array_equal(alone.logits[same], expected)


@pytest.mark.slow
def test_one_layer_of_carried_beliefs_is_the_belief_layer(tokens):
    """Tables of tokens, inference by the pure functions, and the embedding once more."""
    model, rule = _model(CARRIED), rule_of(CARRIED)
    params = random_weights(model, 0, 0.5)
    block = jax.tree.map(lambda x: x[0], params["blocks"]["block"])
    tables = {name: table["embedding"][tokens] for name, table in params["embed"].items()}

    @jax.jit
    def means(tables):
        layout, shape = rule.layout, (2, LENGTH, 2)
        phi = tables["phi"].reshape(*shape, 3)
        prior = Belief(
            10 * tables["tokens"].reshape(*shape, 4, 2),
            rule.family.spread(tables["spread"].reshape(*shape, -1), layout),
            layout.group.exponential(phi, layout.group.generators),
        )
        turn = phases(layout, jnp.arange(LENGTH)[None], jnp.float64)
        names = ("log_coupling", "log_temperature", "log_step", "log_decay")
        strength = Strength(*(jnp.exp(block[name]) for name in names))
        here = Places(jnp.arange(LENGTH), jnp.arange(LENGTH))
        transport = Transport(turn, block["link"])
        return inference.infer(prior, transport, strength, here, rule, steps=2)[0].mean

    x = np.asarray(means(tables)).reshape(2, LENGTH, 16)
    x = x / np.sqrt(np.mean(x**2, axis=-1, keepdims=True) + 1e-6)
    expected = x * params["readout"]["norm"]["scale"] @ params["embed"]["tokens"]["embedding"].T
    np.testing.assert_allclose(_apply(model, params, tokens).logits, expected, rtol=1e-9)


@pytest.fixture(scope="module")
def observing():
    model = _model(dataclasses.replace(SMALL, observation=0.5))
    params = random_weights(model, 0, 0.5)
    apply = jax.jit(model.apply, compiler_options=QUICK)
    return lambda batch: apply(params, batch)


def test_observed_targets_make_a_loss_and_no_prediction(observing, tokens):
    right, wrong = (observing(Batch(tokens, targets=t)) for t in (tokens, tokens[::-1]))
    chex.assert_trees_all_equal(right.logits, wrong.logits)
    observed = right.diagnostics["observed_free_energy_nats"]
    assert observed != wrong.diagnostics["observed_free_energy_nats"]
    np.testing.assert_allclose(right.losses["observation_term"], 0.5 * observed)


@pytest.mark.slow
def test_a_prediction_is_the_same_with_targets_and_without(observing, tokens):
    alone = observing(Batch(tokens))
    assert alone.losses == {}
    # Another program: sums in another order.
    told = observing(Batch(tokens, targets=tokens))
    np.testing.assert_allclose(told.logits, alone.logits, rtol=1e-11)


@pytest.mark.slow  # without a ring: tests/models/test_sequence_models.py
def test_a_window_decodes_in_a_ring_for_ever(rng):
    config = dataclasses.replace(SMALL, window=3, layers=2, mask_self=True)
    model = _model(config, length=4)
    params = random_weights(model, 0, 0.5)
    assert model.max_length is None
    tokens = rng.integers(0, VOCABULARY, (2, 11))
    expected = _apply(model, params, tokens).logits
    state = model.init_decode(params, 2)
    chex.assert_shape(state.rows, (2, 2, 2, 3, 2, 14))
    decode = jax.jit(model.decode, compiler_options=QUICK)
    for t in range(11):
        logits, state = decode(params, state, tokens[:, t])
        np.testing.assert_allclose(logits, expected[:, t], rtol=1e-9, atol=1e-12)


def test_only_distances_between_positions_matter(tokens):
    model = _model()
    params = random_weights(model, 0, 0.5)
    places = np.tile(np.arange(LENGTH), (2, 1))
    apply = jax.jit(lambda places: model.apply(params, Batch(tokens, positions=places)).logits)
    # Angles of hundreds of radians are rounded.
    np.testing.assert_allclose(apply(places + 300), apply(places), rtol=1e-9)
    assert np.abs(apply(3 * places) - apply(places))[:, 2:].max() > 1e-4


def test_it_has_as_many_weights_as_the_modern_gpt():
    def count(name):
        model = MODELS[name].build(MODELS[name].config(), 65, 64)
        return sum(x.size for x in jax.tree.leaves(jax.eval_shape(model.init, jax.random.key(0))))

    np.testing.assert_allclose(count("vfe"), count("gpt-modern"), rtol=0.005)


def test_the_choices_of_options_are_the_tables():
    tables = {"priors": layers.LAYERS, "covariance": COVARIANCES}
    tables |= {"output": readout.READOUTS}
    for name, table in tables.items():
        assert list(options.CHOICES[name]) == list(table)
    hints = typing.get_type_hints(VFEConfig)
    for name, choices in options.CHOICES.items():
        assert set(typing.get_args(hints[name])) == set(choices)
    assert layers.LAYERS.keys() == embeddings.EMBEDDINGS.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": 20}, "dim must be a multiple of 2 heads x 4 components .* such as 16 or 24, got"),
        ({"spins": ()}, "spins must be one spin or more"),
        ({"spins": (-1, 1)}, "spins must be one spin or more, each at least 0"),
        ({"group": "so", "vector_dim": 3}, "such as 12 or 18, got 16"),
        ({"vector_dim": 1}, "vector_dim must be at least 2, got 1"),
        ({"steps": 33}, "steps must be at most 32, got 33"),
        ({"stride": 2}, "stride must be 0 without a window"),
        ({"window": 2, "stride": 1}, "stride must be 0 or at least 2, got 1"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"window": 1, "mask_self": True}, "window must be at least 2 where no agent reads"),
        ({"coupling": 0.0}, "coupling must be positive and finite, got 0.0"),
        ({"temperature": 1e-30}, "temperature must be between 1e-06 and 1e\\+06, got 1e-30"),
        ({"step_size": 1e20}, "step_size must be between 1e-06 and 1e\\+06, got 1e\\+20"),
        ({"decay": 100.0}, "decay must be at most 1, got 100.0"),
        ({"spread_range": 200.0}, "spread_range must be at most 20, got 200.0"),
        ({"spins": (0,)}, "position must be sinusoidal or none where all spins are 0, got 'frame'"),
        (
            {"spins": (0, 0), "position": "none", "frames": "evolved"},
            "frames must be identity where all spins are 0, got 'evolved'",
        ),
        ({"covariance": "round"}, "covariance must be one of irrep, full, diagonal, got 'round'"),
        ({"position": "learned"}, "position must be one of frame, sinusoidal, none"),
        ({"observation": -1.0}, "observation must be at least 0"),
        ({"observation": 1e30}, "observation must be at most 1e\\+06, got 1e\\+30"),
        ({"mean_bias": 1e30}, "mean_bias must be at most 1e\\+06, got 1e\\+30"),
        ({"base": 0.01}, "base must be at least 1, got 0.01"),
    ],
)
def test_options_that_do_not_fit_are_named(changes, message):
    with pytest.raises(OptionError, match=message):
        _model(dataclasses.replace(SMALL, **changes))


@pytest.mark.parametrize(("vocabulary", "length"), [(0, 5), (5, 0)])
def test_nothing_to_read_is_refused(vocabulary, length):
    with pytest.raises(ValueError, match=r"(vocab_size|length) must be at least 1, got 0"):
        build(SMALL, vocabulary, length)


@pytest.mark.slow
def test_a_long_text_trains_in_memory_of_its_own_size():
    """The bound of the default layers at N = 1024, batch 8, dim 64, 4 layers of 4 steps: 24 GB."""
    config = VFEConfig(dim=64, steps=4, hidden=176)
    model = build(config, 65, 1024)

    def loss(params, tokens):
        return jnp.mean(model.apply(params, tokens, None).logits ** 2)

    shapes = jax.eval_shape(model.init, jax.random.key(0))
    tokens = jax.ShapeDtypeStruct((8, 1024), jnp.int32)
    program = jax.jit(jax.grad(loss)).lower(shapes, tokens).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2e9

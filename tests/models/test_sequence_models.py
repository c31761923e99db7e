"""Every model of the package's own table, and every mixer: causal bit for bit, right under padding,
decoding equals reading, every weight learns, a batch in parts is the batch, no answer leaks.
"""

import dataclasses
import functools
import itertools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.causality import assert_reads_only_the_past
from helpers.weights import random_weights

from vfejax.cli.train.metric_columns import units
from vfejax.models import table
from vfejax.models.blocks import OptionError
from vfejax.models.resnet_bk.model import MIXERS
from vfejax.models.table import MODELS
from vfejax.training.losses import next_token_loss
from vfejax.training.optimizer import adamw
from vfejax.training.step import trainer
from vfejax.types import Batch, LossInfo, Prediction, TrainInfo, TrainState

pytestmark = pytest.mark.usefixtures("library_promotion")

# Batches are read bare, [BATCH, LENGTH], or padded to [BATCH, WIDTH].
VOCABULARY, LENGTH, WIDTH, BATCH = 11, 12, 17, 8
ROUNDING = {"rtol": 1e-9, "atol": 1e-11}  # sums in another order, amplified by norms of small ones
# Terms that are small by default would hide a fault in their part of a gradient.
HEAVY = {
    "resnet-bk": {"balance_weight": 1.0, "router_z_weight": 1.0},
    "quantum": {"free_energy_weight": 1.0, "measure_every": 4},
    "reversible": {"energy_penalty": 1.0},
}


def _variant(name="resnet-bk", **options):
    """A model with other options than its tiny ones."""
    entry = MODELS[name]
    return entry._replace(tiny=dataclasses.replace(entry.tiny, **options))


# Every mixer, and every option of the block with one of them.
FURTHER = {"tridiagonal": {"convolution": 3}, "rg-lru": {"positions": True, "tied": False}}
# Every option of the agents with one of them.
AGENTS = {
    "full": {"covariance": "full", "frames": "evolved", "alignment": "weighted"}
    | {"mask_self": True, "covariances": "frozen", "norm": "none", "hidden": 0},
    "carried": {"priors": "carried", "frames": "evolved", "output": "kl", "window": 4}
    | {"observation": 1.0},
    "observed": {"group": "so", "output": "linear", "frames": "frozen", "observation": 1.0}
    | {"window": 3, "stride": 2, "link": False, "position": "sinusoidal"},
    "diagonal": {"covariance": "diagonal", "dynamics": "hamiltonian", "position": "none"}
    | {"priors": "carried", "spins": (2, 0, 0, 0), "steps": 3},
}
MEMBERS = (
    MODELS
    | {
        f"resnet-bk-{mixer}": _variant(mixer=mixer, experts=1, top_k=1, **FURTHER.get(mixer, {}))
        for mixer in MIXERS
        if mixer != MODELS["resnet-bk"].tiny.mixer
    }
    | {"resnet-bk-gumbel": _variant(router="gumbel", top_k=1, dropout=0.1)}
    | {f"vfe-{kind}": _variant("vfe", **options) for kind, options in AGENTS.items()}
)
assert MIXERS.keys() > FURTHER.keys()


def _build(entry, dtype=jnp.float32, length=WIDTH):
    counts = {"counts": np.ones(VOCABULARY)} if entry.needs_counts else {}
    return entry.build(entry.tiny, VOCABULARY, length, dtype, **counts)


class Compiled:
    """A model in float64 with its three programs. They take nearly all the time of this file, so
    each is for one shape and for all tests: a test that calls another function, or calls these
    with another shape, costs every model a compilation.

    Attributes:
        apply: ``(params, tokens [BATCH, LENGTH], None)`` to a prediction.
        learn: ``(params, batch)`` to loss, its parts, the prediction and the gradient, for
            :func:`_batch`. The token 0 is padding in the loss.
        decode: ``(params, state, tokens [BATCH])`` to logits and state.
    """

    def __init__(self, name):
        entry = MEMBERS[name]
        entry = entry._replace(tiny=dataclasses.replace(entry.tiny, **HEAVY.get(name, {})))
        self.model = model = _build(entry, jnp.float64)
        self.params = jax.device_get(jax.jit(model.init)(jax.random.key(0)))
        self.apply, self.decode = jax.jit(model.apply), jax.jit(model.decode)

        def loss(params, batch):
            seen = []

            def apply(*inputs):
                seen.append(model.apply(*inputs))
                return seen[-1]

            watched = model._replace(apply=apply)
            total, parts = next_token_loss(watched, params, batch, None, padding=0)
            return total, (parts, seen[0])

        gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))

        def learn(params, batch):
            (total, (parts, prediction)), slopes = jax.device_get(gradient(params, batch))
            return Learned(total, parts, prediction, slopes)

        self.learn = learn

    def logits(self, tokens):
        return np.asarray(self.apply(self.params, tokens, None).logits)


class Learned(NamedTuple):
    loss: np.ndarray
    parts: LossInfo
    prediction: Prediction
    gradient: Any


_compiled = functools.cache(Compiled)


@pytest.fixture
def compiled():
    """One for each model as long as the process lives: workers of pytest-xdist do a part of this
    file, then other files, then the rest of it.
    """
    return _compiled


@functools.cache
def _abstract(name, dtype=jnp.float32, length=WIDTH):
    """A model and the shapes of its weights, for what is known without computing anything."""
    model = _build(MEMBERS[name], dtype, length)
    return model, jax.eval_shape(model.init, jax.random.key(0))


def _batch(rng, mask=None):
    """Random tokens to learn from, where the mask is True."""
    windows = rng.integers(1, VOCABULARY, (BATCH, WIDTH + 1)).astype(np.int32)
    mask = np.ones((BATCH, WIDTH), bool) if mask is None else mask
    return Batch(windows[:, :-1], mask, targets=windows[:, 1:])


@pytest.fixture
def tokens(rng):
    return rng.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)


each_model = pytest.mark.parametrize("name", MODELS)
# Mixers have quick tests of their own, test_mixers.py and test_resolvents.py in resnet_bk, and so
# have agents, in vfe.
each_member = pytest.mark.parametrize(
    "name",
    [name if name in MODELS else pytest.param(name, marks=pytest.mark.slow) for name in MEMBERS],
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@each_member
def test_logits_have_the_precision_that_was_asked_for(name, dtype, tokens):
    """Double precision with the values below."""
    model, params = _abstract(name, dtype)
    logits = jax.eval_shape(model.apply, params, tokens, jax.random.key(0)).logits
    chex.assert_shape(logits, (BATCH, LENGTH, VOCABULARY))
    chex.assert_type(logits, dtype)
    chex.assert_type(jax.tree.leaves(params), jnp.float32)


@each_member
def test_no_prediction_knows_a_later_token_or_another_sequence(name, compiled, tokens):
    model = compiled(name)
    assert_reads_only_the_past(model.logits, tokens, VOCABULARY)


@each_member
def test_no_prediction_knows_the_answers_that_training_hands_to_the_model(name, compiled, rng):
    model, batch = compiled(name), _batch(rng)
    other = batch._replace(targets=batch.tokens)
    first, second = (model.learn(model.params, b) for b in (batch, other))
    assert first.loss != second.loss
    np.testing.assert_array_equal(first.prediction.logits, second.prediction.logits)


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        *itertools.product(MODELS, [(1, 2), (7, 33)]),
        *((name, (2, 17)) for name in MEMBERS if name not in MODELS),
    ],
)
def test_causality_holds_in_single_precision_as_users_compile_it_at_every_shape(name, shape, rng):
    model, shapes = _abstract(name, length=shape[1])
    # Without compiling what draws first weights, which takes as long again.
    params = jax.tree.map(lambda x: rng.uniform(0.1, 0.5, x.shape).astype(x.dtype), shapes)
    apply = jax.jit(model.apply)
    tokens = rng.integers(0, VOCABULARY, shape).astype(np.int32)
    assert_reads_only_the_past(lambda t: apply(params, t, None).logits, tokens, VOCABULARY)


def _next_token(tokens):
    return np.roll(tokens, -1, axis=1)


def _last_token(tokens):
    return np.concatenate([tokens[:, -1:], tokens[:, 1:]], axis=1)


def _another_sequence(tokens):
    return np.concatenate([tokens[:1], tokens[:1], tokens[2:]])


@pytest.mark.parametrize("read", [_next_token, _last_token, _another_sequence])
def test_a_model_that_cheats_is_found_out(read, compiled, tokens):
    honest = compiled("transformer")
    with pytest.raises(AssertionError):
        assert_reads_only_the_past(lambda t: honest.logits(read(t)), tokens, VOCABULARY)


@each_member
def test_every_token_reaches_all_later_outputs(name, compiled, tokens):
    model = compiled(name)
    changed = tokens.copy()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    difference = model.logits(tokens) - model.logits(changed)
    assert np.all(np.abs(difference).max(axis=(0, 2)) > 0)


def _masks(rng):
    """Where LENGTH tokens stand among WIDTH."""
    left = np.arange(WIDTH) >= WIDTH - LENGTH
    scattered = np.zeros((BATCH, WIDTH), bool)
    for row in scattered:
        row[np.sort(rng.permutation(WIDTH)[:LENGTH])] = True
    return {
        "left": np.tile(left, (BATCH, 1)),
        "right": np.tile(left[::-1], (BATCH, 1)),
        "scattered": scattered,
    }


def _padded(tokens, mask, rng):
    """Tokens where the mask is True, and arbitrary numbers elsewhere."""
    batch = rng.integers(-5, 1000, mask.shape).astype(np.int32)
    batch[mask] = tokens.reshape(-1)
    return Batch(batch, mask, targets=np.ones_like(batch))


@each_member
def test_padding_anywhere_changes_nothing(name, compiled, tokens, rng):
    """Left, right and scattered padding agree to the last bit whatever stands there, and with the
    sequence alone to rounding, losses and diagnostics included.
    """
    model, found = compiled(name), {}
    for place, mask in _masks(rng).items():
        prediction = model.learn(model.params, _padded(tokens, mask, rng)).prediction
        chex.assert_tree_all_finite(prediction)
        logits = prediction.logits[mask].reshape(BATCH, LENGTH, VOCABULARY)
        found[place] = logits, prediction.losses, prediction.diagnostics
    chex.assert_trees_all_equal(found["left"], found["right"])
    chex.assert_trees_all_equal(found["left"], found["scattered"])
    alone = jax.device_get(model.apply(model.params, tokens, None))
    logits, losses, diagnostics = found["left"]
    np.testing.assert_allclose(logits, alone.logits, **ROUNDING)
    # Alone there are no targets, and no terms that are made of them.
    for terms, expected in ((losses, alone.losses), (diagnostics, alone.diagnostics)):
        known = {name: terms[name] for name in expected}
        chex.assert_trees_all_close(known, expected, **ROUNDING)


@each_member
def test_reports_of_trainings_know_the_unit_of_every_loss_term(name, compiled, tokens, rng):
    model, mask = compiled(name), _masks(rng)["left"]
    losses = model.learn(model.params, _padded(tokens, mask, rng)).prediction.losses
    assert units(losses) == dict.fromkeys(losses, "nats")


@each_model
def test_rows_of_unequal_length_are_what_each_is_alone(name, compiled, tokens, rng):
    """Alone without padding: what follows a text cannot matter."""
    model, lengths = compiled(name), [3, LENGTH, 8, 1, 7, 11, 2, 5]
    mask = np.arange(WIDTH) >= WIDTH - np.array(lengths)[:, None]
    texts = [row[:length] for row, length in zip(tokens, lengths, strict=True)]
    batch = _padded(np.concatenate(texts), mask, rng)
    together = model.learn(model.params, batch).prediction.logits
    for row, length in enumerate(lengths):
        expected = model.logits(np.roll(tokens, -row, axis=0))[0, :length]
        np.testing.assert_allclose(together[row, -length:], expected, **ROUNDING)


@each_member
def test_decoding_token_by_token_equals_reading_at_once(name, compiled, tokens):
    model = compiled(name)
    expected = model.logits(tokens)
    chex.assert_type([expected, *jax.tree.leaves(model.params)], jnp.float64)
    start = state = jax.jit(model.model.init_decode, static_argnums=1)(model.params, BATCH)
    for t in range(LENGTH):
        logits, state = model.decode(model.params, state, tokens[:, t])
        np.testing.assert_allclose(logits, expected[:, t], **ROUNDING)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)


@each_model
def test_inside_shard_map_the_gradient_of_weights_that_devices_share_is_one_for_all(name, tokens):
    """JAX refuses a program whose types do not say so."""
    model, params = _abstract(name)
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    def loss(params, tokens):
        return jax.lax.pmean(jnp.mean(model.apply(params, tokens, None).logits), "data")

    places = {"mesh": mesh, "in_specs": (jax.P(), jax.P("data")), "out_specs": jax.P()}
    jax.eval_shape(jax.shard_map(jax.grad(loss), **places), params, tokens)


def _is_constant(name, path):
    """Whether an array is stored with the weights and never trained."""
    return any(word in jax.tree_util.keystr(path) for word in MEMBERS[name].constants)


@each_member
def test_every_weight_has_a_finite_gradient_that_is_not_zero(name, compiled, rng):
    model = compiled(name)
    gradient = model.learn(model.params, _batch(rng)).gradient
    chex.assert_tree_all_finite(gradient)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.any(leaf != 0) != _is_constant(name, path), path


@each_model
def test_gradient_is_that_of_finite_differences(name, compiled, rng):
    model, batch = compiled(name), _batch(rng)
    direction = jax.tree_util.tree_map_with_path(
        lambda path, x: rng.standard_normal(x.shape) * (not _is_constant(name, path)), model.params
    )
    step = 1e-7  # short, since routing jumps where a token likes two experts equally

    def moved(sign):
        params = jax.tree.map(lambda x, d: x + sign * step * d, model.params, direction)
        return model.learn(params, batch).loss

    slope = (moved(1) - moved(-1)) / (2 * step)
    gradient = model.learn(model.params, batch).gradient
    products = jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)
    # Central differences: rounding of the loss over the step.
    np.testing.assert_allclose(slope, sum(jax.tree.leaves(products)), rtol=1e-6)


@pytest.mark.slow  # of a table of logits: tests/training/test_step.py
@pytest.mark.parametrize("name", ["resnet-bk", "toroidal", "vfe"])
def test_a_batch_in_parts_is_the_batch_padding_and_further_terms_included(name, compiled, rng):
    model, mask = compiled(name), np.ones((BATCH, WIDTH), bool)
    mask[0, 4:] = mask[1, 2:] = mask[2, :6] = mask[5, 8:] = False  # unevenly over parts
    batch = _batch(rng, mask)
    loss, parts, _, gradient = model.learn(model.params, batch)
    optimizer = optax.sgd(1.0)
    method = trainer(model.model, optimizer, jax.random.key(1), padding=0, accumulation=4)
    state = TrainState(np.zeros((), np.int32), model.params, optimizer.init(model.params))
    after, found = jax.device_get(jax.jit(method.step)(state, batch))
    # Sums in another order.
    close = {"rtol": 1e-9, "atol": 1e-12}
    expected = jax.tree.map(np.subtract, model.params, gradient)
    chex.assert_trees_all_close(after.params, expected, **close)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    chex.assert_trees_all_close(found, TrainInfo(loss, parts, norm), **close)


@pytest.mark.parametrize(
    "name", ["transformer", pytest.param("resnet-bk-gumbel", marks=pytest.mark.slow)]
)
def test_a_key_makes_training_random_and_none_makes_it_not(name, compiled, tokens):
    entry, params = MEMBERS[name], compiled(name).params
    model = _build(entry._replace(tiny=dataclasses.replace(entry.tiny, dropout=0.2)), jnp.float64)
    apply = jax.jit(model.apply)
    one, two, again = (
        np.asarray(apply(params, tokens, jax.random.key(seed)).logits) for seed in (1, 2, 1)
    )
    chex.assert_trees_all_equal(one, again)
    assert not np.allclose(one, two)


@each_model
def test_what_is_no_batch_is_named(name):
    model, params = _abstract(name)
    row = np.zeros((1, WIDTH), np.int32)
    for bad, message in (
        (np.zeros(WIDTH, np.int32), "tokens must be integers of shape"),
        (np.zeros((1, WIDTH), np.float32), "tokens must be integers of shape"),
        (np.zeros((1, 0), np.int32), "tokens must hold at least 1 position"),
        (np.zeros((0, LENGTH), np.int32), "tokens must hold at least 1 sequence"),
        (Batch(row, mask=row), "mask must be booleans of the tokens' shape"),
        (Batch(row, mask=row[:, 1:] == 0), "mask must be booleans of the tokens' shape"),
        (Batch(row, positions=row[0]), "positions must be integers of the tokens' shape"),
        (Batch(row, targets=row == 0), "targets must be integers of the tokens' shape"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.apply, params, bad, None)
    longer = np.zeros((1, WIDTH + 1), np.int32)
    if model.max_length is None:
        assert jax.eval_shape(model.apply, params, longer, None).logits.shape[1] == WIDTH + 1
    else:
        with pytest.raises(ValueError, match=f"1 to {WIDTH} positions, got {WIDTH + 1}"):
            jax.eval_shape(model.apply, params, longer, None)


@each_model
def test_a_token_outside_the_vocabulary_is_no_number_and_touches_no_other_sequence(
    name, compiled, tokens
):
    model, strange = compiled(name), tokens.copy()
    strange[0, 3] = VOCABULARY
    found = model.logits(strange)
    assert np.all(np.isnan(found[0, 3:]))
    np.testing.assert_array_equal(found[1:], model.logits(tokens)[1:])


@each_model
def test_weights_of_numpy_and_tokens_of_fewer_bits_than_the_vocabulary_has_are_read(name):
    model = table.build(name, MODELS[name].tiny, 300, WIDTH)
    params = random_weights(model, 0, 0.1)

    def read(tokens):
        state = model.init_decode(params, BATCH)
        return model.apply(params, tokens).logits, model.decode(params, state, tokens[:, 0])[0]

    for dtype in (jnp.int8, jnp.uint8):
        whole, last = jax.eval_shape(read, jax.ShapeDtypeStruct((BATCH, LENGTH), dtype))
        assert whole.shape == (BATCH, LENGTH, 300)
        assert last.shape == (BATCH, 300)


@each_model
def test_given_positions_are_those_that_count(name, compiled, tokens):
    model = compiled(name)
    places = np.tile(np.arange(LENGTH, dtype=np.int32), (BATCH, 1))
    given = model.apply(model.params, Batch(tokens, positions=places), None).logits
    np.testing.assert_allclose(given, model.logits(tokens), **ROUNDING)


@each_model
def test_a_length_of_one_is_read_trained_and_decoded(name):
    """A table of one position must not trip over its shape."""
    model, params = _abstract(name, length=1)
    windows = np.array([[3, 4], [5, 6]], np.int32)
    loss, _ = jax.eval_shape(lambda p: next_token_loss(model, p, windows), params)
    chex.assert_shape(loss, ())
    state = jax.eval_shape(lambda p: model.init_decode(p, 2), params)
    logits, _ = jax.eval_shape(model.decode, params, state, windows[:, 0])
    chex.assert_shape(logits, (2, VOCABULARY))


@each_model
def test_options_that_do_not_fit_are_refused_by_their_own_name(name):
    entry = MODELS[name]
    counts = [f.name for f in dataclasses.fields(entry.config) if f.type is int]
    assert counts
    for option in counts:
        bad = entry._replace(tiny=dataclasses.replace(entry.tiny, **{option: -1}))
        with pytest.raises(ValueError, match=option) as caught:
            _build(bad)
        if isinstance(caught.value, OptionError):
            assert caught.value.name == option


def test_a_model_is_built_by_its_name(tokens):
    model = table.build("quantum", MODELS["quantum"].tiny, VOCABULARY, LENGTH)
    params = jax.eval_shape(model.init, jax.random.key(0))
    assert "dephasing" in params["tokens"]  # made from counts, of which every model's are known
    with pytest.raises(KeyError):
        table.build("perceptron", None, VOCABULARY, LENGTH)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*MODELS, "vfe-observed"])
def test_random_tokens_never_train_below_the_uniform_loss_and_a_pattern_does(name, rng):
    model, entry, key = _build(MEMBERS[name]), MEMBERS[name], jax.random.key(1)
    if entry.trainer is None:
        method = trainer(model, adamw(2e-2, weight_decay=0.0), key)
    else:
        method = entry.trainer(model, entry.tiny, lambda step: 2e-2, key)
    steps, batch = 40, 16

    @jax.jit
    def last_losses(windows):
        """Of windows that were never seen before: each is predicted, then learned."""
        _, infos = jax.lax.scan(method.step, method.init(jax.random.key(0)), windows)
        return infos.parts.cross_entropy[-20:]

    noise = rng.integers(0, VOCABULARY, (steps, batch, LENGTH + 1)).astype(np.int32)
    # A leak of the answer would be learned as fast as the pattern below, and go to 0; 4 sigma of
    # the mean of 3840 independent tokens is 0.01.
    assert np.mean(last_losses(noise)) > np.log(VOCABULARY) - 0.01
    pattern = rng.permutation(VOCABULARY)
    phase = rng.integers(0, VOCABULARY, (steps, batch, 1))
    periodic = pattern[(phase + np.arange(LENGTH + 1)) % VOCABULARY].astype(np.int32)
    assert last_losses(periodic)[-1] < 0.2


def test_a_name_or_options_of_another_model_are_named():
    with pytest.raises(KeyError, match="no model 'gpt'; there are resnet-bk, transformer, "):
        table.build("gpt", None, 5, 4)
    with pytest.raises(ValueError, match="'transformer' takes TransformerConfig, got ResNetBKConf"):
        table.build("transformer", table.MODELS["resnet-bk"].tiny, 5, 4)

"""Every model of the package's own table, and every mixer: causal bit for bit, right under padding,
decoding equals reading, every weight learns, a batch in parts is the batch, no answer leaks.
"""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.causality import assert_reads_only_the_past

from vfejax.models import table
from vfejax.models.blocks import OptionError
from vfejax.models.resnet_bk.model import MIXERS
from vfejax.models.table import MODELS
from vfejax.training.evaluate import evaluate
from vfejax.training.losses import next_token_loss
from vfejax.training.optimizer import adamw
from vfejax.training.step import trainer
from vfejax.types import Batch, TrainInfo, TrainState

pytestmark = pytest.mark.usefixtures("library_promotion")

VOCABULARY, LENGTH, BATCH = 11, 12, 3
DTYPES = jnp.float32, jnp.bfloat16
# Terms that are small by default would hide a fault in their part of a gradient.
HEAVY = {
    "resnet-bk": {"balance_weight": 1.0, "router_z_weight": 1.0},
    "quantum": {"free_energy_weight": 1.0, "measure_every": 4},
}


def _variant(**options):
    """ResNet-BK with other options than its tiny ones."""
    entry = MODELS["resnet-bk"]
    return entry._replace(tiny=dataclasses.replace(entry.tiny, **options))


# Every mixer, and every option of the block with one of them.
FURTHER = {"tridiagonal": {"convolution": 3}, "rg-lru": {"positions": True, "tied": False}}
MEMBERS = (
    MODELS
    | {
        f"resnet-bk-{mixer}": _variant(mixer=mixer, experts=1, top_k=1, **FURTHER.get(mixer, {}))
        for mixer in MIXERS
        if mixer != MODELS["resnet-bk"].tiny.mixer
    }
    | {"resnet-bk-gumbel": _variant(router="gumbel", top_k=1, dropout=0.1)}
)
assert MIXERS.keys() > FURTHER.keys()


def _build(entry, dtype=jnp.float32, length=LENGTH):
    counts = {"counts": np.ones(VOCABULARY)} if entry.needs_counts else {}
    return entry.build(entry.tiny, VOCABULARY, length, dtype, **counts)


class Compiled:
    """A model in float64 with its functions compiled once for all tests that share it. The token
    0 is padding in the loss.
    """

    def __init__(self, name):
        entry = MEMBERS[name]
        entry = entry._replace(tiny=dataclasses.replace(entry.tiny, **HEAVY.get(name, {})))
        self.model = _build(entry, jnp.float64)
        self.params = jax.jit(self.model.init)(jax.random.key(0))
        self.apply = jax.jit(self.model.apply)
        self.decode = jax.jit(self.model.decode)
        self.value_and_grad = jax.jit(
            jax.value_and_grad(
                lambda p, w: next_token_loss(self.model, p, w, None, 0), has_aux=True
            )
        )


@pytest.fixture(scope="module")
def compiled():
    return functools.cache(Compiled)


@pytest.fixture
def tokens(rng):
    return rng.integers(0, VOCABULARY, (BATCH, LENGTH)).astype(np.int32)


each_member = pytest.mark.parametrize("name", MEMBERS)
each_model = pytest.mark.parametrize("name", MODELS)
# For claims that take a program of their own for every member: variants of a model wait for the
# slow tests, so that a new mixer costs the quick ones little.
each_model_then_member = pytest.mark.parametrize(
    "name",
    [name if name in MODELS else pytest.param(name, marks=pytest.mark.slow) for name in MEMBERS],
)


@each_member
def test_logits_have_the_precision_that_was_asked_for(name, tokens):
    """A variant of a model only in the precision that mixes two; double precision with the values
    below.
    """
    for dtype in DTYPES if name in MODELS else [jnp.bfloat16]:
        model = _build(MEMBERS[name], dtype)
        params = jax.eval_shape(model.init, jax.random.key(0))
        logits = jax.eval_shape(model.apply, params, tokens, jax.random.key(0)).logits
        chex.assert_shape(logits, (BATCH, LENGTH, VOCABULARY))
        chex.assert_type(logits, dtype)
        chex.assert_type(jax.tree.leaves(params), jnp.float32)


@each_member
def test_no_prediction_knows_a_later_token_or_another_sequence(name, compiled, tokens):
    model = compiled(name)
    assert_reads_only_the_past(
        lambda t: model.apply(model.params, t, None).logits, tokens, VOCABULARY
    )


@each_model_then_member
def test_no_prediction_knows_the_answers_that_training_hands_to_the_model(name, compiled, tokens):
    model = compiled(name)

    @jax.jit
    def logits(targets):
        return model.model.apply(model.params, Batch(tokens, targets=targets), None).logits

    np.testing.assert_array_equal(logits(_next_token(tokens)), logits(tokens))


@pytest.mark.slow
@pytest.mark.usefixtures("optimized")
@pytest.mark.parametrize("shape", [(BATCH, LENGTH), (1, 2), (2, 17), (7, 33)])
@each_member
def test_causality_holds_in_single_precision_as_users_compile_it_at_every_shape(name, shape, rng):
    model = _build(MEMBERS[name], length=shape[1])
    little = {"xla_backend_optimization_level": 0}  # first weights take long to optimise
    params = jax.jit(model.init, compiler_options=little)(jax.random.key(0))
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
        assert_reads_only_the_past(
            lambda t: honest.apply(honest.params, read(t), None).logits, tokens, VOCABULARY
        )


@each_model_then_member
def test_every_token_reaches_all_later_outputs(name, compiled, tokens):
    model = compiled(name)
    changed = tokens.copy()
    changed[:, 0] = (changed[:, 0] + 1) % VOCABULARY
    difference = (
        model.apply(model.params, tokens, None).logits
        - model.apply(model.params, changed, None).logits
    )
    assert np.all(np.abs(difference).max(axis=(0, 2)) > 0)


def _padded(tokens, masks, rng):
    """Tokens where the masks are True, and arbitrary numbers elsewhere."""
    batch = rng.integers(-5, 1000, masks.shape).astype(np.int32)
    batch[masks] = tokens.reshape(-1)
    return Batch(batch, masks)


def _masks(rng, real, width):
    left = np.arange(width) >= width - real
    scattered = np.zeros((BATCH, width), bool)
    for row in scattered:
        row[np.sort(rng.permutation(width)[:real])] = True
    return {
        "left": np.tile(left, (BATCH, 1)),
        "right": np.tile(left[::-1], (BATCH, 1)),
        "scattered": scattered,
    }


@each_model_then_member
def test_padding_anywhere_changes_nothing(name, compiled, tokens, rng):
    """Left, right and scattered padding agree to the last bit whatever stands there, and with the
    sequence alone to rounding, losses and diagnostics included.
    """
    model, real = compiled(name), 7
    masks = _masks(rng, real, LENGTH)
    found = {}
    for place, mask in masks.items():
        prediction = model.apply(model.params, _padded(tokens[:, :real], mask, rng), None)
        chex.assert_tree_all_finite(prediction)
        logits = np.asarray(prediction.logits)[mask].reshape(BATCH, real, VOCABULARY)
        found[place] = logits, prediction.losses, prediction.diagnostics
    chex.assert_trees_all_equal(found["left"], found["right"])
    chex.assert_trees_all_equal(found["left"], found["scattered"])
    alone = model.apply(model.params, tokens[:, :real], None)
    expected = alone.logits, alone.losses, alone.diagnostics
    # Programs of another length: sums in another order, amplified by norms of small numbers.
    chex.assert_trees_all_close(found["left"], expected, rtol=1e-9, atol=1e-11)


@each_model
def test_rows_of_unequal_length_are_what_each_is_alone(name, compiled, tokens):
    model = compiled(name)
    lengths = np.array([3, LENGTH, 8])
    mask = np.arange(LENGTH) >= LENGTH - lengths[:, None]
    padded = np.where(mask, tokens, -1)
    together = model.apply(model.params, Batch(padded, mask), None).logits
    for row, length in enumerate(lengths):
        alone = np.zeros((BATCH, LENGTH), np.int32)
        alone[:, :length] = tokens[row, -length:]
        expected = model.apply(model.params, alone, None).logits[0, :length]
        np.testing.assert_allclose(together[row, -length:], expected, rtol=1e-9, atol=1e-11)


@each_member
def test_decoding_token_by_token_equals_reading_at_once(name, compiled, tokens):
    model = compiled(name)
    expected = model.apply(model.params, tokens, None).logits
    state = model.model.init_decode(model.params, BATCH)
    chex.assert_type([expected, *jax.tree.leaves(model.params)], jnp.float64)
    start = state
    for t in range(LENGTH):
        logits, state = model.decode(model.params, state, tokens[:, t])
        # Sums in another order, amplified by norms of small numbers.
        np.testing.assert_allclose(logits, expected[:, t], rtol=1e-9, atol=1e-11)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)


def _is_constant(name, path):
    """Whether an array is stored with the weights and never trained."""
    return any(word in jax.tree_util.keystr(path) for word in MEMBERS[name].constants)


@each_model_then_member
def test_every_weight_has_a_finite_gradient_that_is_not_zero(name, compiled, rng):
    model = compiled(name)
    windows = rng.integers(1, VOCABULARY, (8, LENGTH + 1)).astype(np.int32)
    gradient = model.value_and_grad(model.params, windows)[1]
    chex.assert_tree_all_finite(gradient)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.any(leaf != 0) != _is_constant(name, path), path


@each_model
def test_gradient_is_that_of_finite_differences(name, compiled, rng):
    model = compiled(name)
    windows = rng.integers(1, VOCABULARY, (8, LENGTH + 1)).astype(np.int32)
    direction = jax.tree_util.tree_map_with_path(
        lambda path, x: rng.standard_normal(x.shape) * (not _is_constant(name, path)), model.params
    )
    step = 1e-7  # short, since routing jumps where a token likes two experts equally

    def moved(sign):
        params = jax.tree.map(lambda x, d: x + sign * step * d, model.params, direction)
        return model.value_and_grad(params, windows)[0][0]

    slope = (moved(1) - moved(-1)) / (2 * step)
    gradient = model.value_and_grad(model.params, windows)[1]
    products = jax.tree.map(lambda g, d: np.sum(g * d), gradient, direction)
    # Central differences: rounding of the loss over the step.
    np.testing.assert_allclose(slope, sum(jax.tree.leaves(products)), rtol=1e-6)


@each_model
def test_a_batch_in_parts_is_the_batch_padding_and_further_terms_included(name, compiled, rng):
    model = compiled(name)
    windows = rng.integers(1, VOCABULARY, (8, LENGTH + 1)).astype(np.int32)
    windows[0, 4:] = windows[1, 2:] = windows[2, :6] = windows[5, 8:] = 0  # unevenly over parts
    (loss, info), gradient = model.value_and_grad(model.params, windows)
    method = trainer(model.model, optax.sgd(1.0), jax.random.key(1), padding=0, accumulation=4)
    state = TrainState(jnp.zeros((), jnp.int32), model.params, optax.sgd(1.0).init(model.params))
    after, found = jax.jit(method.step)(state, windows)
    # Sums in another order.
    close = {"rtol": 1e-9, "atol": 1e-12}
    expected = jax.tree.map(np.subtract, model.params, gradient)
    chex.assert_trees_all_close(after.params, expected, **close)
    norm = np.sqrt(sum(np.sum(np.square(leaf)) for leaf in jax.tree.leaves(gradient)))
    chex.assert_trees_all_close(found, TrainInfo(loss, info, norm), **close)


@pytest.mark.parametrize("name", ["transformer", "resnet-bk-gumbel"])
def test_a_key_makes_training_random_and_none_makes_it_not(name, compiled, tokens):
    entry, params = MEMBERS[name], compiled(name).params
    model = _build(entry._replace(tiny=dataclasses.replace(entry.tiny, dropout=0.2)), jnp.float64)
    apply = jax.jit(model.apply)
    one, two, again = (apply(params, tokens, jax.random.key(seed)).logits for seed in (1, 2, 1))
    chex.assert_trees_all_equal(one, again)
    assert not np.allclose(one, two)


@each_model
def test_what_is_no_batch_is_named(name):
    model = _build(MODELS[name])
    params = jax.eval_shape(model.init, jax.random.key(0))
    row = np.zeros((1, LENGTH), np.int32)
    for bad, message in (
        (np.zeros(LENGTH, np.int32), "tokens must be integers of shape"),
        (np.zeros((1, LENGTH), np.float32), "tokens must be integers of shape"),
        (np.zeros((1, 0), np.int32), "tokens must hold at least 1 position"),
        (np.zeros((0, LENGTH), np.int32), "tokens must hold at least 1 sequence"),
        (Batch(row, mask=row), "mask must be booleans of the tokens' shape"),
        (Batch(row, mask=row[:, 1:] == 0), "mask must be booleans of the tokens' shape"),
        (Batch(row, positions=row[0]), "positions must be integers of the tokens' shape"),
        (Batch(row, targets=row == 0), "targets must be integers of the tokens' shape"),
    ):
        with pytest.raises(ValueError, match=message):
            jax.eval_shape(model.apply, params, bad, None)
    longer = np.zeros((1, LENGTH + 1), np.int32)
    if model.max_length is None:
        assert jax.eval_shape(model.apply, params, longer, None).logits.shape[1] == LENGTH + 1
    else:
        with pytest.raises(ValueError, match=f"1 to {LENGTH} positions, got {LENGTH + 1}"):
            jax.eval_shape(model.apply, params, longer, None)


@each_model
def test_given_positions_are_those_that_count(name, compiled, tokens):
    model = compiled(name)
    places = np.broadcast_to(np.arange(LENGTH, dtype=np.int32), tokens.shape)
    plain = model.apply(model.params, tokens, None).logits
    given = model.apply(model.params, Batch(tokens, None, places), None).logits
    np.testing.assert_allclose(given, plain, rtol=1e-9, atol=1e-11)


@each_model
def test_a_length_of_one_is_read_trained_and_decoded(name):
    """A table of one position must not trip over its shape."""
    model = _build(MODELS[name], length=1)
    params = jax.eval_shape(model.init, jax.random.key(0))
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
@each_member
def test_random_tokens_never_train_below_the_uniform_loss_and_a_pattern_does(name, rng):
    model, entry, key = _build(MEMBERS[name]), MEMBERS[name], jax.random.key(1)
    if entry.trainer is None:
        method = trainer(model, adamw(1e-2, weight_decay=0.0), key)
    else:
        method = entry.trainer(model, entry.tiny, lambda step: 1e-2, key)
    steps, batch = 150, 16

    @jax.jit
    def loss_after_training(windows):
        state, _ = jax.lax.scan(method.step, method.init(jax.random.key(0)), windows[:steps])
        sums = evaluate(model, state.params, windows[steps:])
        return sums.nats / sums.num_tokens

    noise = rng.integers(0, VOCABULARY, (steps + 20, batch, LENGTH + 1)).astype(np.int32)
    # Fresh noise: a leak of the answer would go to 0; 4 sigma of the mean of 3840 independent
    # tokens is 0.01.
    assert loss_after_training(noise) > np.log(VOCABULARY) - 0.01
    pattern = rng.permutation(VOCABULARY)
    phase = rng.integers(0, VOCABULARY, (steps + 20, batch, 1))
    periodic = pattern[(phase + np.arange(LENGTH + 1)) % VOCABULARY].astype(np.int32)
    assert loss_after_training(periodic) < 0.2

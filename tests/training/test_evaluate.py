"""Evaluation: every token that counts, exact sums however long, and a loop that can be watched and
stopped.
"""

import functools
import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.training import sharding
from vfejax.training.evaluate import evaluate, evaluator
from vfejax.training.losses import next_token_loss
from vfejax.types import Prediction, SequenceModel

pytestmark = pytest.mark.usefixtures("library_promotion")


def _constant(logits):
    """A model that says the same whatever it reads."""

    def apply(params, tokens, key):
        return Prediction(jnp.broadcast_to(logits, (*tokens.shape, len(logits))), {}, {})

    return SequenceModel(lambda key: {}, apply, None, None, None)


@jax.jit
def _sums_of_constant(logits, windows):
    return evaluate(_constant(logits), {}, windows)


def test_every_token_that_counts_is_added_up(bigram, rng):
    model = bigram(5, noise=1.0)
    params = model.init(jax.random.key(0))
    windows = rng.integers(0, 5, (3, 4, 6))
    sums = jax.jit(lambda w: evaluate(model, params, w, 0))(windows)
    loss = jax.jit(lambda w: next_token_loss(model, params, w, None, 0)[1])
    infos = [jax.device_get(loss(w)) for w in windows]
    counts = [int(info.num_tokens) for info in infos]
    # The first token of a row is read and never asked for.
    real = np.sum(windows != 0, axis=-1)
    assert int(sums.num_tokens) == sum(counts) == np.sum(np.maximum(real - 1, 0))
    total = sum(float(i.cross_entropy) * count for i, count in zip(infos, counts, strict=True))
    np.testing.assert_allclose(sums.nats, total, rtol=1e-13)


def test_a_long_evaluation_in_float32_does_not_drift():
    # Equal batches are the worst case: all roundings of a plain sum go one way (7e-4 here).
    model = _constant(jnp.zeros(3, jnp.float32))
    windows = np.ones((100_000, 8, 5), np.int32)
    sums = jax.jit(functools.partial(evaluate, model, {}))(windows)
    chex.assert_type(sums.nats, jnp.float32)
    mean = float(sums.nats) / int(sums.num_tokens)
    # The sum of one batch and the result are each right to a few roundings.
    np.testing.assert_allclose(mean, math.log(3), rtol=4 * np.finfo(np.float32).eps)


@pytest.mark.parametrize(
    ("logits", "expected"),
    [([0.0, np.nan], np.nan), ([np.inf, 0.0], np.inf), ([0.0, -np.inf], np.inf)],
    ids=["nan", "inf", "impossible"],
)
def test_a_broken_model_has_no_plausible_loss(logits, expected):
    sums = _sums_of_constant(np.array(logits), np.ones((2, 1, 3), np.int32))
    np.testing.assert_equal(float(sums.nats), expected)


@pytest.mark.parametrize("shape", [(4, 6), (2, 4, 1), (0, 4, 6)])
def test_windows_of_another_shape_are_named(bigram, shape):
    with pytest.raises(ValueError, match=r"^windows must be \[m, b, n \+ 1\]"):
        evaluate(bigram(5), {}, jnp.zeros(shape, jnp.int32))


def test_more_windows_than_can_be_counted_are_refused(bigram):
    windows = jax.ShapeDtypeStruct((2**20, 2**6, 2**5), jnp.int32)
    with pytest.raises(ValueError, match=r"^windows must hold fewer than 2\^31"):
        jax.eval_shape(lambda w: evaluate(bigram(5), {}, w), windows)


@pytest.fixture(scope="module")
def setting(bigram):
    """Model, weights and 70 batches, the last one filled up with padding."""
    model = bigram(5)
    windows = np.random.default_rng(1).integers(1, 5, (70, 2, 4)).astype(np.int32)
    windows[-1, 1] = 0
    return model, model.init(jax.random.key(0)), windows


@pytest.fixture(scope="module")
def evaluate_fn(setting):
    return evaluator(setting[0], sharding.data_mesh(2), 0)


def test_the_loop_gives_the_mean_whatever_the_number_of_batches(setting, evaluate_fn):
    model, params, windows = setting
    sums_fn = jax.jit(lambda windows: evaluate(model, params, windows, 0))
    for count in (1, 32, 33, 70):
        # Further batches of padding count nothing, and save a compilation.
        sums = jax.device_get(sums_fn(windows * (np.arange(70) < count)[:, None, None]))
        measured = evaluate_fn(params, windows[:count])
        assert measured.num_tokens == int(sums.num_tokens)
        np.testing.assert_allclose(measured.nats_per_token, sums.nats / sums.num_tokens, rtol=1e-13)


def test_groups_of_batches_are_one_program(setting):
    model, params, windows = setting
    apply = chex.assert_max_traces(model.apply, n=2)  # once for its type, once for its value
    evaluator(model._replace(apply=apply), sharding.data_mesh(2), 0)(params, windows)


def test_the_loop_is_watched_and_stopped(setting, evaluate_fn):
    _, params, windows = setting
    seen = []
    whole = evaluate_fn(params, windows, progress_fn=seen.append)
    assert seen == [32, 64, 70]
    part = evaluate_fn(params, windows, stop_fn=lambda: True)
    assert part == evaluate_fn(params, windows[:32])
    assert part.num_tokens < whole.num_tokens


def test_nothing_to_predict_has_no_loss(setting, evaluate_fn):
    _, params, windows = setting
    measured = evaluate_fn(params, 0 * windows[:1])
    assert math.isnan(measured.nats_per_token)
    assert measured.num_tokens == 0

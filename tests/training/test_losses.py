"""Cross-entropy against its definition, with padding that does not count."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.training.losses import next_token_loss, token_nats, training_batch


def _definition(logits, targets):
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    return -np.log(np.take_along_axis(probabilities, targets[..., None], -1))[..., 0]


def test_nats_are_minus_log_probability(rng, dtype):
    logits, targets = rng.standard_normal((3, 4, 5)), rng.integers(0, 5, (3, 4))
    nats, counts = jax.jit(lambda x: token_nats(x, targets, None))(logits.astype(dtype))
    chex.assert_type(nats, dtype)
    assert counts.all()
    np.testing.assert_allclose(nats, _definition(logits, targets), rtol=20 * jnp.finfo(dtype).eps)


def test_padding_does_not_count_and_has_no_gradient(rng):
    logits, targets = rng.standard_normal((2, 3, 4)), np.array([[0, 1, 2], [3, 0, 0]])

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def results(logits):
        nats, counts = token_nats(logits, targets, 0)
        return nats.sum(), (nats, counts)

    slope, (nats, counts) = jax.device_get(results(logits))
    assert np.array_equal(counts, targets != 0)
    np.testing.assert_allclose(
        nats, np.where(targets != 0, _definition(logits, targets), 0), rtol=1e-14
    )
    assert np.all((np.abs(slope).max(-1) > 0) == (targets != 0))


def test_half_precision_logits_are_widened_and_huge_ones_are_finite():
    logits = jnp.asarray([[1000.0, 0.0]], jnp.bfloat16)
    nats, _ = jax.jit(lambda x: token_nats(x, np.asarray([1]), None))(logits)
    chex.assert_type(nats, jnp.float32)
    np.testing.assert_allclose(nats, [1000.0])


def test_loss_is_the_mean_over_tokens_that_count_plus_the_models_terms(bigram, rng):
    model = bigram(5, extra=0.25)
    params = model.init(jax.random.key(0))
    windows = np.array([[1, 2, 0, 0], [3, 4, 1, 2]])
    loss, info = jax.jit(lambda p: next_token_loss(model, p, windows, None, 0))(params)
    nats = _definition(np.asarray(params["kernel"])[windows[:, :-1]], windows[:, 1:])
    expected = nats[windows[:, 1:] != 0].mean()
    np.testing.assert_allclose(info.cross_entropy, expected, rtol=1e-14)
    np.testing.assert_allclose(loss, expected + 0.25, rtol=1e-14)
    assert int(info.num_tokens) == 4
    assert info.diagnostics["scale"] == 1


def test_padding_may_stand_anywhere(bigram):
    model = bigram(5)
    params = model.init(jax.random.key(0))
    loss_fn = jax.jit(lambda windows: next_token_loss(model, params, windows, None, 0))
    alone, expected = loss_fn(np.array([[1, 2, 4], [3, 1, 2]]))
    for windows in (
        [[0, 0, 1, 2, 4], [0, 0, 3, 1, 2]],
        [[1, 2, 4, 0, 0], [3, 1, 2, 0, 0]],
        [[1, 0, 2, 0, 4], [0, 3, 1, 0, 2]],
    ):
        loss, info = loss_fn(np.array(windows))
        np.testing.assert_allclose(loss, alone, rtol=1e-14)
        assert int(info.num_tokens) == int(expected.num_tokens) == 4


@pytest.mark.parametrize("shape", [(9,), (2, 3, 9), (4, 1)])
def test_windows_of_another_shape_are_named(shape):
    with pytest.raises(ValueError, match=r"^windows must be \[b, n \+ 1\] with n >= 1, got"):
        training_batch(jnp.ones(shape, int), padding=0)


def test_a_batch_of_padding_has_loss_zero_not_nan(bigram):
    model = bigram(3)
    params = model.init(jax.random.key(0))
    loss_fn = jax.jit(
        jax.value_and_grad(lambda p: next_token_loss(model, p, np.zeros((2, 4), int), None, 0)[0])
    )
    loss, slope = jax.device_get(loss_fn(params))
    assert loss == 0
    chex.assert_trees_all_equal(slope, jax.tree.map(np.zeros_like, params))


@pytest.mark.parametrize("key", [None, 3])
def test_only_a_key_makes_it_random(bigram, key):
    model = bigram(4, noise=1.0)
    params, windows = model.init(jax.random.key(0)), np.ones((2, 3), int)
    loss_fn = jax.jit(lambda k: next_token_loss(model, params, windows, k, None)[0])
    keys = (None, None) if key is None else (jax.random.key(1), jax.random.key(2))
    one, two = map(loss_fn, keys)
    assert (one == two) == (key is None)

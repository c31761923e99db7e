"""Cross-entropy against its definition, with padding that does not count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.training.losses import next_token_loss, token_nats


def _definition(logits, targets):
    probabilities = np.exp(logits - logits.max(-1, keepdims=True))
    probabilities /= probabilities.sum(-1, keepdims=True)
    return -np.log(np.take_along_axis(probabilities, targets[..., None], -1))[..., 0]


def test_nats_are_minus_log_probability(rng, dtype):
    logits, targets = rng.standard_normal((3, 4, 5)), rng.integers(0, 5, (3, 4))
    nats, counts = token_nats(jnp.asarray(logits, dtype), jnp.asarray(targets), None)
    assert nats.dtype == dtype
    assert counts.all()
    np.testing.assert_allclose(nats, _definition(logits, targets), rtol=20 * jnp.finfo(dtype).eps)


def test_padding_does_not_count_and_has_no_gradient(rng):
    logits, targets = rng.standard_normal((2, 3, 4)), np.array([[0, 1, 2], [3, 0, 0]])
    nats, counts = token_nats(jnp.asarray(logits), jnp.asarray(targets), 0)
    assert np.array_equal(counts, targets != 0)
    np.testing.assert_allclose(
        nats, np.where(targets != 0, _definition(logits, targets), 0), rtol=1e-14
    )
    slope = jax.grad(lambda x: token_nats(x, jnp.asarray(targets), 0)[0].sum())(jnp.asarray(logits))
    assert np.all((np.abs(slope).max(-1) > 0) == (targets != 0))


def test_half_precision_logits_are_widened_and_huge_ones_are_finite():
    logits = jnp.asarray([[1000.0, 0.0]], jnp.bfloat16)
    nats, _ = token_nats(logits, jnp.asarray([1]), None)
    assert nats.dtype == jnp.float32
    np.testing.assert_allclose(nats, [1000.0])


def test_loss_is_the_mean_over_tokens_that_count_plus_the_models_terms(bigram, rng):
    model = bigram(5, extra=0.25)
    params = model.init(jax.random.key(0))
    windows = np.array([[1, 2, 0, 0], [3, 4, 1, 2]])
    loss, info = next_token_loss(model, params, jnp.asarray(windows), None, 0)
    nats = _definition(np.asarray(params["kernel"])[windows[:, :-1]], windows[:, 1:])
    expected = nats[windows[:, 1:] != 0].mean()
    np.testing.assert_allclose(info.cross_entropy, expected, rtol=1e-14)
    np.testing.assert_allclose(loss, expected + 0.25, rtol=1e-14)
    assert int(info.num_tokens) == 4
    assert info.diagnostics["scale"] == 1


def test_padding_may_stand_anywhere(bigram):
    model = bigram(5)
    params = model.init(jax.random.key(0))
    alone, expected = next_token_loss(model, params, jnp.asarray([[1, 2, 4], [3, 1, 2]]), None, 0)
    for windows in (
        [[0, 0, 1, 2, 4], [0, 0, 3, 1, 2]],
        [[1, 2, 4, 0, 0], [3, 1, 2, 0, 0]],
        [[1, 0, 2, 0, 4], [0, 3, 1, 0, 2]],
    ):
        loss, info = next_token_loss(model, params, jnp.asarray(windows), None, 0)
        np.testing.assert_allclose(loss, alone, rtol=1e-14)
        assert int(info.num_tokens) == int(expected.num_tokens) == 4


def test_a_batch_of_padding_has_loss_zero_not_nan(bigram):
    model = bigram(3)
    params = model.init(jax.random.key(0))
    loss, slope = jax.value_and_grad(
        lambda p: next_token_loss(model, p, jnp.zeros((2, 4), int), None, 0)[0]
    )(params)
    assert loss == 0
    assert all(np.all(x == 0) for x in jax.tree.leaves(slope))


@pytest.mark.parametrize("key", [None, 3])
def test_only_a_key_makes_it_random(bigram, key):
    model = bigram(4, noise=1.0)
    params, windows = model.init(jax.random.key(0)), jnp.ones((2, 3), int)
    keys = (None, None) if key is None else (jax.random.key(1), jax.random.key(2))
    one, two = (next_token_loss(model, params, windows, k, None)[0] for k in keys)
    assert (one == two) == (key is None)

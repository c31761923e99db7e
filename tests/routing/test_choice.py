"""Routers against NumPy: the order, the weights and the gradients of what they choose."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.routing import gumbel_top_k, top_k

each_router = pytest.mark.parametrize("router", [top_k, gumbel_top_k])


def _softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def test_top_k_orders_by_probability(rng):
    logits = rng.standard_normal((3, 5, 7))
    found = top_k(jnp.asarray(logits), 3)
    order = np.argsort(-logits, axis=-1)[..., :3]
    np.testing.assert_array_equal(found.experts, order)
    assert found.experts.dtype == jnp.int32
    np.testing.assert_allclose(found.probabilities, _softmax(logits), rtol=1e-14)
    np.testing.assert_array_equal(
        found.weights, np.take_along_axis(np.asarray(found.probabilities), order, -1)
    )


@pytest.mark.parametrize("key", [None, 3])
@pytest.mark.parametrize("k", [1, 2])
def test_gumbel_is_hard_forward_and_the_whole_softmax_backward(k, key, rng, dtype):
    logits, key = (
        jnp.asarray(rng.standard_normal(5), dtype),
        None if key is None else jax.random.key(key),
    )
    noisy = logits if key is None else logits + jax.random.gumbel(key, (5,), dtype)
    found = gumbel_top_k(logits, k, key)
    np.testing.assert_array_equal(found.experts, np.argsort(-np.asarray(noisy))[:k])
    np.testing.assert_array_equal(found.weights, np.full(k, 1 / k, dtype), strict=True)
    np.testing.assert_allclose(
        found.probabilities, _softmax(np.asarray(logits)), rtol=10 * float(jnp.finfo(dtype).eps)
    )
    p = _softmax(np.asarray(noisy, np.float64))
    jacobian = jax.jit(jax.jacrev(lambda logits: gumbel_top_k(logits, k, key).weights))(logits)
    expected = (np.diag(p) - np.outer(p, p))[np.asarray(found.experts)]
    np.testing.assert_allclose(jacobian, expected, rtol=0, atol=10 * float(jnp.finfo(dtype).eps))
    assert np.all(jacobian != 0)


def test_gumbel_draws_without_replacement_by_the_softmax():
    num, p = 20_000, np.array([0.5, 0.3, 0.15, 0.05])
    logits = jnp.broadcast_to(jnp.log(jnp.asarray(p)), (num, 4))
    first, second = np.asarray(gumbel_top_k(logits, 2, jax.random.key(0)).experts).T
    assert np.all(first != second)
    after = np.outer(p, p) / (1 - p)[:, None] * (1 - np.eye(4))  # P(first i, second j)
    share = np.histogram2d(first, second, bins=np.arange(5))[0] / num
    # Five standard deviations of a share.
    assert np.all(np.abs(share - after) <= 5 * np.sqrt(after * (1 - after) / num))


@each_router
@pytest.mark.parametrize("k", [0, 4])
def test_routers_name_a_wrong_k(router, k):
    with pytest.raises(ValueError, match=f"k must lie between 1 and the 3 experts, got {k}"):
        router(jnp.zeros((2, 3)), k)


@each_router
def test_experts_whose_probability_underflows_are_still_told_apart(router):
    chosen = router(jnp.asarray([0.0, -300.0, -200.0], jnp.float32), 2)
    assert chosen.experts.tolist() == [0, 2]

"""Routers against NumPy: the order, the weights and the gradients of what they choose."""

import chex
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
    found = jax.jit(lambda x: top_k(x, 3))(logits)
    order = np.argsort(-logits, axis=-1)[..., :3]
    np.testing.assert_array_equal(found.experts, order)
    chex.assert_type(found.experts, jnp.int32)
    np.testing.assert_allclose(found.probabilities, _softmax(logits), rtol=1e-14)
    np.testing.assert_array_equal(
        found.weights, np.take_along_axis(np.asarray(found.probabilities), order, -1)
    )


@pytest.mark.parametrize(
    ("k", "seed", "kind"),
    [(1, None, "float64"), (2, 3, "float64"), (1, 3, "float32"), (2, None, "float32")],
)
def test_gumbel_is_hard_forward_and_the_whole_softmax_backward(k, seed, kind, rng):
    dtype = jnp.dtype(kind)
    logits = rng.standard_normal(5).astype(dtype)
    key = None if seed is None else jax.random.key(seed)

    @jax.jit
    def results(logits):
        noisy = logits if key is None else logits + jax.random.gumbel(key, (5,), dtype)
        weights = jax.jacrev(lambda x: gumbel_top_k(x, k, key).weights)
        return noisy, gumbel_top_k(logits, k, key), weights(logits)

    noisy, found, jacobian = results(logits)
    np.testing.assert_array_equal(found.experts, np.argsort(-np.asarray(noisy))[:k])
    np.testing.assert_array_equal(found.weights, np.full(k, 1 / k, dtype), strict=True)
    np.testing.assert_allclose(
        found.probabilities, _softmax(logits), rtol=10 * float(jnp.finfo(dtype).eps)
    )
    p = _softmax(np.asarray(noisy, np.float64))
    expected = (np.diag(p) - np.outer(p, p))[np.asarray(found.experts)]
    np.testing.assert_allclose(jacobian, expected, rtol=0, atol=10 * float(jnp.finfo(dtype).eps))
    assert np.all(jacobian != 0)


def test_gumbel_draws_without_replacement_by_the_softmax():
    num, p = 20_000, np.array([0.5, 0.3, 0.15, 0.05])
    draw = jax.jit(lambda x: gumbel_top_k(x, 2, jax.random.key(0)).experts)
    first, second = np.asarray(draw(np.broadcast_to(np.log(p), (num, 4)))).T
    assert np.all(first != second)
    after = np.outer(p, p) / (1 - p)[:, None] * (1 - np.eye(4))  # P(first i, second j)
    share = np.histogram2d(first, second, bins=np.arange(5))[0] / num
    # Five standard deviations of a share.
    assert np.all(np.abs(share - after) <= 5 * np.sqrt(after * (1 - after) / num))


@each_router
@pytest.mark.parametrize("k", [0, 4])
def test_routers_name_a_wrong_k(router, k):
    with pytest.raises(ValueError, match=f"k must lie between 1 and the 3 experts, got {k}"):
        jax.eval_shape(lambda x: router(x, k), np.zeros((2, 3)))


@each_router
def test_experts_whose_probability_underflows_are_still_told_apart(router):
    chosen = jax.jit(lambda x: router(x, 2))(np.asarray([0.0, -300.0, -200.0], np.float32))
    assert chosen.experts.tolist() == [0, 2]

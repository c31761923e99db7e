"""The router's losses: where they are least, what padding does to them, and how parts add up."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from vfejax.routing import (
    Routing,
    expert_usage,
    load_balance_loss,
    router_losses,
    router_sums,
    router_z_loss,
    top_k,
)

EXPERTS = 4


def _routing(experts, probabilities):
    experts = jnp.asarray(experts, jnp.int32)
    return Routing(experts, jnp.ones(experts.shape), jnp.asarray(probabilities))


def test_load_balance_is_one_when_even_and_e_when_one_takes_all():
    even = _routing([[0, 1], [2, 3], [1, 0], [3, 2]], np.full((4, 4), 0.25))
    assert float(load_balance_loss(even)) == 1.0
    assert float(load_balance_loss(_routing([[2]] * 5, np.eye(4)[[2] * 5]))) == 4.0


def test_load_balance_pushes_down_the_busy(rng):
    probabilities = rng.dirichlet(np.ones(3), (2, 5))
    experts = [[[0], [0], [2], [0], [0]], [[0], [2], [0], [0], [0]]]
    gradient = jax.grad(lambda p: load_balance_loss(_routing(experts, p)))(
        jnp.asarray(probabilities)
    )
    expected = 3 * np.array([0.8, 0.0, 0.2]) / 10
    np.testing.assert_allclose(gradient, np.broadcast_to(expected, (2, 5, 3)), rtol=1e-14)


def test_sums_leave_padding_out_and_add_up_over_parts(rng):
    logits = jnp.asarray(rng.standard_normal((6, 5, EXPERTS)))
    mask = jnp.asarray(rng.random((6, 5)) < 0.6)
    routing = top_k(logits, 2)
    whole = router_sums(logits, routing, mask)
    parts = [
        router_sums(logits[i : i + 2], jax.tree.map(lambda x, i=i: x[i : i + 2], routing), m)
        for i, m in ((0, mask[:2]), (2, mask[2:4]), (4, mask[4:]))
    ]
    # Sums of 30 numbers in another order.
    chex.assert_trees_all_close(jax.tree.map(lambda *x: sum(x), *parts), whole, rtol=1e-14)
    real = jax.tree.map(lambda x: x[mask], routing)
    expected = router_losses(router_sums(logits[mask], real))
    chex.assert_trees_all_close(router_losses(whole), expected, rtol=1e-14)
    np.testing.assert_allclose(
        load_balance_loss(routing, mask), load_balance_loss(real), rtol=1e-14
    )
    np.testing.assert_allclose(router_z_loss(logits, mask), router_z_loss(logits[mask]), rtol=1e-14)
    nothing = router_losses(router_sums(logits, routing, jnp.zeros_like(mask)))
    chex.assert_trees_all_equal(nothing, jax.tree.map(jnp.zeros_like, nothing))


def test_usage_counts_choices(dtype):
    usage = expert_usage(_routing([[[0, 2], [2, 3]], [[2, 0], [2, 3]]], np.zeros((2, 2, 5), dtype)))
    np.testing.assert_array_equal(usage, np.array([0.25, 0, 0.5, 0.25, 0], dtype), strict=True)


def test_router_z_is_the_mean_square_of_the_log_partition_function(rng):
    logits = rng.standard_normal((2, 3, 4))
    expected = np.mean(np.log(np.exp(logits).sum(-1)) ** 2)
    np.testing.assert_allclose(router_z_loss(jnp.asarray(logits)), expected, rtol=1e-14)
    np.testing.assert_allclose(router_z_loss(jnp.zeros((3, 8))), np.log(8) ** 2, rtol=1e-14)
    assert np.isfinite(router_z_loss(jnp.full((3, 8), 1e4)))

"""The router's losses: where they are least, what padding does to them, and how parts add up."""

import chex
import jax
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


balance = jax.jit(load_balance_loss)
z_loss = jax.jit(router_z_loss)


def _routing(experts, probabilities):
    experts = np.asarray(experts, np.int32)
    return Routing(experts, np.ones(experts.shape), probabilities)


def test_load_balance_is_one_when_even_and_e_when_one_takes_all():
    even = _routing([[0, 1], [2, 3], [1, 0], [3, 2]], np.full((4, 4), 0.25))
    assert float(balance(even)) == 1.0
    assert float(balance(_routing([[2]] * 5, np.eye(4)[[2] * 5]))) == 4.0


def test_load_balance_pushes_down_the_busy(rng):
    probabilities = rng.dirichlet(np.ones(3), (2, 5))
    experts = [[[0], [0], [2], [0], [0]], [[0], [2], [0], [0], [0]]]
    slope = jax.jit(jax.grad(lambda p: load_balance_loss(_routing(experts, p))))
    gradient = slope(probabilities)
    expected = 3 * np.array([0.8, 0.0, 0.2]) / 10
    np.testing.assert_allclose(gradient, np.broadcast_to(expected, (2, 5, 3)), rtol=1e-14)


def test_sums_leave_padding_out_and_add_up_over_parts(rng):
    logits, mask = rng.standard_normal((6, 5, EXPERTS)), rng.random((6, 5)) < 0.6
    routing = jax.tree.map(np.asarray, jax.jit(lambda x: top_k(x, 2))(logits))
    count, losses = jax.jit(router_sums), jax.jit(router_losses)
    whole = count(logits, routing, mask)
    parts = [
        count(*jax.tree.map(lambda x, i=i: x[i : i + 2], (logits, routing, mask)))
        for i in (0, 2, 4)
    ]
    # Sums of 30 numbers in another order.
    added = jax.tree.map(lambda *x: np.sum(x, axis=0), *parts)
    chex.assert_trees_all_close(added, whole, rtol=1e-14)
    real = jax.tree.map(lambda x: x[mask], routing)
    expected = losses(count(logits[mask], real))
    chex.assert_trees_all_close(losses(whole), expected, rtol=1e-14)
    np.testing.assert_allclose(balance(routing, mask), balance(real), rtol=1e-14)
    np.testing.assert_allclose(z_loss(logits, mask), z_loss(logits[mask]), rtol=1e-14)
    nothing = losses(count(logits, routing, np.zeros_like(mask)))
    chex.assert_trees_all_equal(nothing, jax.tree.map(np.zeros_like, nothing))


def test_usage_counts_choices(dtype):
    usage = jax.jit(expert_usage)(
        _routing([[[0, 2], [2, 3]], [[2, 0], [2, 3]]], np.zeros((2, 2, 5), dtype))
    )
    np.testing.assert_array_equal(usage, np.array([0.25, 0, 0.5, 0.25, 0], dtype), strict=True)


def test_router_z_is_the_mean_square_of_the_log_partition_function(rng):
    logits = rng.standard_normal((2, 3, 4))
    expected = np.mean(np.log(np.exp(logits).sum(-1)) ** 2)
    np.testing.assert_allclose(z_loss(logits), expected, rtol=1e-14)
    np.testing.assert_allclose(z_loss(np.zeros((3, 8))), np.log(8) ** 2, rtol=1e-14)
    chex.assert_tree_all_finite(z_loss(np.full((3, 8), 1e4)))

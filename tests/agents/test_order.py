"""Order parameters: known values, the textbook's formulas, and agents that are not active."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.agents import order

NUM = 9


@jax.jit
def everything(attention, labels, active):
    return (
        order.attention_entropy(attention, active),
        order.mean_attention_entropy(attention, active),
        order.effective_rank(attention, active),
        order.modularity(attention, labels, active),
    )


def random_attention(rng, num=NUM):
    weights = rng.uniform(size=(num, num)) * (1 - np.eye(num))
    return weights / weights.sum(axis=1, keepdims=True)


def textbook(attention, labels):
    """The four numbers by singular values and sums over pairs, in float64."""
    share = attention / attention.sum(axis=1, keepdims=True)
    entropy = -np.sum(share * np.log(np.where(share > 0, share, 1.0)), axis=1)
    squares = np.linalg.svd(attention, compute_uv=False) ** 2
    p = squares / squares.sum()
    w = (attention + attention.T) / 2
    k, total = w.sum(axis=1), w.sum()
    pairs = [
        w[i, j] / total - k[i] * k[j] / total**2
        for i in range(len(w))
        for j in range(len(w))
        if labels[i] == labels[j]
    ]
    return entropy, entropy.mean(), 1 / np.sum(p**2), np.sum(pairs)


def blocks(sizes):
    """Uniform attention within groups, the agent itself left out."""
    truth = np.repeat(np.arange(len(sizes)), sizes)
    same = (truth[:, None] == truth) & ~np.eye(len(truth), dtype=bool)
    return same / np.maximum(same.sum(axis=1, keepdims=True), 1), truth


def test_the_numbers_are_those_of_the_textbook(dtype, rng):
    attention, labels = random_attention(rng), rng.integers(0, 3, NUM)
    found = everything(attention.astype(dtype), labels, np.ones(NUM, bool))
    chex.assert_type(found, dtype)
    # Sums of some dozens of rounded terms.
    tolerance = 50 * jnp.finfo(dtype).eps
    chex.assert_trees_all_close(found, textbook(attention, labels), rtol=tolerance, atol=tolerance)


def test_the_rank_has_no_unit(dtype, rng):
    attention, labels = random_attention(rng).astype(dtype), np.zeros(NUM, int)
    expected = everything(attention, labels, np.ones(NUM, bool))[2]
    for unit in (1e-12, 1e12):
        found = everything(attention * dtype.type(unit), labels, np.ones(NUM, bool))[2]
        # Two traces of some dozens of rounded terms.
        np.testing.assert_allclose(found, expected, rtol=50 * jnp.finfo(dtype).eps)


def test_agents_that_are_not_active_play_no_part_whatever_they_hold(rng):
    attention, labels = random_attention(rng), rng.integers(0, 3, NUM)
    active = np.ones(NUM, bool)
    expected = everything(attention, labels, active)
    padded = np.full((NUM + 3, NUM + 3), np.nan)
    place = np.sort(rng.permutation(NUM + 3)[:NUM])
    padded[np.ix_(place, place)] = attention
    more = np.zeros(NUM + 3, int)
    more[place] = labels
    active = np.isin(np.arange(NUM + 3), place)
    entropy, *rest = everything(padded, more, active)
    chex.assert_trees_all_close((entropy[place], *rest), expected, rtol=1e-13)
    np.testing.assert_array_equal(np.asarray(entropy)[~active], 0.0)


def test_the_rank_counts_groups_and_modularity_knows_the_right_ones():
    attention, truth = blocks([20, 20, 20])
    entropy, mean, rank, right = everything(attention, truth, np.ones(60, bool))
    np.testing.assert_allclose(entropy, np.log(19), rtol=1e-14)
    np.testing.assert_allclose(mean, np.log(19), rtol=1e-14)
    # The empty diagonal adds singular values of 1/19.
    np.testing.assert_allclose(rank, 3.0, rtol=0.12)
    np.testing.assert_allclose(right, 1 - 1 / 3, rtol=1e-14)
    *_, merged = everything(attention, np.zeros(60, int), np.ones(60, bool))
    np.testing.assert_allclose(merged, 0.0, rtol=0, atol=1e-14)
    *_, wrong = everything(attention, np.arange(60), np.ones(60, bool))
    assert wrong < 0


def test_nobody_who_listens_has_no_order_and_finite_slopes():
    def total(attention):
        return sum(
            jnp.sum(x)
            for x in (
                order.attention_entropy(attention),
                order.mean_attention_entropy(attention),
                order.effective_rank(attention),
                order.modularity(attention, np.zeros(NUM, int)),
            )
        )

    value, slope = jax.jit(jax.value_and_grad(total))(np.zeros((NUM, NUM)))
    assert value == 0
    chex.assert_tree_all_finite(slope)


def test_nan_of_an_active_agent_stays(rng):
    attention = random_attention(rng)
    attention[2, 3] = np.nan
    entropy, mean, rank, _ = everything(attention, np.zeros(NUM, int), np.ones(NUM, bool))
    np.testing.assert_array_equal(np.isnan(entropy), np.arange(NUM) == 2)
    assert np.isnan([mean, rank]).all()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda: order.effective_rank(np.ones((2, 3))), "attention must have shape"),
        (lambda: order.attention_entropy(np.ones((2, 2)), np.ones(2)), "active must be booleans"),
        (
            lambda: order.attention_entropy(np.ones((2, 2)), np.ones(3, bool)),
            "active must be booleans",
        ),
        (lambda: order.modularity(np.ones((2, 2)), np.ones(2)), "labels must be integers"),
        (lambda: order.modularity(np.ones((2, 2)), np.ones(3, int)), "labels must be integers"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(function, message):
    with pytest.raises(ValueError, match=message):
        function()

"""Budgets: limits and sums are kept in whole tokens, and the relaxed form has an exact gradient."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from scipy.optimize import brentq

from vfejax.inference.allocation import budgets

LIMITS = [(80, 3, 12), (63, 0, 9), (83, 3, 12), (21, 3, 12), (84, 3, 12), (35, 5, 5)]


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def allocate(log_pi, budget, k_min, k_max):
    return jax.vmap(lambda x: budgets.allocate(x, budget, k_min, k_max))(log_pi)


def logits(rng, dtype, size=7):
    """Beliefs from nearly even to nearly certain, some with ties, some impossible."""
    rows = rng.normal(size=(40, size)) * np.logspace(-3, 3, 40)[:, None]
    rows[::4, 1] = rows[::4, 3]
    rows[5:8, 2] = -np.inf
    return jnp.asarray(rows, dtype)


def water_level(pi, budget, k_min, k_max):
    """By bisection for the factor of ``min(K_max, K_min + factor pi)``, in float64."""

    def tokens(log_factor):
        with np.errstate(over="ignore"):
            return np.minimum(k_max, k_min + np.exp(log_factor) * pi)

    return tokens(brentq(lambda x: tokens(x).sum() - budget, -50, 700, xtol=1e-13))


@pytest.mark.parametrize(("budget", "k_min", "k_max"), LIMITS)
def test_tokens_sum_to_the_budget_within_their_limits(rng, dtype, budget, k_min, k_max):
    found = allocate(logits(rng, dtype), budget, k_min, k_max)
    tokens = np.asarray(found.tokens)
    np.testing.assert_array_equal(tokens.sum(axis=1), budget)
    assert tokens.min() >= k_min
    assert tokens.max() <= k_max
    relaxed = np.asarray(found.relaxed, np.float64)
    # Sums of seven numbers up to 12.
    np.testing.assert_allclose(relaxed.sum(axis=1), budget, rtol=0, atol=100 * jnp.finfo(dtype).eps)
    assert np.all(np.abs(tokens - relaxed) < 1 + 1e-5)


def test_relaxed_tokens_are_those_of_the_water_level(rng):
    rows = rng.normal(size=(40, 7)) * np.logspace(-2, 1, 40)[:, None]
    rows -= np.logaddexp.reduce(rows, axis=1, keepdims=True)
    found = allocate(jnp.asarray(rows), 60, 3, 12).relaxed
    expected = [water_level(np.exp(row), 60, 3, 12) for row in rows]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-9)
    assert 0 < np.mean(np.asarray(found) == 12) < 0.5


def test_the_largest_remainders_are_rounded_up_and_the_first_of_equals():
    whole = jax.jit(functools.partial(budgets.whole_tokens, budget=10, k_min=0, k_max=9))
    assert whole(jnp.array([2.2, 3.9, 3.9])).tolist() == [2, 4, 4]
    assert whole(jnp.array([2.5, 2.5, 2.5, 2.5])).tolist() == [3, 3, 2, 2]
    # Real numbers that miss the sum in either direction, as rounding may make them.
    assert whole(jnp.array([4.0, 4.0, 1.0])).tolist() == [5, 4, 1]
    assert whole(jnp.array([4.0, 5.0, 3.0])).tolist() == [2, 5, 3]
    assert whole(jnp.array([0.0, 0.0, 0.0])).tolist() == [8, 1, 1]


def test_ten_thousand_patches_in_float32_lose_no_token(rng):
    rows = jnp.asarray(rng.normal(size=(2, 10_764)) * 3, jnp.float32)
    found = allocate(rows, 1_234_567, 64, 400)
    np.testing.assert_array_equal(np.asarray(found.tokens, int).sum(axis=1), 1_234_567)
    assert found.tokens.min() >= 64
    assert found.tokens.max() == 400


def test_a_picture_that_is_not_a_number_has_no_tokens_and_harms_no_other(rng, dtype):
    rows = logits(rng, dtype)[:3]
    found = allocate(rows.at[1, 4].set(jnp.nan), 60, 3, 12)
    assert np.all(np.isnan(found.relaxed[1]))
    assert found.tokens[1].tolist() == [-1] * 7
    alone = allocate(rows, 60, 3, 12)
    np.testing.assert_array_equal(found.tokens[::2], alone.tokens[::2])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((20, 3, 12), "21 to 84 for 7 patches of 3 to 12 tokens, got 20"),
        ((85, 3, 12), "21 to 84 .* got 85"),
        ((50, 9, 8), "k_min <= k_max, got 9, 8"),
        ((50, -1, 8), "got -1, 8"),
        ((50, 0, 2**30), "at most 2147483647, got 1073741824 for 7"),
    ],
)
def test_impossible_budgets_are_refused_with_their_numbers(arguments, said):
    with pytest.raises(ValueError, match=said):
        jax.eval_shape(lambda x: budgets.relaxed_tokens(x, *arguments), jnp.zeros(7))


def test_shapes_are_refused():
    with pytest.raises(ValueError, match=r"log_pi must have shape \[p\], not empty, got \[2, 3\]"):
        budgets.relaxed_tokens(jnp.zeros((2, 3)), 10, 0, 5)


@pytest.mark.parametrize("budget", [60, 84])
def test_the_gradient_of_relaxed_tokens_is_exact(rng, budget):
    relaxed = jax.jit(lambda x: budgets.relaxed_tokens(x, budget, 3, 12))
    x = jnp.asarray(rng.normal(size=7) * 2)
    check_grads(relaxed, (x,), order=2, modes=["fwd", "rev"])
    jacobian = jax.jit(jax.jacobian(relaxed))(x)
    # The sum is fixed, and full patches do not move.
    np.testing.assert_allclose(jacobian.sum(axis=0), 0.0, rtol=0, atol=1e-13)
    full = relaxed(x) == 12
    assert full.any()
    assert not jacobian[full].any()
    assert bool(jacobian.any()) == (budget == 60)


def test_straight_through_is_whole_forward_and_relaxed_backward(rng):
    x, cotangent = jnp.asarray(rng.normal(size=(2, 7)))

    @functools.partial(jax.jit, static_argnums=0)
    def both(tokens_fn, x):
        value, pull = jax.vjp(lambda x: tokens_fn(x, 60, 3, 12), x)
        return value, pull(cotangent)[0]

    value, slope = both(budgets.straight_through, x)
    np.testing.assert_array_equal(value, allocate(x[None], 60, 3, 12).tokens[0])
    np.testing.assert_array_equal(slope, both(budgets.relaxed_tokens, x)[1])


def test_one_token_at_most_is_a_top_k(rng, dtype):
    rows = jnp.asarray(rng.normal(size=(20, 9)), dtype)
    chosen = np.sort(np.argsort(-rows, axis=1, stable=True)[:, :4], axis=1)
    tokens = np.asarray(allocate(rows, 4, 0, 1).tokens)
    np.testing.assert_array_equal(np.nonzero(tokens)[1].reshape(20, 4), chosen)
    # As the belief grows sharper the relaxed form becomes the choice itself.
    sharp = np.asarray(allocate(1e4 * rows, 4, 0, 1).relaxed)
    np.testing.assert_allclose(sharp, tokens, rtol=0, atol=1e-3)


def test_a_mask_keeps_the_first_tokens_and_has_a_gradient_at_the_last():
    mask_of = functools.partial(budgets.token_mask, k_max=3)
    tokens = np.array([0.0, 1.5, 3.0])
    mask, slope = jax.jit(lambda t: (mask_of(t), jax.jacobian(mask_of)(t)))(tokens)
    np.testing.assert_array_equal(mask, [[0, 0, 0], [1, 0.5, 0], [1, 1, 1]])
    np.testing.assert_array_equal(slope[1, :, 1], [0, 1, 0])

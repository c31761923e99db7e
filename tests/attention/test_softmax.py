"""The softmax over masked rows: values and gradients of empty rows, NaN, offsets, blocks."""

import itertools
from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention import softmax as module
from vfejax.attention.softmax import Average, combine, finish, log_sum_exp, over_axis, softmax

ROWS = over_axis()
compiled = jax.jit(softmax)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def masked_logits(rng, dtype=np.float64):
    """Logits ``[5, 6]`` and a mask whose row 2 is empty."""
    mask = rng.uniform(size=(5, 6)) < 0.6
    mask[:, 0] = True
    mask[2] = False
    return rng.normal(size=(5, 6)).astype(dtype), mask


def dense(logits, mask):
    """The formula in NumPy's float64."""
    factors = np.where(mask, np.exp(np.asarray(logits, float)), 0.0)
    total = factors.sum(axis=-1, keepdims=True)
    return factors / np.where(total == 0, 1, total)


@jax.jit
def weights_and_gradient(logits, mask, cotangent):
    weights, pull_back = jax.vjp(lambda x: softmax(x, mask), logits)
    return weights, pull_back(cotangent.astype(weights.dtype))[0]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "float64"])
def test_weights_and_gradient(dtype, rng):
    logits, mask = masked_logits(rng, dtype)
    cotangent = rng.normal(size=logits.shape).astype(dtype)
    weights, gradient = weights_and_gradient(logits, mask, cotangent)
    chex.assert_type(weights, "float64" if dtype == "float64" else "float32")
    chex.assert_type(gradient, dtype)
    expected = dense(logits, mask)
    change = expected * np.asarray(cotangent, float)
    # Sums are kept in float32 at least, so only the gradient returned is rounded to half precision.
    chex.assert_trees_all_close(
        np.asarray(weights), expected.astype(weights.dtype), atol=4 * eps(weights.dtype), rtol=0
    )
    chex.assert_trees_all_close(
        np.asarray(gradient, float),
        change - expected * change.sum(axis=-1, keepdims=True),
        atol=4 * eps(dtype),
        rtol=0,
    )
    # What may not be attended to, the empty row above all, is 0 to the bit.
    for array in (weights, gradient):
        assert np.all(np.asarray(array, float)[~np.asarray(mask)] == 0)
    assert np.all(np.asarray(weights)[np.asarray(mask)] > 0)


def test_derivatives_of_every_kind_are_those_of_the_formula(rng):
    logits, mask = masked_logits(rng)
    cotangent = rng.normal(size=logits.shape)

    def second_order(weights_fn):
        loss = lambda x: jnp.sum(cotangent * weights_fn(x) ** 2)  # noqa: E731
        return jax.jvp(jax.grad(loss), (logits,), (cotangent,))

    def formula(x):
        factors = jnp.where(mask, jnp.exp(x), 0.0)
        total = jnp.sum(factors, axis=-1, keepdims=True)
        return factors / jnp.where(total == 0, 1.0, total)

    ours, expected = jax.jit(
        lambda: (second_order(partial(softmax, mask=mask)), second_order(formula))
    )()
    chex.assert_trees_all_close(ours, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("offset", [0.0, 1e4, -1e4])
def test_a_common_offset_cancels(offset, rng):
    logits, mask = masked_logits(rng)
    # The offset itself rounds the logits to 1e4 eps.
    chex.assert_trees_all_close(
        compiled(logits + offset, mask),
        compiled(logits, mask),
        rtol=0,
        atol=2 * max(1.0, abs(offset)) * eps("float64"),
    )


def test_nan_makes_its_own_row_nan_and_no_other(rng):
    logits, mask = masked_logits(rng)
    mask[3, 1] = False
    bad = logits.copy()
    bad[0, 0] = bad[3, 1] = np.nan
    weights, gradient = map(np.asarray, weights_and_gradient(bad, mask, np.ones_like(logits)))
    expected = dense(logits, mask)
    assert np.all(np.isnan(weights[0]))
    # Row 3 has its NaN behind the mask.
    chex.assert_trees_all_close(weights[1:], expected[1:], rtol=0, atol=1e-15)
    chex.assert_tree_all_finite(gradient[1:])


def test_infinite_logits_are_no_weights():
    assert np.all(np.isnan(compiled(np.asarray([[np.inf, 0.0]]))))
    row = np.asarray([[-np.inf, 0.0]])
    chex.assert_trees_all_close(compiled(row), np.asarray([[0.0, 1.0]]))


def test_no_rows_and_no_entries():
    chex.assert_shape(compiled(np.zeros((0, 3))), (0, 3))
    chex.assert_shape(compiled(np.zeros((3, 0))), (3, 0))
    assert np.all(np.isneginf(jax.jit(lambda x: log_sum_exp(x, ROWS))(np.zeros((2, 0)))))


@jax.jit
def value_gradient_and_weights(logits):
    row = jax.value_and_grad(lambda x: log_sum_exp(x, ROWS))
    return *jax.vmap(row)(logits), softmax(logits)


def test_log_sum_exp_and_its_gradient(rng, dtype):
    logits, mask = masked_logits(rng, dtype)
    logits = np.where(mask, logits - 500, -np.inf).astype(dtype)
    value, gradient, weights = jax.tree.map(np.asarray, value_gradient_and_weights(logits))
    # Numbers near 500.
    expected = np.log(np.exp(np.asarray(logits, float) + 500.0).sum(axis=-1)[[0, 1, 3, 4]]) - 500.0
    chex.assert_trees_all_close(
        np.asarray(value, float)[[0, 1, 3, 4]], expected, rtol=4 * eps(dtype)
    )
    assert value[2] == -jnp.inf
    chex.assert_trees_all_close(gradient, weights, rtol=0, atol=1000 * eps(dtype))
    assert np.all(gradient[2] == 0)


@pytest.mark.parametrize("sizes", [(6,), (1, 5), (2, 2, 2), (3, 0, 3)], ids=str)
def test_blocks_join_to_the_whole(sizes, rng, dtype):
    logits, mask = masked_logits(rng, dtype)
    values = rng.normal(size=(6, 3)).astype(dtype)
    cuts = np.cumsum((0, *sizes))

    def joined(logits, values):
        parts = [
            module.partial_average(logits[:, a:b], values[a:b], mask[:, a:b], precision="highest")
            for a, b in itertools.pairwise(cuts)
        ]
        whole = parts[0]
        for part in parts[1:]:
            whole = combine(whole, part)
        return finish(whole)

    def at_once(logits, values):
        return jnp.matmul(softmax(logits, mask), values, precision="highest")

    cotangent = jnp.asarray(rng.normal(size=(5, 3)), dtype)

    def both(fn):
        result, pull_back = jax.vjp(fn, logits, values)
        return result, pull_back(cotangent)

    ours, expected = jax.jit(lambda: (both(joined), both(at_once)))()
    # Sums of six products of numbers of order one.
    chex.assert_trees_all_close(ours, expected, rtol=0, atol=20 * eps(dtype))
    assert np.all(np.asarray(ours[0])[2] == 0)


def test_combine_is_associative_and_nothing_is_its_unit(rng):
    a, b, c = (
        Average(rng.normal(size=4), rng.uniform(1, 2, 4), rng.normal(size=(4, 2))) for _ in range(3)
    )
    nothing = Average(np.full(4, -np.inf), np.zeros(4), np.zeros((4, 2)))
    join = jax.jit(combine)
    chex.assert_trees_all_close(join(join(a, b), c), join(a, join(b, c)), rtol=1e-14)
    chex.assert_trees_all_close(join(a, nothing), a)
    chex.assert_trees_all_close(join(nothing, a), a)
    chex.assert_trees_all_close(jax.jit(finish)(join(nothing, nothing)), np.zeros((4, 2)))


def test_segments_equal_rows(rng):
    logits, mask = masked_logits(rng)
    logits = np.where(mask, logits, -np.inf)
    order = rng.permutation(30)

    @jax.jit
    def by_segments(logits):
        over = module.over_segments(jnp.asarray(np.repeat(np.arange(5), 6)[order]), 5)
        return module.exponentials(logits, over)

    flat = by_segments(logits.reshape(-1)[order])
    rows = jax.jit(lambda x: module.exponentials(x, ROWS))(logits)
    chex.assert_trees_all_close(flat.total, rows.total, rtol=1e-14)
    chex.assert_trees_all_close(flat.top, rows.top)
    chex.assert_trees_all_close(flat.factors, np.asarray(rows.factors).reshape(-1)[order])
    logits[1, 0] = np.nan
    total = by_segments(logits.reshape(-1)[order]).total
    assert list(np.isnan(total)) == [False, True, False, False, False]


@pytest.mark.parametrize(
    ("logits", "mask", "message"),
    [
        (jnp.zeros((2, 3), int), None, "logits must be floating, got int64"),
        (jnp.zeros((2, 3), complex), None, "logits must be floating, got complex128"),
        (jnp.zeros((2, 3)), jnp.ones(3, bool), r"mask must be bool with 2 axes .* got bool \(3,\)"),
        (jnp.zeros((2, 3)), jnp.ones((2, 3)), r"mask must be bool .* got float64 \(2, 3\)"),
    ],
)
def test_errors_name_the_argument(logits, mask, message):
    with pytest.raises(ValueError, match=message):
        softmax(logits, mask)


def test_vmap_and_jit_change_nothing(rng):
    logits, mask = masked_logits(rng)
    chex.assert_trees_all_close(
        jax.jit(jax.vmap(softmax))(logits, mask), softmax(jnp.asarray(logits), mask), rtol=1e-15
    )


def test_the_total_variation_bound_holds_and_is_sharp(rng):
    eps = np.array([0.01, 0.5, 2.0, 6.0])[:, None, None]
    random = rng.normal(size=(4, 200, 5)) * 2, eps * rng.choice([-1, 0.3, 1], size=(4, 200, 5))
    worst = eps * np.array([-0.5, 0.5]), eps * np.array([1.0, -1.0])

    @jax.jit
    def moved(logits, change):
        return 0.5 * jnp.sum(jnp.abs(softmax(logits + change) - softmax(logits)), axis=-1)

    bound = np.asarray(module.total_variation_bound(jnp.asarray(eps[..., 0])))
    assert np.all(np.asarray(moved(*random)) <= bound)
    chex.assert_trees_all_close(np.asarray(moved(*worst)), bound, rtol=1e-13)

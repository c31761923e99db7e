"""Attention on a torus against its definition, and what rolls, masks and windows must do to it."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import toroidal_oracle as oracle

from vfejax.attention.toroidal import axial_attention, toroidal_attention
from vfejax.geometry.torus import linear_distance

BATCH, N, HEADS, CHANNELS = 2, 6, 4, 3
FORMS = {"joint": toroidal_attention, "axial": axial_attention}


def arrays(rng, dtype=np.float64, n=N):
    """Query, key and value ``[b, n, h, c]``."""
    shape = (BATCH, n, HEADS, CHANNELS)
    return tuple(jnp.asarray(rng.normal(size=shape), dtype) for _ in range(3))


def a_mask(rng):
    """``[b, h, n, n]``; query 2 of the first sequence has nothing to attend to."""
    mask = rng.uniform(size=(BATCH, HEADS, N, N)) < 0.7
    mask[0, :, 2] = False
    return mask


CASES = {
    "plain": {},
    "causal": {"causal": True},
    "reach": {"window": 2},
    "causal window": {"causal": True, "window": 3},
    "long ring": {"circumference": 11, "positions": np.array([[3, 4, 5, 9, 10, 0]] * BATCH)},
    "age": {"causal": True, "distance_fn": linear_distance},
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", CASES)
def test_value_is_the_definition(form, case, rng):
    query, key, value = arrays(rng)
    options = {"circumference": N, **CASES[case]}
    slope, mask = np.array([0.0, 0.7, 1.5, 4.0]), a_mask(rng)
    attend = jax.jit(partial(FORMS[form], depth=2, **options))
    answer = attend(query, key, value, slope=jnp.asarray(slope), mask=jnp.asarray(mask))
    linear = options.pop("distance_fn", None) is not None
    expected = oracle.attention(
        query,
        key,
        value,
        depth=2,
        slope=slope,
        mask=mask,
        linear=linear,
        axial=form == "axial",
        **options,
    )
    # Averages of numbers of order 1.
    chex.assert_trees_all_close(np.asarray(answer), expected, rtol=0, atol=1e-14)
    chex.assert_trees_all_equal(answer[0, 2], jnp.zeros_like(answer[0, 2]))


@pytest.mark.parametrize("form", FORMS)
def test_a_query_with_nothing_to_read_has_gradients_that_are_zero(form, rng):
    query, key, value = arrays(rng)
    mask = jnp.asarray(a_mask(rng))

    def total(query, slope):
        answer = FORMS[form](query, key, value, depth=2, slope=slope, circumference=N, mask=mask)
        return jnp.sum(answer * jnp.cos(answer))

    by_query, by_slope = jax.jit(jax.grad(total, argnums=(0, 1)))(query, jnp.ones(HEADS))
    chex.assert_tree_all_finite((by_query, by_slope))
    chex.assert_trees_all_equal(by_query[0, 2], jnp.zeros_like(by_query[0, 2]))
    assert np.all(np.asarray(by_slope) != 0)
    assert np.all(np.abs(np.asarray(by_query)[1]).sum(axis=(1, 2)) > 0)


@pytest.mark.parametrize("form", FORMS)
def test_every_roll_of_the_ring_rolls_the_answer(form, rng, dtype):
    query, key, value = arrays(rng, dtype)
    attend = jax.jit(partial(FORMS[form], depth=2, slope=2.0, circumference=N, window=2))
    straight = np.asarray(attend(query, key, value))
    for shift in range(1, N):
        rolled = attend(*(jnp.roll(x, shift, axis=1) for x in (query, key, value)))
        # Sums in another order.
        chex.assert_trees_all_close(
            np.asarray(rolled),
            np.roll(straight, shift, axis=1),
            rtol=0,
            atol=20 * float(jnp.finfo(dtype).eps),
        )


def test_one_platter_without_a_bias_is_multi_head_attention(rng):
    query, key, value = arrays(rng)
    expected = jax.nn.dot_product_attention(*(x.astype(jnp.float32) for x in (query, key, value)))
    for form in FORMS.values():
        answer = jax.jit(partial(form, depth=1, slope=None, circumference=N))(query, key, value)
        # The reference takes its softmax in single precision.
        chex.assert_trees_all_close(
            answer.astype(jnp.float32), expected, rtol=0, atol=4 * np.finfo(np.float32).eps
        )


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_axial_attention_is_ordinary_attention_at_every_depth(depth, rng):
    def attend(depth):
        return jax.jit(partial(axial_attention, depth=depth, slope=1.5, circumference=N))(*inputs)

    inputs = arrays(rng)
    chex.assert_trees_all_equal(attend(depth), attend(1))


def test_slopes_of_a_platter_count_on_every_platter(rng):
    query, key, value = arrays(rng)
    few, all_of_them = jnp.array([0.5, 3.0]), jnp.array([0.5, 3.0, 0.5, 3.0])
    for form in FORMS.values():
        attend = jax.jit(partial(form, query, key, value, depth=2, circumference=N))
        chex.assert_trees_all_equal(attend(slope=few), attend(slope=all_of_them))


@pytest.mark.parametrize("form", FORMS)
def test_half_precision_is_summed_in_single(form, rng):
    exact = arrays(rng)
    half = tuple(x.astype(jnp.bfloat16) for x in exact)
    answer = jax.jit(partial(FORMS[form], depth=2, slope=1.0, circumference=N))(*half)
    chex.assert_type(answer, jnp.bfloat16)
    expected = oracle.attention(
        *(np.asarray(x.astype(jnp.float64)) for x in half),
        depth=2,
        slope=np.ones(HEADS),
        circumference=N,
        axial=form == "axial",
    )
    # The weights and the answer are rounded to 8 bits; nothing is lost on the way.
    chex.assert_trees_all_close(np.asarray(answer, float), expected, rtol=0, atol=2**-6)


def test_a_bad_sequence_harms_no_other(rng):
    query, key, value = arrays(rng)
    bad = value.at[0, 1].set(jnp.nan)
    for form in FORMS.values():
        attend = jax.jit(partial(form, query, key, depth=2, slope=1.0, circumference=N))
        answer, straight = attend(bad), attend(value)
        assert bool(jnp.all(jnp.isnan(answer[0]), axis=(0, 1, 2)))
        chex.assert_trees_all_equal(answer[1], straight[1])


@pytest.mark.parametrize("kind", [np.uint8, np.uint64, np.int8])
def test_places_of_any_integer_type_are_the_same_places(rng, kind):
    inputs, places = arrays(rng), jnp.array([100, 0, 3, 127, 60, 4])
    options = {"slope": 1.0, "circumference": 128, "causal": True}
    attend = jax.jit(lambda at: toroidal_attention(*inputs, depth=2, positions=at, **options))
    chex.assert_trees_all_equal(attend(places.astype(kind)), attend(places))


def test_later_tokens_leave_earlier_answers_bit_identical(rng):
    query, key, value = arrays(rng)
    for form in FORMS.values():
        attend = jax.jit(partial(form, depth=2, slope=1.0, circumference=N, causal=True))
        before = attend(query, key, value)
        after = attend(*(x.at[:, 4].add(1.0) for x in (query, key, value)))
        chex.assert_trees_all_equal(before[:, :4], after[:, :4])
        assert bool(jnp.any(before[:, 4] != after[:, 4]))


def test_a_causal_window_reads_texts_longer_than_the_ring(rng):
    long = arrays(rng, n=9)
    options = {"depth": 2, "slope": 1.0, "circumference": 4, "causal": True, "window": 3}
    attend = jax.jit(partial(toroidal_attention, **options))
    answer, last = attend(*long), attend(*(x[:, -3:] for x in long))
    # The last query sees the same three keys; sums of the same numbers.
    chex.assert_trees_all_close(answer[:, -1], last[:, -1], rtol=0, atol=1e-15)


def refusals():
    zeros = jnp.zeros((2, 6, 4, 2))
    plain = {"depth": 2, "slope": 1.0, "circumference": 6}
    bool_mask = partial(jnp.ones, dtype=bool)
    return {
        "depth 3": ({"depth": 3}, "depth must divide the 4 heads .one of 1, 2, 4., got 3"),
        "depth 0": ({"depth": 0}, "depth must divide the 4 heads"),
        "wide window": ({"window": 7}, "window must be 0 to the circumference 6, got 7"),
        "no window": ({"window": 0, "causal": True}, "window must be 1 to"),
        "long": ({"circumference": 5}, "at most 5 tokens, the circumference, got 6"),
        "no ring": ({"circumference": 0}, "circumference must be at least 1, got 0"),
        "mask of two axes": ({"mask": bool_mask((2, 6))}, r"4 axes .* got bool \(2, 6\)"),
        "mask of other size": ({"mask": bool_mask((2, 1, 6, 5))}, r"4 axes .* got bool"),
        "mask of numbers": ({"mask": jnp.ones((2, 1, 6, 6))}, "mask must be bool"),
        "slopes": ({"slope": jnp.ones(3)}, r"slope must be a number, \[2\] .* got \(3,\)"),
        "places": ({"positions": jnp.arange(5)}, "positions must be integer"),
        "real places": ({"positions": jnp.zeros(6)}, "positions must be integer"),
        "short key": ({"key": zeros[:, :5]}, r"key must be \[b, n, h, c\]"),
        "narrow key": ({"key": zeros[..., :1]}, "key must have the query's shape"),
        "negative slope": ({"slope": -1.0}, "slope must not be negative, got -1"),
        "no batch": ({"query": zeros[0]}, r"query must be floating \[b, n, h, c\], got"),
        "whole numbers": ({"query": zeros.astype(int)}, r"query must be floating .* got int64"),
        "mixed": ({"value": zeros.astype(jnp.float32)}, "a value of float32"),
    }, {"query": zeros, "key": zeros, "value": zeros, **plain}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("case", refusals()[0])
def test_what_does_not_fit_is_refused_by_name(form, case):
    table, plain = refusals()
    change, message = table[case]
    with pytest.raises(ValueError, match=message):
        FORMS[form](**{**plain, **change})

"""Depth fusion: what platters read of each other."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention.depth_fusion import FUSIONS, attention, low_rank, low_rank_init, mean

B, N, HEADS, CHANNELS, DEPTH, RANK = 2, 3, 6, 2, 3, 2
DIM = HEADS * CHANNELS


@jax.jit
def fused(weights, x):
    """Every fusion of the table."""
    return {name: FUSIONS[name].apply(weights[name], x, DEPTH) for name in FUSIONS}


def no_weights():
    return dict.fromkeys(FUSIONS, ())


@pytest.fixture
def example(rng):
    """Weights by fusion, and heads' output, in float64."""
    factors = tuple(jnp.asarray(rng.standard_normal((DIM, RANK))) for _ in range(2))
    x = rng.standard_normal((B, N, HEADS, CHANNELS))
    return {**no_weights(), "low-rank": factors}, x


def platter_attention(platters):
    logits = platters @ np.swapaxes(platters, -1, -2) / np.sqrt(DIM / DEPTH)
    weights = np.exp(logits)
    return weights / weights.sum(axis=-1, keepdims=True) @ platters


def expected(weights, x):
    """Every fusion written out in float64."""
    flat, (u, v) = x.reshape(B, N, DIM), weights["low-rank"]
    platters = x.reshape(B, N, DEPTH, DIM // DEPTH)
    omega = np.eye(DIM) + np.asarray(u) @ np.asarray(v).T
    results = {
        "low-rank": np.einsum("de,bne->bnd", omega, flat),
        "attention": platter_attention(platters),
        "mean": np.repeat(platters.mean(axis=2, keepdims=True), DEPTH, axis=2),
        "none": x,
    }
    return {name: result.reshape(x.shape) for name, result in results.items()}


def test_every_fusion_equals_its_formula(example, dtype):
    weights, x = example
    found = fused(jax.tree.map(lambda y: y.astype(dtype), weights), jnp.asarray(x, dtype))
    chex.assert_trees_all_equal_dtypes(found, {name: jnp.zeros((), dtype) for name in FUSIONS})
    found = jax.tree.map(lambda y: np.asarray(y, np.float64), found)
    # Sums of a dozen numbers of order ten.
    chex.assert_trees_all_close(
        found, expected(weights, x), rtol=0, atol=200 * float(jnp.finfo(dtype).eps)
    )


def test_half_precision_is_rounded_once(example):
    weights, x = example
    half = jnp.asarray(x, jnp.bfloat16)
    found = fused(weights, half)
    chex.assert_trees_all_equal_dtypes(found, dict.fromkeys(FUSIONS, half))
    found = {name: np.asarray(y, np.float64) for name, y in found.items()}
    exact = expected(weights, np.asarray(half, np.float64))
    # Half a unit of the last of 8 digits, and what single precision adds.
    chex.assert_trees_all_close(found, exact, rtol=2**-8, atol=1e-5)


def test_low_rank_is_the_identity_at_first_and_can_learn(rng):
    u, v = low_rank_init(jax.random.key(1), DIM, RANK)
    x = jnp.asarray(rng.standard_normal((B, N, HEADS, CHANNELS)), jnp.float32)
    np.testing.assert_array_equal(low_rank(x, u, v), x)
    slope = jax.jit(jax.grad(lambda u: jnp.sum(low_rank(x, u, v) ** 2)))(u)
    assert np.all(np.abs(slope) > 0)
    chex.assert_type([u, v], jnp.float32)
    assert FUSIONS["mean"].init(jax.random.key(1), DIM, RANK, jnp.float32) == ()


def test_nan_stays_in_its_token(example):
    weights, x = example
    spoiled = x.copy()
    spoiled[1, 2, 0, 0] = np.nan
    clean, found = (fused(weights, jnp.asarray(y)) for y in (x, spoiled))
    for name in FUSIONS:
        others = np.ones((B, N), bool)
        others[1, 2] = False
        np.testing.assert_array_equal(found[name][others], clean[name][others])
        assert np.any(np.isnan(found[name][1, 2]))


def test_one_platter_reads_itself(example):
    x = jnp.asarray(example[1])
    for read in jax.jit(lambda x: (attention(x, 1), mean(x, 1)))(x):
        chex.assert_trees_all_close(read, x, rtol=1e-15)


@pytest.mark.parametrize("fn", [attention, mean])
def test_a_depth_that_does_not_divide_the_heads_names_those_that_do(fn):
    with pytest.raises(
        ValueError, match=r"depth must divide the 6 heads \(one of 1, 2, 3, 6\), got 4"
    ):
        fn(jax.ShapeDtypeStruct((B, N, HEADS, CHANNELS), jnp.float32), 4)


@pytest.mark.parametrize(
    ("u", "v"), [((DIM, 2), (DIM, 3)), ((DIM, 2, 1), (DIM, 2, 1)), ((4, 2),) * 2]
)
def test_factors_that_do_not_fit_are_named(u, v):
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in (u, v)]
    with pytest.raises(ValueError, match=r"u and v must both be \[12, r\], got"):
        low_rank(jax.ShapeDtypeStruct((B, N, HEADS, CHANNELS), jnp.float32), *shapes)
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        low_rank_init(jax.random.key(0), DIM, 0)

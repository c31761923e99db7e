"""Attention on a ring by the Fourier transform equals its dense definition."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.attention.circulant import kernel_attention, position_attention, positive_features
from vfejax.attention.toroidal import toroidal_attention
from vfejax.geometry.torus import circular_distance, platter_distance

B, N, HEADS, CHANNELS, DEPTH, RING = 2, 6, 4, 3, 2, 8
GROUP = HEADS // DEPTH
SHAPE = (B, N, HEADS, CHANNELS)


def dense(query, key, value, ring, platters, mask):
    """Weights ``<q, k> exp(ring[(i - j) mod N] + platters[k, l])`` over the tokens there, for
    query and key of features, with every pair written out.
    """
    batch, n, heads, _ = value.shape
    depth, i = platters.shape[-1], np.arange(n)
    query, key, value = (
        x.reshape(batch, n, depth, heads // depth, -1) for x in (query, key, value)
    )
    offsets = (i[:, None] - i[None]) % ring.shape[-1]
    weights = jnp.einsum(
        "bikgf,bjlgf,gij,gkl,bj->bgikjl",
        query,
        key,
        jnp.exp(ring)[:, offsets],
        jnp.exp(platters),
        mask.astype(ring.dtype),
    )
    total = jnp.sum(weights, axis=(-2, -1))
    read = jnp.einsum("bgikjl,bjlge->bgike", weights, value)
    read = read / jnp.where(total == 0, 1.0, total)[..., None]
    return jnp.moveaxis(read, 1, 3).reshape(batch, n, heads, -1)


def ours(with_content, arguments, mask):
    if with_content:
        return kernel_attention(*arguments, mask=mask)
    return position_attention(*arguments[2:], mask=mask)


def written_out(with_content, arguments, mask):
    query, key, *others = arguments
    if with_content:
        query, key = positive_features(query), positive_features(key)
    else:
        query, key = jnp.ones_like(query), jnp.ones_like(key)
    return dense(query, key, *others, mask)


def value_and_gradient(fn):
    """``(with_content, arguments, mask, cotangent) -> (result, gradient)``, compiled."""

    def both(with_content, arguments, mask, cotangent):
        result, pull_back = jax.vjp(lambda *x: fn(with_content, x, mask), *arguments)
        return result, pull_back(cotangent)

    return jax.jit(both, static_argnums=0)


fast, slow = value_and_gradient(ours), value_and_gradient(written_out)


@pytest.fixture
def example(rng):
    """Query, key, value, ring with a window, platters; a mask with a gap; a cotangent."""
    query, key, value, cotangent = (rng.standard_normal(SHAPE) for _ in range(4))
    ring, platters = rng.standard_normal((GROUP, RING)), rng.standard_normal((GROUP, DEPTH, DEPTH))
    ring[:, 3:7] = -np.inf  # offsets -1 to 2 count
    mask = np.ones((B, N), bool)
    mask[1, 1:] = False  # rows 3, 4 and 5 reach nothing; row 5 is 3 before token 0 around the ring
    return (query, key, value, ring, platters), jnp.asarray(mask), cotangent


def cast(arrays, dtype):
    return jax.tree.map(lambda x: jnp.asarray(x, dtype), arrays)


@pytest.mark.parametrize("with_content", [False, True], ids=["position", "kernel"])
def test_values_and_gradients_equal_the_dense_ones(with_content, example, dtype):
    arguments, mask, cotangent = example
    found = fast(with_content, cast(arguments, dtype), mask, cast(cotangent, dtype))
    exact = slow(with_content, cast(arguments, jnp.float64), mask, jnp.asarray(cotangent))
    chex.assert_trees_all_equal_dtypes(found, cast(exact, dtype))
    # Two transforms of eight numbers, divided by a share of the weights above 1/20.
    chex.assert_trees_all_close(
        cast(found, jnp.float64), exact, rtol=0, atol=1000 * float(jnp.finfo(dtype).eps)
    )
    np.testing.assert_array_equal(found[0][1, 3:], 0.0)


@pytest.mark.parametrize("with_content", [False, True], ids=["position", "kernel"])
def test_rows_that_reach_nothing_have_zero_gradient(with_content, example):
    arguments, mask, cotangent = example
    only_empty = np.zeros(SHAPE)
    only_empty[1, 3:] = cotangent[1, 3:]
    _, gradient = fast(with_content, cast(arguments, jnp.float64), mask, jnp.asarray(only_empty))
    for part in gradient:
        np.testing.assert_array_equal(part, np.zeros_like(part))


@pytest.mark.parametrize("with_content", [False, True], ids=["position", "kernel"])
def test_nan_stays_in_its_sequence_and_behind_the_mask(with_content, example):
    arguments, mask, cotangent = example
    clean = fast(with_content, cast(arguments, jnp.float64), mask, jnp.asarray(cotangent))
    query, key, value, *others = arguments
    value, key = value.copy(), key.copy()
    value[0, 2], value[1, 4], key[1, 4] = np.nan, np.nan, np.nan
    found = fast(
        with_content, cast((query, key, value, *others), jnp.float64), mask, jnp.asarray(cotangent)
    )
    assert np.all(np.isnan(found[0][0]))
    np.testing.assert_array_equal(found[0][1], clean[0][1])
    np.testing.assert_array_equal(found[1][2][1], clean[1][2][1])


def test_toroidal_attention_without_content_is_position_attention(rng):
    value, zeros = jnp.asarray(rng.standard_normal(SHAPE)), jnp.zeros(SHAPE)
    slope, steps = jnp.asarray([1.0, 8.0]), jnp.arange(DEPTH)

    @jax.jit
    def both(value):
        along = circular_distance(jnp.arange(N), N)
        across = platter_distance(steps[:, None] - steps[None], DEPTH)
        ring, platters = -slope[:, None] * along[None], -slope[:, None, None] * across[None]
        return position_attention(value, ring, platters), toroidal_attention(
            zeros, zeros, value, depth=DEPTH, slope=slope, circumference=N
        )

    chex.assert_trees_all_close(*both(value), rtol=0, atol=1e-14)


def test_without_a_mask_the_ring_rolls(rng):
    value = jnp.asarray(rng.standard_normal((1, RING, 2, 1)))
    ring, platters = jnp.asarray(rng.standard_normal(RING)), jnp.zeros((2, 2))
    read = jax.jit(lambda x: position_attention(x, ring, platters))
    still, weights = read(value), np.exp(ring) / np.exp(ring).sum()
    chex.assert_trees_all_close(
        read(jnp.roll(value, 3, axis=1)), jnp.roll(still, 3, axis=1), rtol=0, atol=1e-14
    )
    mean = np.mean(np.asarray(value)[0, :, :, 0], axis=1)
    expected = [sum(weights[(i - j) % RING] * mean[j] for j in range(RING)) for i in range(RING)]
    np.testing.assert_allclose(still[0, :, 0, 0], expected, rtol=0, atol=1e-14)


def test_a_row_that_has_lost_every_digit_is_nan_and_not_empty():
    ring = jnp.asarray([0.0, -50.0, -3000.0, -np.inf])  # exp(-50) is below epsilon
    mask = jnp.asarray([[True, False, False, False]])
    tokens = jnp.ones((1, 4, 1, 1))
    read = jax.jit(lambda mask: position_attention(tokens, ring, jnp.zeros((1, 1)), mask=mask))(
        mask
    )
    np.testing.assert_allclose(read.ravel(), [1.0, np.nan, np.nan, 0.0], rtol=1e-15)


def test_a_platter_that_reads_nothing_is_zero():
    platters = jnp.asarray([[0.0, 0.0], [-jnp.inf, -jnp.inf]])

    @jax.jit
    def both(x):
        ring = jnp.zeros(2)
        return position_attention(x, ring, platters), kernel_attention(x, x, x, ring, platters)

    for read in both(jnp.ones((1, 2, 2, 1))):
        np.testing.assert_allclose(read[0, :, :, 0], [[1.0, 0.0], [1.0, 0.0]], rtol=1e-15)


def test_features_are_positive_far_below_zero_and_nan_stays_nan():
    x = jnp.asarray([-80.0, -1.0, 0.0, 2.0, jnp.nan], jnp.float32)
    features = positive_features(x)
    assert np.all(features[:4] > 0)
    np.testing.assert_allclose(features, [np.exp(-80), np.exp(-1), 1, 3, np.nan], rtol=1e-6)


@pytest.mark.parametrize("with_content", [False, True], ids=["position", "kernel"])
def test_memory_grows_with_the_length_and_not_with_its_square(with_content):
    length = 512
    tokens = jax.ShapeDtypeStruct((1, length, 1, 1), jnp.float32)
    others = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((length,), (1, 1))]
    compiled = jax.jit(lambda *x: ours(with_content, x, None)).lower(*[tokens] * 3, *others)
    needed = compiled.compile().memory_analysis().temp_size_in_bytes
    assert needed < 4 * length**2 / 10


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"value": (B, N, 3, 2)}, r"depth must divide the 3 heads \(one of 1, 3\), got 2"),
        ({"ring": (5,)}, r"ring must have an entry for each of 6 tokens, got \(5,\)"),
        ({"ring": (3, 8)}, "ring must have 1 axes, or 2 with the 2 heads of a platter"),
        ({"platters": (2, 3)}, r"platters must be \[D, D\] or \[h/D, D, D\], got \(2, 3\)"),
        ({"platters": (4, 2, 2)}, "platters must have 2 axes, or 3 with the 2 heads"),
        ({"mask": (B, 7)}, r"mask must be bool \[2, 6\], got bool \[2, 7\]"),
        ({"key": (B, N, HEADS, 5)}, r"query and key must be \(2, 6, 4, 3\) to fit value"),
        ({"query": (B, 5, HEADS, 3)}, "query and key must be .*, got .*5, 4, 3"),
    ],
)
def test_shapes_that_do_not_fit_are_named(change, message):
    shapes = dict.fromkeys(("query", "key", "value"), SHAPE)
    shapes |= {"ring": (RING,), "platters": (2, 2), "mask": (B, N)} | change
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    mask = jax.ShapeDtypeStruct(arrays.pop("mask").shape, jnp.bool_)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda x, mask: kernel_attention(**x, mask=mask), arrays, mask)

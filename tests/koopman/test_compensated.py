"""A compensated factor gives the map of all data to every digit of float32, in any split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.koopman import operators, streaming

DIM, FOLLOWING, NUM = 6, 4, 64


def pairs(rng, *, condition=1e4, noise=1e-2):
    left, _, right = np.linalg.svd(rng.normal(size=(NUM, DIM)), full_matrices=False)
    now = (left * np.geomspace(1.0, 1.0 / condition, DIM)) @ right
    following = now @ rng.normal(size=(DIM, FOLLOWING)) + noise * rng.normal(size=(NUM, FOLLOWING))
    return now.astype(np.float32), following.astype(np.float32)


def batch(now, following, weights=1.0):
    root = np.sqrt(np.broadcast_to(np.float64(weights), len(now)))[:, None]
    return np.linalg.lstsq(root * now, root * following)[0].T


def relative_error(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.fixture(scope="module")
def fit():
    """Maps from blocks of a size, which are scanned: of some ridge, and of rank 2."""

    def compute(now, following, weights, forgetting, size):
        def step(factor, block):
            x, y, w = block
            return streaming.update(factor, x, y, weights=w, forgetting=forgetting), None

        empty = streaming.init(DIM, FOLLOWING, compensated=True)
        blocks = [jnp.reshape(x, (-1, size, *x.shape[1:])) for x in (now, following, weights)]
        factor = jax.lax.scan(step, empty, tuple(blocks))[0]
        return operators.ridge(factor), operators.reduced_rank(factor, 2)

    return jax.jit(compute, static_argnames="size")


@pytest.mark.parametrize("size", [NUM, 4, 1])
def test_map_of_any_split_and_order_is_that_of_all_data_at_condition_1e4(rng, fit, size):
    now, following = pairs(rng)
    expected = batch(now, following)
    for order in (np.arange(NUM), rng.permutation(NUM)):
        found, low_rank = fit(now[order], following[order], np.ones(NUM, np.float32), 1.0, size)
        # 45 bits times the condition number are 3e-10: what is left is the rounding of the map.
        assert relative_error(found, expected) < 2e-7
        # The subspace is one of singular vectors in float32.
        leading = np.linalg.svd(np.linalg.qr(now.astype(float))[0].T @ following)[2][:2]
        assert relative_error(low_rank, leading.T @ leading @ expected) < 2e-6
    weights = rng.uniform(size=NUM).astype(np.float32)
    found, _ = fit(now, following, weights, np.float32(0.9), size)
    ages = np.float64(np.float32(0.9)) ** np.arange(NUM)[::-1]
    # The root of 0.9 is rounded for each block, which weighs samples anew.
    assert relative_error(found, batch(now, following, weights * ages)) < 5e-6


def test_merged_streams_and_a_ridge_keep_the_precision(rng):
    now, following = pairs(rng, condition=1e3)
    ridge = 1e-5

    @jax.jit
    def compute(now, following):
        def one(x, y):
            return streaming.update(streaming.init(DIM, FOLLOWING, compensated=True), x, y)

        streams = jax.vmap(one)(now, following)
        merged = streaming.merge(*(jax.tree.map(lambda x, i=i: x[i], streams) for i in (0, 1)))
        everywhere = jax.vmap(lambda x: streaming.merge_axis(x, "data"), axis_name="data")(streams)
        return operators.ridge(merged, ridge), jax.vmap(operators.ridge)(everywhere)

    # Observables in other units are other columns.
    units = np.float32([1e20, 1e-20, 1.0, 1e10, 1e-10, 1.0])
    halves = now.reshape(2, -1, DIM), following.reshape(2, -1, FOLLOWING)
    found, everywhere = compute(*halves)
    gram = now.T.astype(float) @ now + ridge * np.eye(DIM)
    expected = np.linalg.solve(gram, now.T.astype(float) @ following).T
    assert relative_error(found, expected) < 2e-7
    for operator in everywhere:
        assert relative_error(operator, batch(now, following)) < 2e-7
    scaled = np.asarray(compute(halves[0] * units, halves[1])[1][0], float) * units
    assert relative_error(scaled, batch(now * units / units.astype(float), following)) < 2e-7


@pytest.mark.slow
def test_derivatives_are_those_of_the_plain_factor(rng):
    now, following = pairs(rng, condition=3)

    def loss(x, y, weights, forgetting, rho, compensated):
        factor = streaming.init(DIM, FOLLOWING, compensated=compensated)
        factor = streaming.update(factor, x, y, weights=weights, forgetting=forgetting)
        return operators.mean_squared_error(factor, operators.ridge(factor, rho))

    arguments = now, following, np.ones(NUM, np.float32), np.float32(0.9), np.float32(0.1)
    gradient = jax.jit(jax.grad(loss, argnums=range(5)), static_argnums=5)
    for found, expected in zip(
        gradient(*arguments, True), gradient(*arguments, False), strict=True
    ):
        # Condition 3 and 64 samples: some hundred roundings.
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    jax.export.export(gradient, platforms=["cuda"])(*arguments, True)


def test_a_sample_that_is_not_finite_makes_the_map_nan(rng, fit):
    now, following = pairs(rng)
    now[3, 2] = np.nan
    assert np.isnan(fit(now, following, np.ones(NUM, np.float32), 1.0, 4)[0]).any()


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="compensated needs dtype float32, got float64"):
        streaming.init(2, dtype=jnp.float64, compensated=True)
    plain, compensated = streaming.init(2), streaming.init(2, compensated=True)
    with pytest.raises(ValueError, match=r"or not, got low None and float32\[4, 4\]"):
        streaming.merge(plain, compensated)

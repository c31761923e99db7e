"""Streaming statistics equal those of all data at once, whatever the order, and refuse bad data."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.host_devices import on_eight_devices

from vfejax.koopman import operators, streaming

DIM, FOLLOWING, NUM = 7, 5, 60

start = jax.jit(streaming.init, static_argnums=(0, 1), static_argnames="dtype")
update = jax.jit(streaming.update)
ridge = jax.jit(operators.ridge)
corrected = jax.jit(lambda factor: operators.noise_corrected(factor, 0.0))
decayed = jax.jit(
    lambda factor, x, y, w, lam: streaming.update(factor, x, y, weights=w, forgetting=lam)
)


def pairs(rng, dtype, *, condition=1e4, num=NUM, dim=DIM, following=FOLLOWING):
    """Samples whose matrix has singular values from 1 down to 1 / condition."""
    left, _, right = np.linalg.svd(rng.normal(size=(num, dim)), full_matrices=False)
    now = (left * np.geomspace(1.0, 1.0 / condition, dim)) @ right
    operator = rng.normal(size=(following, dim))
    noise = 1e-3 / condition * rng.normal(size=(num, following))
    return now.astype(dtype), (now @ operator.T + noise).astype(dtype)


def batch(now, following, weights=None):
    """Least squares of all data in float64, on the rows as the stream has rounded them."""
    root = np.sqrt(np.ones(len(now)) if weights is None else weights)[:, None]
    now, following = np.asarray(now, np.float64), np.asarray(following, np.float64)
    return np.linalg.lstsq(root * now, root * following)[0].T


def stream(now, following, sizes):
    factor = start(now.shape[1], following.shape[1], dtype=now.dtype)
    begin = 0
    for size in sizes:
        factor = update(factor, now[begin : begin + size], following[begin : begin + size])
        begin += size
    assert begin == len(now)
    return factor


def relative_error(found, expected):
    return np.linalg.norm(np.asarray(found) - expected) / np.linalg.norm(expected)


@pytest.mark.parametrize("sizes", [(NUM,), (20,) * 3, (1,) * 20 + (20, 20), (0, 20, 20, 20)])
def test_any_split_equals_the_fit_to_all_data_at_condition_1e4(rng, sizes):
    now, following = pairs(rng, jnp.float32)
    order = rng.permutation(NUM)
    factor = stream(now[order], following[order], sizes)
    found, expected = np.asarray(ridge(factor)), batch(now, following)
    # Predictions to some roundings of 6e-8, the map to that times the condition number of 1e4. From
    # the Gram matrix it is wrong by 2.
    assert relative_error(now @ found.T, now @ expected.T) < 1e-6
    assert relative_error(found, expected) < 3e-4
    assert float(factor.count) == NUM


def test_samples_one_by_one_give_the_map_of_all(rng):
    now, following = pairs(rng, jnp.float32)
    found = np.asarray(ridge(stream(now, following, (1,) * NUM)))
    expected = batch(now, following)
    # The rounding of 60 updates.
    assert relative_error(now @ found.T, now @ expected.T) < 2e-6
    assert relative_error(found, expected) < 1e-3


def test_factor_is_that_of_the_data(rng, dtype):
    now, following = pairs(rng, dtype, condition=10)
    factor = stream(now, following, (20,) * 3)
    rows = np.concatenate([now, following], axis=1)
    tolerance = 100 * np.finfo(dtype).eps
    assert factor.root.dtype == dtype
    sums, factor = jax.device_get((jax.jit(streaming.moments)(factor), factor))
    np.testing.assert_array_equal(np.tril(factor.root, -1), 0.0)
    assert np.all(np.diagonal(factor.root) >= 0)
    np.testing.assert_allclose(factor.root.T @ factor.root, rows.T @ rows, rtol=0, atol=tolerance)
    np.testing.assert_allclose(sums.now, now.T @ now, rtol=0, atol=tolerance)
    np.testing.assert_allclose(sums.cross, following.T @ now, rtol=0, atol=tolerance)
    np.testing.assert_allclose(sums.following, following.T @ following, rtol=0, atol=tolerance)


def test_wide_factors_are_reduced_in_panels(rng):
    # 150 columns are nineteen panels of 8 in four parts, the last one narrower.
    rows = [rng.normal(size=(k, 75)) for k in (200, 200, 30, 30)]
    factor = start(75, dtype=np.dtype(float))
    for now, following in (rows[:2], rows[2:]):
        factor = update(factor, now, following)
    data = np.concatenate(
        [np.concatenate(rows[:2], axis=1), np.concatenate(rows[2:], axis=1)], axis=0
    )
    root = np.asarray(factor.root)
    np.testing.assert_allclose(root.T @ root, data.T @ data, rtol=0, atol=1e-11)
    np.testing.assert_array_equal(np.tril(root, -1), 0.0)


def test_forgetting_weighs_samples_by_age_in_any_split(rng):
    now, following = pairs(rng, jnp.float64, condition=10)
    given = rng.uniform(size=NUM)
    given[3] = 0.0
    weights = given * 0.9 ** np.arange(NUM)[::-1]
    for size in (20, 60):
        factor = start(DIM, FOLLOWING, dtype=np.dtype(float))
        for i in range(0, NUM, size):
            part = slice(i, i + size)
            factor = decayed(factor, now[part], following[part], given[part], 0.9)
        np.testing.assert_allclose(
            ridge(factor), batch(now, following, weights), rtol=1e-10, atol=1e-12
        )
        np.testing.assert_allclose(factor.count, weights.sum(), rtol=1e-13)


def test_forgetting_without_excitation_does_not_wind_up():
    """Only the first of two observables varies for 20,000 samples: the recursive inverse overflows,
    the ridge keeps its strength.
    """
    x, first = np.zeros((2, 100, 2), np.float32)
    x[:, 0] = 1.0
    first[-2:] = [[1.0, 1.0], [1.0, -1.0]]
    operator = np.float32([[0.5, 0.0], [0.3, -0.8]])

    @jax.jit
    def run(x):
        def step(carry, _):
            factor, inverse = carry
            factor = streaming.update(factor, x, x @ operator.T, forgetting=0.98)
            return (factor, inverse / jnp.float32(0.98) ** 100), None

        factor = streaming.update(streaming.init(2), first, first @ operator.T)
        (factor, inverse), _ = jax.lax.scan(step, (factor, jnp.float32(1.0)), None, length=200)
        # After the silence, one pair tells all about the second observable.
        after = streaming.update(factor, first, first @ operator.T, forgetting=0.98)
        return operators.ridge(factor, 1e-4), operators.ridge(after, 1e-4), inverse

    silent, after, inverse = run(x)
    assert np.isinf(inverse)  # of the unexcited direction, as recursive least squares carries it
    np.testing.assert_allclose(silent, operator * [1, 0], rtol=0, atol=1e-5)
    # The ridge shrinks what two samples say by 1e-4 / 2.
    np.testing.assert_allclose(after, operator, rtol=0, atol=1e-4)


@jax.jit
def over_an_axis(now, following):
    """Eight streams, merged two by two and over an axis; and their derivatives."""

    def one(x, y):
        return streaming.update(streaming.init(DIM, FOLLOWING, dtype=x.dtype), x, y)

    def merged(x, y):
        return streaming.merge_axis(one(x, y), "data")

    streams = jax.vmap(one)(now, following)
    parts = [jax.tree.map(lambda a, i=i: a[i], streams) for i in range(3)]
    left = streaming.merge(streaming.merge(parts[0], parts[1]), parts[2])
    right = streaming.merge(parts[0], streaming.merge(parts[1], parts[2]))
    return jax.vmap(merged, axis_name="data")(now, following), left, right


def test_merging_streams_equals_one_stream(rng):
    now, following = pairs(rng, jnp.float64, condition=10, num=64)
    everywhere, left, right = jax.device_get(
        over_an_axis(now.reshape(8, 8, DIM), following.reshape(8, 8, FOLLOWING))
    )
    expected = stream(now, following, (64,))
    for i in (0, 7):
        chex.assert_trees_all_close(jax.tree.map(lambda a, i=i: a[i], everywhere), expected)
    chex.assert_trees_all_close(left, right)
    chex.assert_trees_all_close(left, stream(now[:24], following[:24], (24,)))


def test_fits_have_derivatives(rng):
    now, following = pairs(rng, jnp.float64, condition=3, num=9, dim=2, following=2)

    def loss(x, y, rho):
        factor = streaming.update(streaming.init(2, dtype=x.dtype), x, y)
        return operators.mean_squared_error(factor, operators.ridge(factor, rho))

    jax.test_util.check_grads(jax.jit(loss), (now, following, 0.1), order=1, rtol=1e-4)


@pytest.mark.slow
def test_derivative_by_forgetting_is_finite_where_old_samples_vanish(rng):
    now, following = pairs(rng, jnp.float32, condition=10, num=20)

    def fit(forgetting):
        factor = streaming.update(
            streaming.init(DIM, FOLLOWING), now, following, forgetting=forgetting
        )
        return jnp.sum(operators.ridge(factor, 0.1))

    # 1e-3 to the power of 20 is no number of float32.
    assert np.isfinite(jax.jit(jax.grad(fit))(jnp.float32(1e-3)))


def test_devices_of_a_mesh_share_their_statistics():
    # The condition number of the data is 1e4; what that allows, the first test says, and that of
    # compensated factors.
    script = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec as P
from vfejax.koopman import operators, streaming
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
def fit(x, y):
    for compensated in (False, True):
        factor = streaming.update(streaming.init(4, 3, compensated=compensated), x, y)
        yield operators.ridge(streaming.merge_axis(factor, "data"))
rng = np.random.default_rng(0)
left, _, right = np.linalg.svd(rng.normal(size=(160, 4)), full_matrices=False)
x = jnp.asarray((left * np.geomspace(1, 1e-4, 4)) @ right, jnp.float32)
y = x @ jnp.asarray(rng.normal(size=(4, 3)), jnp.float32)
both = jax.shard_map(
    lambda *pair: tuple(fit(*pair)), mesh=mesh, in_specs=P("data"), out_specs=P()
)
expected = np.linalg.lstsq(np.float64(x), np.float64(y))[0].T
for found, bound in zip(jax.jit(both)(x, y), (3e-4, 2e-7)):
    error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
    assert len(jax.devices()) == 8 and error < bound, error
"""
    on_eight_devices(script)


def test_a_sample_that_is_not_finite_makes_the_factor_nan_and_check_says_so(rng):
    now, following = pairs(rng, jnp.float64, condition=10, num=20)
    now[3, 2] = np.nan
    factor = update(streaming.init(DIM, FOLLOWING, dtype=jnp.float64), now, following)
    assert np.isnan(ridge(factor)).any()
    with pytest.raises(ValueError, match="must be finite"):
        streaming.check(factor)


def test_check_tells_too_few_samples_from_dependent_observables(rng):
    now, following = pairs(rng, jnp.float64, condition=10, num=20)
    empty = streaming.init(DIM, FOLLOWING, dtype=jnp.float64)
    few = update(empty, now[:3], following[:3])
    with pytest.raises(ValueError, match="3 samples cannot determine a map of 7 observables"):
        streaming.check(few)
    streaming.check(few, ridge=1e-3)
    streaming.check(update(empty, now, following))
    now[:, 1] = 2.0 * now[:, 0]
    dependent = update(empty, now, following)
    with pytest.raises(ValueError, match="rank 6 in the samples"):
        streaming.check(dependent)


def test_observables_may_have_any_units(rng):
    # Squares of numbers of 1e20 and 1e-20 leave float32 on both sides.
    now, following = pairs(rng, jnp.float32, condition=10)
    units = np.float32([1e20, 1e-20, 1.0, 1e10, 1e-10, 1.0, 1.0])
    factor = update(streaming.init(DIM, FOLLOWING), now * units, following * np.float32(1e-15))
    streaming.check(factor)
    expected = batch(now, following)
    found = np.asarray(ridge(factor), np.float64) * np.asarray(units, np.float64) * 1e15
    # Condition 10 and 60 samples: some ten roundings of 6e-8 each.
    assert relative_error(found, expected) < 1e-5


def test_few_samples_that_a_map_fits_exactly_leave_statistics_finite(rng):
    # Of each column after the second only rounding of rounding is left: down to 1e-17.
    for condition in (1.0, 1e2, 1e4):
        now, _ = pairs(rng, jnp.float32, condition=condition)
        following = now @ rng.normal(size=(DIM, FOLLOWING)).astype(np.float32)
        factor = streaming.init(DIM, FOLLOWING)
        for i in range(0, NUM, 2):
            few = jax.device_get(update(factor, now[i : i + 2], following[i : i + 2]))
            chex.assert_tree_all_finite(few)
            rows = np.concatenate([now[i : i + 2], following[i : i + 2]], axis=1)
            np.testing.assert_allclose(few.root.T @ few.root, rows.T @ rows, rtol=0, atol=1e-6)


@pytest.mark.parametrize("unit", [1e-20, 1e20])
def test_known_noise_is_taken_out_in_any_unit(rng, unit):
    now, following = pairs(rng, jnp.float32, condition=10)
    factor = update(streaming.init(DIM, FOLLOWING), now, following)
    unit = np.float32(unit)
    scaled = update(streaming.init(DIM, FOLLOWING), now * unit, following * unit)
    expected = corrected(factor)
    # Condition 10 and 60 samples: some ten roundings of 6e-8 each.
    assert relative_error(corrected(scaled), expected) < 1e-5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda f, x: streaming.init(0), "dim must be at least 1, got 0"),
        (lambda f, x: streaming.init(2, dtype=jnp.int32), "dtype must be float32 or float64"),
        (lambda f, x: streaming.init(2, dtype=jnp.bfloat16), "float32 or float64, got bfloat16"),
        (lambda f, x: streaming.update(f, x[0], x), r"now must be samples \[k, 3\]"),
        (lambda f, x: streaming.update(f, x, x[:, :2]), "following must be samples"),
        (lambda f, x: streaming.update(f, x, x[:1]), "as many samples, got 2 and 1"),
        (lambda f, x: streaming.update(f, x.astype(jnp.float64), x), "now must be float32"),
        (lambda f, x: streaming.update(f, x.astype(complex), x), "now must be real"),
        (lambda f, x: streaming.update(f, x, x, forgetting=0.0), r"forgetting must be in \(0, 1\]"),
        (lambda f, x: streaming.update(f, x, x, weights=x), r"weights must be \[2\]"),
        (
            lambda f, x: streaming.update(f, x, x, weights=[1.0, -2.0]),
            "weights must not be negative, got -2",
        ),
        (lambda f, x: streaming.update(f, x, x, weights=[1j, 1j]), "weights must be real"),
        (lambda f, x: streaming.merge(f, streaming.init(2)), "one shape and dtype"),
        (lambda f, x: operators.ridge(f, -1.0), "ridge must not be negative"),
        (lambda f, x: operators.noise_corrected(f, -1.0), "variance must not be negative"),
        (
            lambda f, x: operators.reduced_rank(f, 4),
            "rank must be in 1 .. 3, the dimension",
        ),
        (lambda f, x: operators.total_least_squares(f, 0), "rank must be in 1 .. 3"),
        (lambda f, x: operators.mean_squared_error(f, x), r"operator must be \[e, d\]"),
        (
            lambda f, x: operators.forward_backward(streaming.init(3, 2)),
            "needs now and following of one dimension, got 3 and 2",
        ),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(streaming.init(3), jnp.ones((2, 3), jnp.float32))

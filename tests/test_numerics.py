import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vfejax import numerics

K = 4
NUM = 6
UPPER = np.triu_indices(K, 1)

cholesky = jax.jit(numerics.cholesky)
triangular_inverse = jax.jit(numerics.triangular_inverse)


def spd(rng, shape=(NUM,), k=K):
    """Covariances with eigenvalues between 1/2 and about 5: condition number about 10."""
    a = rng.normal(size=(*shape, k, k))
    return a @ np.swapaxes(a, -1, -2) / k + 0.5 * np.eye(k)


def factor(rng, shape=(NUM,), k=K):
    return np.linalg.cholesky(spd(rng, shape, k))


CASES = pytest.mark.parametrize(
    ("function", "data"),
    [(numerics.cholesky, spd), (numerics.triangular_inverse, factor)],
    ids=["cholesky", "triangular_inverse"],
)


def test_cholesky_is_numpys(dtype, rng):
    matrix = jnp.asarray(spd(rng), dtype)
    chol = cholesky(matrix)
    assert chol.dtype == dtype
    # k operations per entry at condition number 10
    tolerance = 10 * K * jnp.finfo(dtype).eps
    np.testing.assert_allclose(
        chol, np.linalg.cholesky(np.asarray(matrix, np.float64)), rtol=0, atol=tolerance
    )


def test_triangular_inverse_is_numpys(dtype, rng):
    chol = jnp.asarray(factor(rng), dtype)
    inverse = triangular_inverse(chol)
    assert inverse.dtype == dtype
    tolerance = 10 * K * jnp.finfo(dtype).eps
    np.testing.assert_allclose(
        inverse, np.linalg.inv(np.asarray(chol, np.float64)), rtol=0, atol=tolerance
    )
    assert np.all(np.asarray(inverse)[:, *UPPER] == 0)


@CASES
def test_size_one_and_no_batch(function, data, rng):
    matrix = data(rng, (), 1)
    expected = np.sqrt(matrix) if function is numerics.cholesky else 1 / matrix
    np.testing.assert_allclose(function(jnp.asarray(matrix)), expected, rtol=1e-15)


@CASES
def test_only_the_lower_triangle_is_read(function, data, rng):
    matrix = data(rng)
    poisoned = matrix.copy()
    poisoned[:, *UPPER] = np.nan
    jitted = jax.jit(function)
    np.testing.assert_array_equal(jitted(jnp.asarray(poisoned)), jitted(jnp.asarray(matrix)))


@CASES
def test_gradient_above_the_diagonal_is_exactly_zero(function, data, rng):
    weight = rng.normal(size=(NUM, K, K))
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(weight * function(m))))(jnp.asarray(data(rng)))
    assert np.all(np.asarray(gradient)[:, *UPPER] == 0)
    assert np.all(np.asarray(gradient)[:, *np.tril_indices(K)] != 0)


@CASES
def test_derivatives_to_second_order(function, data, rng):
    matrix = jnp.asarray(data(rng, (2,), 3))
    # finite differences of size 1e-4 leave about 1e-7 of error in float64, tested at 1e-5
    check_grads(
        jax.jit(function), (matrix,), order=2, modes=("fwd", "rev"), atol=1e-5, rtol=1e-5, eps=1e-4
    )


@CASES
def test_vmap_is_the_batched_call(function, data, rng):
    matrix = data(rng)
    batched = jax.jit(function)(matrix)
    # the same operations, possibly fused differently: a few roundings
    np.testing.assert_allclose(jax.jit(jax.vmap(function))(matrix), batched, rtol=1e-14, atol=1e-15)
    trailing = jax.jit(jax.vmap(function, in_axes=-1, out_axes=-1))(
        jnp.asarray(np.moveaxis(matrix, 0, -1))
    )
    np.testing.assert_allclose(np.moveaxis(trailing, -1, 0), batched, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize(
    "bad",
    [
        np.diag([1.0, 1.0, -1.0, 1.0]),
        np.diag([1.0, 1.0, 1.0, 0.0]),
        np.diag([-1.0, 1.0, 1.0, 1.0]),
        np.ones((4, 4)),
        np.eye(4) + 2 * (np.eye(4, k=1) + np.eye(4, k=-1)),
        np.diag([1.0, np.nan, 1.0, 1.0]),
    ],
    ids=["negative", "semidefinite", "first pivot", "rank one", "indefinite", "nan"],
)
def test_cholesky_is_nan_where_not_positive_definite(bad, rng, dtype):
    matrices = spd(rng)
    matrices[1] = bad
    chol = np.asarray(cholesky(jnp.asarray(matrices, dtype)))
    assert np.isnan(np.diagonal(chol[1])).any()
    assert np.isfinite(np.delete(chol, 1, axis=0)).all()


def test_log_det_cholesky(dtype, rng):
    chol = factor(rng)
    expected = np.linalg.slogdet(chol @ np.swapaxes(chol, -1, -2))[1]
    actual = numerics.log_det_cholesky(jnp.asarray(chol, dtype))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=20 * K * jnp.finfo(dtype).eps)


def test_log_det_cholesky_is_nan_for_a_negative_diagonal():
    assert np.isnan(numerics.log_det_cholesky(jnp.diag(jnp.array([1.0, -1.0]))))


def test_small_matrix_helpers(dtype, rng):
    x = jnp.asarray(rng.normal(size=(2, 3, 3)), dtype)
    v = jnp.asarray(rng.normal(size=(2, 3)), dtype)
    np.testing.assert_array_equal(numerics.transpose(x), np.swapaxes(x, -1, -2))
    sym = numerics.symmetrize(x)
    np.testing.assert_array_equal(sym, np.swapaxes(sym, -1, -2))
    np.testing.assert_array_equal(numerics.symmetrize(sym), sym)
    eye = numerics.identity_like(x)
    assert eye.dtype == dtype
    np.testing.assert_array_equal(eye, np.broadcast_to(np.eye(3), (2, 3, 3)))
    expected = np.einsum("nij,nj->ni", np.asarray(x, np.float64), np.asarray(v, np.float64))
    np.testing.assert_allclose(
        numerics.matvec(x, v), expected, rtol=0, atol=10 * jnp.finfo(dtype).eps
    )


def test_safe_norm_value_axis_and_keepdims(dtype, rng):
    x = rng.normal(size=(3, 4))
    for axis, keepdims in ((-1, False), (0, True), (1, True)):
        actual = numerics.safe_norm(jnp.asarray(x, dtype), axis=axis, keepdims=keepdims)
        expected = np.linalg.norm(x, axis=axis, keepdims=keepdims)
        np.testing.assert_allclose(actual, expected, rtol=10 * jnp.finfo(dtype).eps)


def test_safe_norm_gradient_is_zero_at_zero_and_the_unit_vector_elsewhere(dtype, rng):
    x = np.concatenate([np.zeros((1, 3)), rng.normal(size=(4, 3))])
    gradient = jax.jit(jax.grad(lambda y: jnp.sum(numerics.safe_norm(y))))(jnp.asarray(x, dtype))
    np.testing.assert_array_equal(gradient[0], 0.0)
    unit = x[1:] / np.linalg.norm(x[1:], axis=-1, keepdims=True)
    np.testing.assert_allclose(gradient[1:], unit, rtol=0, atol=10 * jnp.finfo(dtype).eps)
    second = jax.jit(jax.hessian(numerics.safe_norm))(jnp.zeros(3, dtype))
    assert np.isfinite(second).all()


def test_sinc_sqrt_value(dtype):
    s = jnp.asarray([0.0, 1e-12, 1e-3, 0.0999, 0.1001, 1.0, 9.0, 40.0], dtype)
    root = np.sqrt(np.asarray(s, np.float64))
    expected = np.where(root == 0, 1.0, np.sin(root) / np.where(root == 0, 1.0, root))
    assert numerics.sinc_sqrt(s).dtype == dtype
    # the root rounds, and sine near a multiple of pi keeps that absolute error
    np.testing.assert_allclose(
        numerics.sinc_sqrt(s), expected, rtol=0, atol=4 * jnp.finfo(dtype).eps
    )


def test_sinc_sqrt_derivatives_at_zero_are_those_of_the_series(dtype):
    derivatives = list(
        itertools.accumulate(range(4), lambda f, _: jax.jacfwd(f), initial=numerics.sinc_sqrt)
    )
    actual = jax.jit(lambda s: [f(s) for f in derivatives])(jnp.zeros((), dtype))
    # sum_n (-s)^n / (2 n + 1)!
    expected = [(-1) ** n * math.factorial(n) / math.factorial(2 * n + 1) for n in range(5)]
    np.testing.assert_allclose(actual, expected, rtol=10 * jnp.finfo(dtype).eps)


def test_sinc_sqrt_derivatives_join_where_the_series_ends():
    first = jax.grad(numerics.sinc_sqrt)
    slope, curvature = jax.jit(jax.vmap(lambda s: (first(s), jax.grad(first)(s))))(
        jnp.array([np.nextafter(0.1, 0.0), 0.1, 0.5])
    )
    # the quotient form divides by s once per derivative: eps / 0.1, then eps / 0.01
    np.testing.assert_allclose(slope[0], slope[1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(curvature[0], curvature[1], rtol=0, atol=1e-13)
    root = math.sqrt(0.5)
    exact = (root * math.cos(root) - math.sin(root)) / (2 * root**3)
    np.testing.assert_allclose(slope[2], exact, rtol=1e-14)

import chex
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
log_det_cholesky = jax.jit(numerics.log_det_cholesky)
triangularize = jax.jit(numerics.triangularize)


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
    matrix = spd(rng).astype(dtype)
    chol = cholesky(matrix)
    chex.assert_type(chol, dtype)
    # k operations per entry at condition number 10
    tolerance = 10 * K * jnp.finfo(dtype).eps
    np.testing.assert_allclose(
        chol, np.linalg.cholesky(np.asarray(matrix, np.float64)), rtol=0, atol=tolerance
    )


def test_triangular_inverse_is_numpys(dtype, rng):
    chol = factor(rng).astype(dtype)
    inverse = triangular_inverse(chol)
    chex.assert_type(inverse, dtype)
    tolerance = 10 * K * jnp.finfo(dtype).eps
    np.testing.assert_allclose(
        inverse, np.linalg.inv(np.asarray(chol, np.float64)), rtol=0, atol=tolerance
    )
    assert np.all(np.asarray(inverse)[:, *UPPER] == 0)


@CASES
def test_size_one_and_no_batch(function, data, rng):
    matrix = data(rng, (), 1)
    expected = np.sqrt(matrix) if function is numerics.cholesky else 1 / matrix
    np.testing.assert_allclose(jax.jit(function)(matrix), expected, rtol=1e-15)


@CASES
def test_only_the_lower_triangle_is_read(function, data, rng):
    matrix = data(rng)
    poisoned = matrix.copy()
    poisoned[:, *UPPER] = np.nan
    jitted = jax.jit(function)
    np.testing.assert_array_equal(jitted(poisoned), jitted(matrix))


@CASES
def test_gradient_above_the_diagonal_is_exactly_zero(function, data, rng):
    weight = rng.normal(size=(NUM, K, K))
    gradient = jax.jit(jax.grad(lambda m: jnp.sum(weight * function(m))))(data(rng))
    assert np.all(np.asarray(gradient)[:, *UPPER] == 0)
    assert np.all(np.asarray(gradient)[:, *np.tril_indices(K)] != 0)


@CASES
@pytest.mark.parametrize(
    "modes",
    [("rev",), pytest.param(("fwd", "rev"), marks=pytest.mark.slow)],
    ids=["reverse", "both modes"],
)
def test_derivatives_to_second_order(modes, function, data, rng):
    matrix = data(rng, (2,), 3)
    # finite differences of size 1e-4 leave about 1e-7 of error in float64, tested at 1e-5
    check_grads(jax.jit(function), (matrix,), order=2, modes=modes, atol=1e-5, rtol=1e-5, eps=1e-4)


@CASES
def test_vmap_is_the_batched_call(function, data, rng):
    matrix = data(rng)
    batched = jax.jit(function)(matrix)
    leading, trailing = jax.jit(
        lambda m: (
            jax.vmap(function)(m),
            jax.vmap(function, in_axes=-1, out_axes=-1)(jnp.moveaxis(m, 0, -1)),
        )
    )(matrix)
    # the same operations, possibly fused differently: a few roundings
    np.testing.assert_allclose(leading, batched, rtol=1e-14, atol=1e-15)
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
    chol = np.asarray(cholesky(matrices.astype(dtype)))
    assert np.isnan(np.diagonal(chol[1])).any()
    chex.assert_tree_all_finite(np.delete(chol, 1, axis=0))


def test_triangular_solve_is_numpys_and_has_its_derivatives(rng):
    chol, right = factor(rng), rng.normal(size=(NUM, K, 3))
    solved = np.linalg.solve(chol, right)
    np.testing.assert_allclose(numerics.triangular_solve(chol, right), solved, rtol=1e-12)
    above = chol.copy()
    above[:, *UPPER] = 7.0
    np.testing.assert_allclose(numerics.triangular_solve(above, right), solved, rtol=1e-12)
    check_grads(jax.jit(numerics.triangular_solve), (chol, right), order=2, modes=("rev",))


def test_log_det_cholesky(dtype, rng):
    chol = factor(rng)
    expected = np.linalg.slogdet(chol @ np.swapaxes(chol, -1, -2))[1]
    actual = log_det_cholesky(chol.astype(dtype))
    np.testing.assert_allclose(actual, expected, rtol=0, atol=20 * K * jnp.finfo(dtype).eps)


def test_log_det_cholesky_is_nan_for_a_negative_diagonal():
    assert np.isnan(log_det_cholesky(np.diag([1.0, -1.0])))


@pytest.mark.parametrize(
    ("shape", "kind"),
    [
        *((shape, "float64") for shape in ((5, 3), (2, 3), (0, 2), (1, 1))),
        *((shape, "float32") for shape in ((5, 3), (30, 3))),  # loops over columns, along them
        pytest.param((3, 3), "float64", marks=pytest.mark.slow),
    ],
)
def test_triangularize_is_a_factor_of_the_gram_matrix(shape, kind, rng):
    dtype = jnp.dtype(kind)
    rows = rng.normal(size=(4, *shape)).astype(dtype)
    factor = triangularize(rows)
    chex.assert_shape(factor, (4, shape[1], shape[1]))
    chex.assert_type(factor, dtype)
    exact = np.asarray(rows, np.float64)
    gram = np.swapaxes(exact, -1, -2) @ exact
    actual = np.asarray(factor, np.float64)
    # a few roundings of sums of squares
    tolerance = 10 * max(shape[0], 5) * jnp.finfo(dtype).eps
    np.testing.assert_allclose(actual @ np.swapaxes(actual, -1, -2), gram, rtol=0, atol=tolerance)
    np.testing.assert_array_equal(np.triu(actual, 1), 0.0)
    assert np.all(np.diagonal(actual, axis1=-2, axis2=-1) >= 0)


@pytest.mark.parametrize("small", [1e-3, 1e-5, 1e-20])
def test_triangularize_keeps_the_digits_of_small_directions(small, rng):
    turn = np.linalg.qr(rng.normal(size=(10, 3, 3)))[0]
    rows = np.swapaxes(turn @ np.diag([1.0, 1.0, small]), -1, -2)
    # The rows are exact in float32 up to relative rounding of the small direction alone.
    rows = np.diag([1.0, 1.0, small]).astype(np.float32) @ np.swapaxes(turn, -1, -2).astype("f4")
    diagonal = np.diagonal(triangularize(rows), axis1=-2, axis2=-1)
    log_det = np.sum(np.log(np.asarray(diagonal, np.float64)), axis=-1)
    np.testing.assert_allclose(log_det, np.log(small), rtol=0, atol=1e-5)


@pytest.mark.parametrize("num", [4, 17])
def test_triangularize_has_the_derivatives_of_the_cholesky_factor(num, rng):
    rows, weight = rng.normal(size=(num, 2)), rng.normal(size=(2, 2))

    def by_product(rows):
        return numerics.cholesky(numerics.matmul(rows.T, rows))

    @jax.jit
    def derivatives(rows):
        functions = (
            lambda rows, factor=factor: jnp.sum(weight * jnp.sin(factor(rows)))
            for factor in (numerics.triangularize, by_product)
        )
        both = [lambda rows, f=f: (jax.grad(f)(rows),) * 2 for f in functions]
        # The Hessian, and the gradient that it differentiates.
        return [jax.jacfwd(slope, has_aux=True)(rows) for slope in both]

    # condition number of the Gram matrix below 100
    chex.assert_trees_all_close(*derivatives(rows), rtol=1e-11, atol=1e-11)


def test_triangularize_of_a_bad_member_and_under_vmap(rng):
    rows = rng.normal(size=(3, 4, 2))
    whole, vmapped = triangularize(rows), jax.jit(jax.vmap(numerics.triangularize))(rows)
    rows[1, 0, 0] = np.nan
    broken = np.asarray(triangularize(rows))
    assert np.isnan(broken[1]).any()
    chex.assert_trees_all_equal(np.delete(broken, 1, 0), np.delete(whole, 1, 0))
    # a batched sum may add in another order
    chex.assert_trees_all_close(vmapped, whole, rtol=1e-13)


@pytest.mark.parametrize("function", [numerics.cholesky, numerics.triangular_inverse])
def test_integers_are_numbers_and_complex_is_refused(function):
    matrix = np.array([[2, 0], [1, 3]])
    jitted = jax.jit(function)
    chex.assert_trees_all_equal(jitted(matrix), jitted(matrix.astype(float)))
    with pytest.raises(ValueError, match="must be real, got complex"):
        jitted(matrix.astype(complex))
    with pytest.raises(ValueError, match=r"must be square matrices \[..., k, k\]"):
        jitted(np.ones((2, 3)))


@pytest.mark.parametrize("shape", [(2, 0, 0), (0, 3, 3)], ids=str)
@pytest.mark.parametrize(
    "function", [numerics.cholesky, numerics.triangular_inverse, numerics.triangularize]
)
def test_nothing_has_factors_and_inverses(function, shape):
    chex.assert_shape(jax.eval_shape(function, np.zeros(shape)), shape)

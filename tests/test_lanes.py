import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from vfejax import lanes, numerics

NUM, K = 33, 4
solve = jax.jit(lanes.triangular_solve)
invert_mapped = jax.jit(jax.vmap(lanes.triangular_inverse, in_axes=1))


def factor(rng, k=K):
    """Lower triangular matrices ``[k, k, n]``, not near singular, with numbers above."""
    return rng.uniform(-0.3, 0.3, size=(k, k, NUM)) + 1.5 * np.eye(k)[:, :, None]


def first(x):
    return np.moveaxis(np.asarray(x), -1, 0)


def test_the_stack_goes_behind_one_item():
    x = jnp.arange(2.0 * 3 * 4).reshape(2, 3, 4)
    np.testing.assert_array_equal(lanes.stack_last(x, core=1), np.moveaxis(x, 1, 2))
    np.testing.assert_array_equal(lanes.stack_last(x, core=2), np.moveaxis(x, 0, 2))
    chex.assert_shape(lanes.stack_last(x, core=3), (2, 3, 4, 1))


def test_the_slope_of_a_diagonal_is_one_array_of_the_matrices(rng):
    x, v = jnp.asarray(rng.normal(size=(2, K, K, NUM))), jnp.asarray(rng.normal(size=(2, K, NUM)))
    expected = np.moveaxis(np.asarray(x), -1, 1).diagonal(axis1=-2, axis2=-1)
    np.testing.assert_array_equal(np.swapaxes(lanes.diagonal(x), -1, -2), expected)
    pulled = jax.grad(lambda x: jnp.vdot(v, lanes.diagonal(x)))
    np.testing.assert_array_equal(pulled(x), np.asarray(v)[..., None, :] * np.eye(K)[:, :, None])
    made = [e.primitive.name for e in jax.make_jaxpr(pulled)(x).eqns]
    assert made.count("pad") == 1  # K of them, with their sum, for entries taken one by one
    assert "scatter-add" not in made


@pytest.mark.parametrize("k", [K, 17], ids=["written out", "batched"])
def test_products_are_numpys(k, rng, dtype):
    left, right = rng.normal(size=(2, k, NUM)), rng.normal(size=(k, 3, NUM))
    expected = first(left) @ first(right)
    for product, x, y in (
        (lanes.matmul, left, right),
        (lanes.matmul_tn, left.swapaxes(0, 1), right),
        (lanes.matmul_nt, left, right.swapaxes(0, 1)),
    ):
        found = product(jnp.asarray(x, dtype), jnp.asarray(y, dtype))
        chex.assert_type(found, dtype)
        # k products of numbers of order 1 are summed
        np.testing.assert_allclose(
            first(found), expected, rtol=0, atol=40 * k * jnp.finfo(dtype).eps
        )


def test_triangular_solve_is_numpys_and_has_its_derivatives(rng):
    chol, right = factor(rng), rng.normal(size=(K, 3, NUM))
    solved = np.linalg.solve(np.tril(first(chol)), first(right))
    np.testing.assert_allclose(first(solve(chol, right)), solved, rtol=1e-12, atol=1e-13)
    check_grads(solve, (chol, right), order=2, modes=("rev",))


def test_triangular_inverse_has_the_slope_of_numerics(rng, dtype):
    chol = jnp.asarray(factor(rng), dtype)

    def slope(inverse_fn, x):
        return jax.grad(lambda x: jnp.sum(inverse_fn(x) ** 2))(x)

    ours = jax.jit(lambda x: slope(lanes.triangular_inverse, x))(chol)
    theirs = jax.jit(lambda x: slope(numerics.triangular_inverse, x))(jnp.moveaxis(chol, -1, 0))
    # condition numbers below 5, and a slope of order 1
    np.testing.assert_allclose(first(ours), theirs, rtol=0, atol=200 * jnp.finfo(dtype).eps)


def test_vmap_is_a_larger_stack_and_updates_rows_in_place(rng):
    chol = np.stack([factor(rng), factor(rng)], axis=1)
    found = invert_mapped(chol)
    for i in range(2):
        expected = np.linalg.inv(np.tril(first(chol[:, i])))
        np.testing.assert_allclose(first(found[i]), expected, rtol=1e-12, atol=1e-13)
    assert "scatter" not in invert_mapped.lower(chol).as_text()


@pytest.mark.parametrize("shape", [(0, 0, 3), (2, 2, 0)], ids=str)
def test_nothing_has_no_inverse(shape):
    chex.assert_shape(lanes.triangular_inverse(jnp.zeros(shape)), shape)


def test_a_bad_member_stays_alone(rng):
    chol, right = factor(rng), rng.normal(size=(K, 3, NUM))
    expected = np.array(solve(chol, right))
    for member in (0, 7):  # the first number of the first member is looked at
        for bad in (np.nan, np.inf):
            broken = chol.copy()
            broken[0, 0, member] = bad
            found = np.delete(solve(broken, right), member, axis=-1)
            np.testing.assert_array_equal(found, np.delete(expected, member, axis=-1))
    broken = chol.copy()
    broken[0, 0, 0] = np.nan
    assert np.isnan(solve(broken, right)[..., 0]).all()

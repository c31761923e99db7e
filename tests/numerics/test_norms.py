import math

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.precisions import single_by_default

from vfejax import numerics

sinc_sqrt = jax.jit(numerics.sinc_sqrt)


def test_safe_norm_value_axis_and_keepdims(dtype, rng):
    x, cases = rng.normal(size=(3, 4)), ((-1, False), (0, True), (1, True))
    actual = jax.jit(
        lambda x: [numerics.safe_norm(x, axis=axis, keepdims=keep) for axis, keep in cases]
    )(x.astype(dtype))
    expected = [np.linalg.norm(x, axis=axis, keepdims=keep).astype(dtype) for axis, keep in cases]
    chex.assert_trees_all_close(actual, expected, rtol=10 * float(jnp.finfo(dtype).eps))


def test_safe_norm_gradient_is_zero_at_zero_and_the_unit_vector_elsewhere(dtype, rng):
    x = np.concatenate([np.zeros((1, 3)), rng.normal(size=(4, 3))])
    gradient, hessian = jax.jit(
        lambda x: (
            jax.grad(lambda x: jnp.sum(numerics.safe_norm(x)))(x),
            jax.hessian(numerics.safe_norm)(x[0]),
        )
    )(x.astype(dtype))
    gradient = np.asarray(gradient)
    np.testing.assert_array_equal(gradient[0], 0.0)
    unit = x[1:] / np.linalg.norm(x[1:], axis=-1, keepdims=True)
    np.testing.assert_allclose(gradient[1:], unit, rtol=0, atol=10 * jnp.finfo(dtype).eps)
    chex.assert_tree_all_finite(hessian)


def test_sinc_sqrt_value(dtype):
    s = np.asarray([0.0, 1e-12, 1e-3, 0.0999, 0.1001, 1.0, 9.0, 40.0], dtype)
    root = np.sqrt(np.asarray(s, np.float64))
    expected = np.where(root == 0, 1.0, np.sin(root) / np.where(root == 0, 1.0, root))
    actual = sinc_sqrt(s)
    chex.assert_type(actual, dtype)
    # the root rounds, and sine near a multiple of pi keeps that absolute error
    np.testing.assert_allclose(actual, expected, rtol=0, atol=4 * jnp.finfo(dtype).eps)


@single_by_default
def test_sinc_sqrt_derivatives_at_zero_are_those_of_the_series(dtype):
    def derivatives(s, order):
        """Value and derivatives up to an order."""
        if order == 0:
            return (numerics.sinc_sqrt(s),)
        lower, slopes = jax.jvp(lambda s: derivatives(s, order - 1), (s,), (jnp.ones_like(s),))
        return (*lower, slopes[-1])

    actual = jax.jit(lambda s: derivatives(s, 4))(np.zeros((), dtype))
    # sum_n (-s)^n / (2 n + 1)!
    expected = [(-1) ** n * math.factorial(n) / math.factorial(2 * n + 1) for n in range(5)]
    np.testing.assert_allclose(actual, expected, rtol=10 * jnp.finfo(dtype).eps)


def test_sinc_sqrt_derivatives_join_where_the_series_ends():
    first = jax.grad(numerics.sinc_sqrt)
    slope, curvature = jax.jit(jax.vmap(lambda s: (first(s), jax.grad(first)(s))))(
        np.array([np.nextafter(0.1, 0.0), 0.1, 0.5])
    )
    slope, curvature = np.asarray(slope), np.asarray(curvature)
    # the quotient form divides by s once per derivative: eps / 0.1, then eps / 0.01
    np.testing.assert_allclose(slope[0], slope[1], rtol=0, atol=1e-14)
    np.testing.assert_allclose(curvature[0], curvature[1], rtol=0, atol=1e-13)
    root = math.sqrt(0.5)
    exact = (root * math.cos(root) - math.sin(root)) / (2 * root**3)
    np.testing.assert_allclose(slope[2], exact, rtol=1e-14)


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        ([np.nan, 1.0], np.nan),
        ([np.inf, 1.0], np.inf),
        ([3e30, 4e30], 5e30),
        ([3e-30, 4e-30], 5e-30),
        ([0.0, 0.0], 0.0),
        ([], 0.0),
    ],
)
def test_safe_norm_of_extreme_numbers(x, expected):
    actual = jax.jit(numerics.safe_norm)(np.asarray(x, np.float32))
    np.testing.assert_allclose(actual, np.float32(expected), rtol=1e-6)


def test_safe_sqrt_is_nan_below_zero_and_flat_at_zero():
    values, slopes = jax.jit(jax.vmap(jax.value_and_grad(numerics.safe_sqrt)))(
        np.array([-1.0, 0.0, 4.0])
    )
    np.testing.assert_array_equal(values, [np.nan, 0, 2])
    np.testing.assert_array_equal(slopes[1:], [0.0, 0.25])


def test_norms_and_products_of_trees():
    tree = {"a": np.array([3.0], np.float32), "b": (np.zeros((2, 0)), np.array(4.0))}
    zero = jax.tree.map(np.zeros_like, tree)
    norm, square, nothing, slope = jax.jit(
        lambda tree, zero: (
            numerics.tree_norm(tree),
            numerics.tree_dot(tree, tree),
            numerics.tree_norm({}),
            jax.grad(numerics.tree_norm)(zero),
        )
    )(tree, zero)
    assert (float(norm), float(square), float(nothing)) == (5.0, 25.0, 0.0)
    chex.assert_type(norm, jnp.float64)
    chex.assert_trees_all_equal(slope, zero)

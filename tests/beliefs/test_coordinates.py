import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfejax.beliefs import coordinates as gaussian_coordinates
from vfejax.beliefs.coordinates import GaussianCoordinates
from vfejax.beliefs.gaussian import Gaussian, kl_divergence

K = 3
LOWER = np.tril_indices(K)
UPPER = np.triu_indices(K, 1)

constrain = jax.jit(gaussian_coordinates.constrain)
unconstrain = jax.jit(gaussian_coordinates.unconstrain)
natural_direction = jax.jit(gaussian_coordinates.natural_direction)


def draw(rng, shape=(5,), dtype=np.float64):
    """Coordinates of standard deviations between about exp(-1) and e, with garbage above the
    diagonal.
    """
    mean, factor = rng.normal(size=(*shape, K)), 0.5 * rng.normal(size=(*shape, K, K))
    return GaussianCoordinates(*(jnp.asarray(x.astype(dtype)) for x in (mean, factor)))


def test_constrain_is_the_documented_map(dtype, rng):
    w = draw(rng, dtype=dtype)
    q = constrain(w)
    assert isinstance(q, Gaussian)
    np.testing.assert_array_equal(q.mean, w.mean)
    factor = np.asarray(w.factor)
    expected = np.tril(factor, -1) + np.eye(K, dtype=dtype) * np.exp(factor)
    chex.assert_type(q.chol, dtype)
    np.testing.assert_allclose(q.chol, expected, rtol=4 * jnp.finfo(dtype).eps, atol=0)


def test_round_trip_in_both_directions(dtype, rng):
    w = draw(rng, dtype=dtype)
    back = unconstrain(constrain(w))
    np.testing.assert_array_equal(back.mean, w.mean)
    # exp and log of numbers of order 1
    np.testing.assert_allclose(
        back.factor, np.tril(w.factor), rtol=0, atol=4 * jnp.finfo(dtype).eps
    )
    q = constrain(w)
    again = constrain(unconstrain(q))
    np.testing.assert_array_equal(again.mean, q.mean)
    np.testing.assert_allclose(again.chol, q.chol, rtol=8 * jnp.finfo(dtype).eps)


ENTRY = st.floats(-80, 80, width=32)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.lists(ENTRY, min_size=K * K, max_size=K * K))
def test_any_coordinates_give_a_positive_diagonal(numbers):
    factor = np.asarray(numbers, np.float32).reshape(K, K)
    chol = np.asarray(constrain(GaussianCoordinates(np.zeros(K, np.float32), factor)).chol)
    chex.assert_tree_all_finite(chol)
    assert np.all(np.diagonal(chol) > 0)
    assert np.all(chol[UPPER] == 0)


def test_unconstrain_flags_a_diagonal_that_is_not_positive():
    chol = np.eye(2)[None] * np.array([[[1.0], [1.0]], [[-1.0], [1.0]], [[0.0], [1.0]]])
    factor = np.asarray(unconstrain(Gaussian(np.zeros((3, 2)), chol)).factor)
    np.testing.assert_array_equal(factor[0], np.zeros((2, 2)))
    assert np.isnan(factor[1, 0, 0])
    assert np.isneginf(factor[2, 0, 0])


def test_coordinates_of_integers_are_floating():
    found = unconstrain(Gaussian(jnp.array([1]), jnp.array([[2]])))
    chex.assert_type(found, jnp.result_type(float))
    np.testing.assert_allclose(found.factor, np.log(2.0), rtol=1e-6)


@pytest.mark.parametrize(
    "function", [gaussian_coordinates.constrain, gaussian_coordinates.unconstrain]
)
def test_the_upper_triangle_is_ignored_and_has_no_gradient(function, rng):
    matrix = np.array(constrain(draw(rng)).chol)
    build = GaussianCoordinates if function is gaussian_coordinates.constrain else Gaussian
    mean = jnp.zeros((5, K))

    @jax.jit
    def value_and_grad(matrix):
        return jax.value_and_grad(lambda m: jnp.sum(function(build(mean, m))[1]))(matrix)

    value, gradient = value_and_grad(matrix)
    matrix[:, *UPPER] = np.nan
    poisoned_value, poisoned_gradient = value_and_grad(matrix)
    assert poisoned_value == value
    np.testing.assert_array_equal(poisoned_gradient, gradient)
    assert np.all(np.asarray(gradient)[:, *UPPER] == 0)
    assert np.all(np.asarray(gradient)[:, *LOWER] != 0)


@jax.jit
@jax.vmap
def fisher_matrix(vector):
    """Hessian of KL(q || p) in the coordinates of p at p = q: mean first, then the lower triangle
    row by row.
    """

    def belief(vector):
        factor = jnp.zeros((K, K), vector.dtype).at[LOWER].set(vector[K:])
        return gaussian_coordinates.constrain(GaussianCoordinates(vector[:K], factor))

    q = belief(vector)
    return jax.hessian(lambda p: kl_divergence(q, belief(p)))(vector)


def flatten(tree):
    return np.concatenate([np.asarray(tree[0]), np.asarray(tree[1])[..., *LOWER]], axis=-1)


def test_natural_direction_solves_with_the_fisher_matrix(dtype, rng):
    w, gradient = draw(rng, dtype=dtype), draw(rng, dtype=dtype)
    direction = natural_direction(w, gradient)
    assert isinstance(direction, GaussianCoordinates)
    chex.assert_type(list(direction), dtype)
    metric = np.asarray(fisher_matrix(jnp.asarray(flatten(w), jnp.float64)))
    expected = np.linalg.solve(metric, flatten(gradient).astype(np.float64)[..., None])[..., 0]
    # products only, of numbers below about 10
    np.testing.assert_allclose(
        flatten(direction), expected, rtol=0, atol=200 * jnp.finfo(dtype).eps
    )
    assert np.all(np.asarray(direction.factor)[:, *UPPER] == 0)


def test_natural_direction_ascends(rng):
    w, gradient = draw(rng, (50,)), draw(rng, (50,))
    slope = np.sum(flatten(gradient) * flatten(natural_direction(w, gradient)), axis=-1)
    assert np.all(slope > 0)
    still = natural_direction(w, jax.tree.map(np.zeros_like, gradient))
    np.testing.assert_array_equal(flatten(still), 0)


def test_natural_direction_of_one_and_of_many(rng):
    w, gradient = draw(rng), draw(rng)
    batched = natural_direction(w, gradient)
    mapped = jax.jit(jax.vmap(gaussian_coordinates.natural_direction))(w, gradient)
    np.testing.assert_allclose(flatten(mapped), flatten(batched), rtol=0, atol=1e-14)


def test_fisher_length_is_flat_at_no_step(rng):
    w, step = draw(rng), draw(rng)
    still = jax.tree.map(np.zeros_like, step)

    def length(step):
        return jnp.sum(gaussian_coordinates.fisher_length(w, step))

    @jax.jit
    @jax.value_and_grad
    def ahead(time):
        return length(jax.tree.map(lambda x: time * x, step))

    chex.assert_trees_all_equal(jax.jit(jax.grad(length))(still), still)
    # Frozen groups leave the derivative of the others alone.
    assert ahead(0.0)[1] == 0.0
    distance, slope = ahead(0.1)
    np.testing.assert_allclose(slope, 10 * distance, rtol=1e-12)


def test_fisher_length_does_not_overflow():
    w = GaussianCoordinates(np.zeros(1, np.float32), np.zeros((1, 1), np.float32))
    far = w._replace(mean=np.full(1, 1e30, np.float32))
    length = jax.jit(gaussian_coordinates.fisher_length)(w, far)
    np.testing.assert_allclose(length, 1e30, rtol=1e-6)

"""Weights of agents on a base manifold, and how far neighbours are present."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents import supports
from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian

neighbours_present = jax.jit(supports.neighbours_present)


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def exact_presence(chi, neighbours):
    """``1 - prod (1 - chi_j)`` by logarithms in float64."""
    with np.errstate(divide="ignore"):
        logs = np.where(neighbours, np.log1p(-np.asarray(chi, float))[None], 0.0)
    return -np.expm1(logs.sum(axis=1))


CHI = {
    "ordinary": [0.2, 0.7, 1.0, 0.4, 0.9],
    "sharp": [1.0, 0.0, 1.0, 0.0, 0.0],
    "one": [0.0, 0.0, 0.3, 0.0, 0.0],
    "none": [0.0] * 5,
    "small": [1e-5, 1e-7, 1e-8, 3e-9, 1e-20],
}


@pytest.mark.parametrize("name", CHI)
def test_presence_of_neighbours_to_rounding(name, dtype, rng):
    chi = np.asarray(CHI[name], dtype)
    everyone = ~np.eye(5, dtype=bool)
    some = everyone & (rng.uniform(size=(5, 5)) < 0.6)
    some[3] = False
    # Every term is positive: the relative error is a few eps, however small the supports.
    for neighbours, ends in ((everyone, ()), (some, np.nonzero(some | (np.arange(5) == 2)))):
        order = rng.permutation(len(ends[0])) if ends else None
        actual = neighbours_present(chi, *(x[order] for x in ends))
        if ends:
            neighbours = some | ((np.arange(5) == 2)[None] & everyone)
        expected = exact_presence(chi, neighbours)
        chex.assert_trees_all_close(
            np.asarray(actual, float), expected, rtol=10 * eps(dtype), atol=0
        )


def test_presence_has_the_gradient_of_the_product(rng):
    chi = jnp.asarray([1.0, 0.3, 1.0, 0.0, 0.6])
    neighbours = ~np.eye(5, dtype=bool)
    receivers, senders = (jnp.asarray(x) for x in np.nonzero(neighbours))

    def product(chi):
        return 1.0 - jnp.prod(jnp.where(neighbours, 1.0 - chi[None], 1.0), axis=1)

    def on_edges(chi):
        return supports.neighbours_present(chi, receivers, senders)

    # Two supports of exactly 1, where logarithms would give NaN.
    functions = (product, supports.neighbours_present, on_edges)
    expected, *slopes = jax.jit(lambda chi: [jax.jacobian(fn)(chi) for fn in functions])(chi)
    chex.assert_trees_all_close(slopes, [expected] * 2, rtol=0, atol=1e-15)


@pytest.mark.parametrize("make", [np.asarray, jnp.asarray])
def test_a_compiled_function_may_close_over_its_neighbour_list(make):
    receivers, senders = make([2, 0, 0, 1]), make([0, 1, 2, 1])
    chi = jnp.asarray([0.5, 0.25, 0.5])
    present = jax.jit(lambda chi: supports.neighbours_present(chi, receivers, senders))(chi)
    assert present.tolist() == [0.625, 0.0, 0.5]


def test_nan_support_is_nan_to_the_others():
    chi = jnp.asarray([0.5, jnp.nan, 0.5])
    assert list(np.isnan(neighbours_present(chi))) == [True, False, True]
    assert np.isnan(supports.log_support(chi)[1])


@pytest.mark.parametrize("num", [0, 1])
def test_few_agents(num):
    np.testing.assert_array_equal(neighbours_present(np.ones(num)), np.zeros(num))


def test_log_support_and_its_gradient():
    chi = jnp.asarray([0.0, 0.5])
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(supports.log_support)))(chi)
    chex.assert_trees_all_close(value, jnp.asarray([-jnp.inf, np.log(0.5)]))
    np.testing.assert_array_equal(slope, [0.0, 2.0])


def population_on_ring(dtype):
    gaussian = Gaussian(np.zeros((4, 5, 3), dtype), np.zeros((4, 5, 3, 3), dtype))
    return Population(gaussian, gaussian, np.zeros((4, 5, 3), dtype))


def test_measure_is_support_times_quadrature(rng, dtype):
    population = population_on_ring(dtype)
    chi, weight = rng.uniform(size=(4, 5)).astype(dtype), np.arange(5.0, dtype=dtype)
    measure = jax.jit(supports.measure)
    assert measure(population, None, None) is None
    np.testing.assert_array_equal(measure(population, chi, None), chi)
    np.testing.assert_array_equal(measure(population, chi, weight), chi * weight[None])
    np.testing.assert_array_equal(measure(population, None, weight), [weight] * 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((np.ones((4, 6)), None), r"supports must have shape \(4, 5\) .* got \(4, 6\)"),
        ((None, np.ones(4)), r"quadrature must have shape \(5,\) .* got \(4,\)"),
        ((np.ones((4, 5)), None), "supports must have dtype float32 .* got float64"),
        ((None, np.ones(5, int)), "quadrature must have dtype float32 .* got int64"),
        ((np.ones((4, 5), complex), None), "supports must have dtype float32 .* got complex128"),
    ],
)
def test_errors_name_the_array(options, message):
    with pytest.raises(ValueError, match=message):
        supports.measure(population_on_ring(jnp.float32), *options)


def test_oracle_agrees():
    chi = jnp.asarray([0.2, 0.7, 1.0])
    expected = jax.jit(oracle.neighbours_present)(chi, jnp.ones((3, 3)))
    chex.assert_trees_all_close(neighbours_present(chi), expected)

"""Energy of a hierarchy: each term once, the same in every gauge, and blind to what is empty."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle
from helpers import hierarchy_oracle as oracle

from vfejax.agents.free_energy import Weights, free_energy_terms
from vfejax.agents.hierarchy import Hierarchy, Scales, initial_hierarchy
from vfejax.agents.hierarchy_energy import CrossScale, energy_terms
from vfejax.agents.observation import identity_observations

SCALES = Scales(5, (3, 2))
PARENT = np.array([5, 5, 6, 6, 4, 8, 8, 7, 8, 9], np.int32)
ACTIVE = np.array([True] * 7 + [False, True, False])
WEIGHTS = Weights(1.3, 0.7, 0.4, 0.9)
CROSS = CrossScale(blend=0.7, bottom_up=1.6, decay=0.6, depth=1)
NAMES = ("self_coupling", "hyperprior", "belief_alignment", "prior_alignment", "observation")


def terms_of(hierarchy, observations=None, above=None):
    return energy_terms(
        hierarchy,
        SCALES,
        oracle.VECTOR,
        above=above,
        weights=WEIGHTS,
        temperature=4.0,
        cross_scale=CROSS,
        observations=observations,
    )


def value_and_grad(hierarchy):
    def total(population):
        terms = terms_of(hierarchy._replace(population=population))
        return terms.total, terms

    (_, terms), gradient = jax.value_and_grad(total, has_aux=True)(hierarchy.population)
    return terms, gradient


evaluate = jax.jit(value_and_grad)


@pytest.fixture(scope="module")
def hierarchy():
    rng = np.random.default_rng(3)
    population = agents_oracle.random_population(rng, 10, oracle.VECTOR)
    # Frames within the ball where coordinates are unique.
    population = population._replace(phi=0.5 * population.phi)
    supports = jnp.asarray(rng.uniform(0.3, 1.0, 10))
    return Hierarchy(population, jnp.asarray(PARENT), jnp.asarray(ACTIVE), supports)


def stacked(terms):
    return np.stack([getattr(terms, name) for name in NAMES])


def test_every_term_is_paid_once_at_the_scale_that_the_formula_says(hierarchy):
    terms, _ = evaluate(hierarchy)
    expected = oracle.energy_terms(hierarchy, SCALES, WEIGHTS, 4.0, CROSS)
    assert np.all(expected[[0, 1, 2, 4], [0, 0, 0, 1]] != 0)
    # A few operations on numbers up to a hundred, in float64.
    chex.assert_trees_all_close(stacked(terms), expected, rtol=1e-12, atol=1e-12)
    chex.assert_trees_all_close(terms.total, np.sum(expected), rtol=1e-13)
    chex.assert_trees_all_close(terms.by_scale, np.sum(expected, axis=0), rtol=1e-12)


def test_a_temperature_of_zero_is_refused(hierarchy):
    with pytest.raises(ValueError, match="prior_temperature must be above 0, in nats, got 0"):
        energy_terms(hierarchy, SCALES, oracle.VECTOR, prior_temperature=0)


def test_terms_between_scales_are_part_of_the_others(hierarchy):
    terms, _ = evaluate(hierarchy)
    none = CROSS._replace(blend=0.0, bottom_up=0.0, depth=0)
    own = oracle.energy_terms(hierarchy, SCALES, WEIGHTS, 4.0, none)
    all_terms = oracle.energy_terms(hierarchy, SCALES, WEIGHTS, 4.0, CROSS)
    members = np.sum(all_terms - own) + CROSS.blend * _replaced(hierarchy)
    chex.assert_trees_all_close(np.sum(terms.between.by_children), members, rtol=1e-12)


def _replaced(hierarchy):
    """What members would pay for their own priors."""
    rows = np.flatnonzero(np.arange(10) != PARENT)
    (belief, prior, _), _, _, supports = jax.device_get(hierarchy)
    return WEIGHTS[0] * sum(
        supports[i] * oracle.kl(oracle.moments(belief, i), oracle.moments(prior, i)) for i in rows
    )


def test_a_change_of_gauge_changes_nothing(hierarchy, rng):
    turned = oracle.turned(hierarchy.population, 0.3 * rng.normal(size=(10, 3)))
    before, after = evaluate(hierarchy)[0], evaluate(hierarchy._replace(population=turned))[0]
    # Rotations of numbers of order 1, whose divergences are of order 10.
    chex.assert_trees_all_close(stacked(after), stacked(before), rtol=1e-12, atol=1e-12)


def test_what_empty_slots_hold_plays_no_part(hierarchy):
    empty = np.flatnonzero(~ACTIVE)
    broken = jax.tree.map(lambda x: x.at[empty].set(jnp.nan), hierarchy.population)
    terms, gradient = evaluate(hierarchy)
    other_terms, other_gradient = evaluate(hierarchy._replace(population=broken))
    chex.assert_trees_all_equal((terms, gradient), (other_terms, other_gradient))
    chex.assert_trees_all_equal(
        jax.tree.map(lambda x: x[empty], gradient),
        jax.tree.map(lambda x: jnp.zeros_like(x[empty]), gradient),
    )


@pytest.mark.parametrize("row", [0, 6])
def test_nan_in_a_row_that_counts_is_seen(row, hierarchy):
    mean = hierarchy.population.belief.mean.at[row].set(jnp.nan)
    population = hierarchy.population
    population = population._replace(belief=population.belief._replace(mean=mean))
    assert np.isnan(evaluate(hierarchy._replace(population=population))[0].total)


def test_gradient_is_that_of_finite_differences(hierarchy, rng):
    direction = jax.tree.map(
        lambda x: jnp.asarray(rng.normal(size=x.shape) * ACTIVE.reshape(-1, *[1] * (x.ndim - 1))),
        hierarchy.population,
    )
    gradient = evaluate(hierarchy)[1]
    slope = sum(
        jax.tree.leaves(jax.tree.map(lambda g, d: float(jnp.sum(g * d)), gradient, direction))
    )
    step = 1e-5

    def total(size):
        moved = jax.tree.map(lambda x, d: x + size * d, hierarchy.population, direction)
        return float(evaluate(hierarchy._replace(population=moved))[0].total)

    # The central difference is off by step^2 times a third derivative, here below 1e-7 of it.
    assert abs((total(step) - total(-step)) / (2 * step) - slope) < 1e-7 * abs(slope)


def test_without_meta_agents_it_is_the_energy_of_the_population(rng):
    agents = agents_oracle.random_population(rng, 5, oracle.VECTOR)
    observations = identity_observations(agents.belief.mean[:, None] + 1.0, 0.5)
    start, _ = initial_hierarchy(agents, SCALES.capacities)
    terms = jax.jit(terms_of)(start, observations)
    expected = jax.jit(functools.partial(free_energy_terms, weights=WEIGHTS, temperature=4.0))(
        agents, oracle.VECTOR, observations=observations
    )
    at_scale_0 = [getattr(terms, name)[0] for name in NAMES if name != "hyperprior"]
    chex.assert_trees_all_close(at_scale_0, list(expected[:4]), rtol=1e-12)
    chex.assert_trees_all_close(terms.total, expected.total, rtol=1e-12)


def test_a_field_pays_at_every_point(hierarchy, rng):
    """Two points with quadrature weights: the sum of two hierarchies at a point."""
    other = agents_oracle.random_population(rng, 10, oracle.VECTOR)
    chi = jnp.asarray(rng.uniform(0.3, 1.0, 10))
    points = [hierarchy, hierarchy._replace(population=other, supports=chi)]
    population, supports = jax.tree.map(
        lambda *x: jnp.stack(x, axis=1), *[(x.population, x.supports) for x in points]
    )
    field = hierarchy._replace(population=population, supports=supports)
    weights = np.array([0.25, 0.5])

    @jax.jit
    def of_field(field, quadrature):
        return energy_terms(
            field,
            SCALES,
            oracle.VECTOR,
            weights=WEIGHTS,
            temperature=4.0,
            cross_scale=CROSS,
            quadrature=quadrature,
        )

    expected = sum(w * stacked(evaluate(x)[0]) for w, x in zip(weights, points, strict=True))
    actual = of_field(field, jnp.asarray(weights))
    chex.assert_trees_all_close(stacked(actual), expected, rtol=1e-12, atol=1e-12)

"""The mass of the means is the Gauss-Newton Hessian of the free energy at frozen attention."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents import edges as neighbour_lists
from vfejax.agents import pairwise
from vfejax.agents.edges import Edges
from vfejax.agents.mass import mean_mass
from vfejax.agents.observation import Observations
from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian, kl_divergence

NUM, POINTS = 4, 2
WEIGHTS = (0.7, 1.3, 0.0, 0.9)
TEMPERATURE = 2.0
QUADRATURE = np.array([0.4, 1.7])
# Agent 3 is nowhere at the second point.
SUPPORTS = np.array([[1.0, 0.6], [0.5, 1.0], [0.8, 0.3], [1.0, 0.0]])
CHAIN = Edges(np.array([0, 1, 1, 2, 2, 3, 3]), np.array([1, 0, 2, 1, 3, 2, 3]))


def observations(rng, grid):
    present = rng.random((NUM, 3, *grid)) < 0.6
    values = rng.normal(size=(NUM, 3, *grid, 3))
    return Observations(values, present, rng.normal(size=(3, 2)), 0.5 * np.eye(3) + np.eye(3, k=-1))


@pytest.fixture(scope="module")
def field():
    rng = np.random.default_rng(5)
    population = oracle.random_population(rng, NUM, oracle.GENERAL, (POINTS,))
    return population._replace(phi=0.7 * population.phi), observations(rng, (POINTS,))


@jax.jit
def mass_of(population, seen, supports, edges):
    return mean_mass(
        population,
        oracle.GENERAL,
        weights=WEIGHTS,
        temperature=TEMPERATURE,
        observations=seen,
        supports=supports,
        quadrature=QUADRATURE,
        edges=edges,
    )


def neighbours_of(edges):
    everyone = 1.0 - np.eye(NUM)
    if edges is None:
        return everyone
    listens = np.zeros((NUM, NUM))
    listens[edges.receivers, edges.senders] = 1.0
    return listens * everyone


@jax.jit
@jax.vmap
def hessian_at(belief, prior, phi, seen, chi, weight, neighbours):
    """Hessian in the means at one point, with attention computed once and held."""
    divergence = oracle.pairwise_kl(belief, phi, oracle.GENERAL)
    beta = oracle.attention(divergence, TEMPERATURE, chi, neighbours)
    present = oracle.neighbours_present(chi, neighbours)

    def frozen(mean):
        moved = belief._replace(mean=mean)
        aligned = beta * oracle.pairwise_kl(moved, phi, oracle.GENERAL)
        return weight * jnp.sum(
            chi
            * (
                WEIGHTS[0] * kl_divergence(moved, prior)
                + WEIGHTS[1] * present * jnp.sum(aligned, axis=1)
                + WEIGHTS[3] * oracle.observation(moved, seen)
            )
        )

    return jax.hessian(frozen)(belief.mean)


@pytest.mark.parametrize("edges", [None, CHAIN], ids=["everyone", "chain"])
def test_mass_is_the_hessian_at_frozen_attention(edges, field):
    """For fields with supports and quadrature weights, under a group that is not orthogonal."""
    population, seen = field
    mass = mass_of(population, seen, SUPPORTS, edges)
    by_point = jax.tree.map(lambda x: np.moveaxis(np.asarray(x), 1, 0), population)
    there = Observations(
        np.moveaxis(seen.values, 2, 0),
        np.moveaxis(seen.present, 2, 0).astype(float),
        *(np.stack([x] * POINTS) for x in seen[2:]),
    )
    neighbours = np.stack([neighbours_of(edges)] * POINTS)
    hessian = np.asarray(hessian_at(*by_point, there, SUPPORTS.T, QUADRATURE, neighbours))
    expected = np.einsum("cikil->ickl", hessian)
    # Entries of order ten, from sums of a few dozen terms.
    np.testing.assert_allclose(mass, expected, rtol=1e-11, atol=1e-11)
    np.testing.assert_array_equal(mass[3, 1], 0.0)
    assert np.abs(expected).max() > 1.0


def test_recoil_makes_who_is_listened_to_heavier():
    """A hub of three listeners against the formula of the docstring, by hand."""
    spread = np.array([0.5, 1.0, 2.0, 0.25])
    belief = Gaussian(np.zeros((4, 1)), np.sqrt(spread)[:, None, None])
    population = Population(belief, belief, np.zeros((4, 1)))
    hub = Edges(np.array([1, 2, 3]), np.array([0, 0, 0]))
    line = np.zeros((1, 1, 1))
    mass = jax.jit(lambda x: mean_mass(x, line, weights=(0.0, 2.0, 0.0, 0.0), edges=hub))(
        population
    )
    expected = 2.0 * np.array([3 / 0.5, 1 / 0.5, 1 / 0.5, 1 / 0.5])
    np.testing.assert_allclose(mass[:, 0, 0], expected, rtol=1e-14)
    with pytest.raises(ValueError, match=r"temperature must be above 0, in nats, got -1\.0"):
        mean_mass(population, line, temperature=-1.0, edges=hub)


@pytest.mark.slow
def test_sums_of_attention_are_those_of_its_matrix(field):
    """In blocks of any size, forwards and in the gradient."""
    population, _ = field
    belief = jax.tree.map(lambda x: x[:, 0], population.belief)
    phi = population.phi[:, 0]
    values = np.random.default_rng(2).normal(size=(NUM, 3))
    coefficient, weight = np.array([0.3, 1.0, 0.0, 2.0]), np.log([0.5, 1.0, 2.0, 1.0])

    @jax.jit
    def sums(belief):
        features = pairwise.pair_features(belief, pairwise.frame_field(phi, oracle.GENERAL))

        def total(features, size):
            received, given = pairwise.attention_sums(
                features,
                TEMPERATURE,
                values,
                coefficient=coefficient,
                log_weight=weight,
                block_size=size,
            )
            return jnp.sum(jnp.sin(received)) + jnp.sum(given**2), (received, given)

        found = [jax.value_and_grad(total, has_aux=True)(features, size) for size in (None, 3)]
        beta = pairwise.attention_weights(
            belief, phi, oracle.GENERAL, TEMPERATURE, log_weight=weight
        )
        return found, beta

    found, beta = sums(belief)
    beta = coefficient[:, None] * np.asarray(beta)
    for (_, (received, given)), _ in found:
        np.testing.assert_allclose(received, beta @ values, rtol=1e-13)
        np.testing.assert_allclose(given, beta.sum(axis=0), rtol=1e-13)
    # Blocks add up in another order.
    chex.assert_trees_all_close(found[0][1], found[1][1], rtol=1e-12, atol=1e-13)


def test_edge_sums_are_those_of_a_dense_neighbourhood(field):
    population, _ = field
    belief = jax.tree.map(lambda x: x[:, 0], population.belief)
    everyone = Edges(*np.nonzero(1.0 - np.eye(NUM)))
    values, coefficient = np.eye(NUM), np.array([0.3, 1.0, 0.0, 2.0])

    @jax.jit
    def both(belief, phi):
        frames = pairwise.frame_field(phi, oracle.GENERAL)
        features = pairwise.pair_features(belief, frames)
        options = {"coefficient": coefficient}
        return (
            pairwise.attention_sums(features, TEMPERATURE, values, **options),
            neighbour_lists.edge_attention_sums(
                belief, frames, everyone, TEMPERATURE, values, **options
            ),
        )

    dense, sparse = both(belief, population.phi[:, 0])
    # Feature rows cancel a digit or two that differences of means keep.
    chex.assert_trees_all_close(dense, sparse, rtol=1e-11, atol=1e-13)


def _largest(jaxpr):
    """Numbers of the largest array anywhere in a program."""
    sizes = [np.prod(v.aval.shape, dtype=int) for eqn in jaxpr.eqns for v in eqn.outvars]
    inner = [
        _largest(getattr(part, "jaxpr", part))
        for eqn in jaxpr.eqns
        for value in eqn.params.values()
        for part in (value if isinstance(value, tuple | list) else [value])
        if hasattr(getattr(part, "jaxpr", part), "eqns")
    ]
    return max([*sizes, *inner], default=0)


def test_no_array_of_pairs_of_matrices_is_formed():
    num, k = 50, 3
    population = oracle.random_population(np.random.default_rng(0), num, oracle.ROTATIONS["vector"])
    program = jax.make_jaxpr(
        jax.grad(lambda x: jnp.sum(mean_mass(x, oracle.ROTATIONS["vector"], block_size=num)))
    )(population)
    # Pairs, and n matrices; pairs of vectors would be 7500 numbers, pairs of matrices 22500.
    assert _largest(program.jaxpr) <= num * num
    blocked = jax.make_jaxpr(lambda x: mean_mass(x, oracle.ROTATIONS["vector"], block_size=10))(
        population
    )
    assert _largest(blocked.jaxpr) <= num * k * k * 4

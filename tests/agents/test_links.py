"""Transports with links: divergences and energies against the oracle, gauges, loops."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents import links as agent_links
from vfejax.agents.edges import Edges, edge_divergences
from vfejax.agents.free_energy import free_energy, free_energy_terms
from vfejax.agents.links import Loops
from vfejax.agents.pairwise import frame_field
from vfejax.beliefs.gaussian import kl_divergence, push_forward
from vfejax.geometry.transport import frames

VECTOR = oracle.ROTATIONS["vector"]
EDGES = Edges(np.array([0, 1, 2, 0, 3]), np.array([1, 2, 0, 2, 1]))
WEIGHTS = (0.0, 1.3, 0.7, 0.0)


def transported(gaussian, phi, links, generators):
    """Divergences by transports that are written out."""
    receivers, senders = EDGES
    outward, inward = frames(phi, generators), frames(-phi, generators)
    omega = outward[receivers] @ frames(links, generators) @ inward[senders]
    at = [jax.tree.map(lambda x, i=i: x[i], gaussian) for i in EDGES]
    return kl_divergence(at[0], push_forward(at[1], omega))


@jax.jit
def divergences(gaussian, phi, links, generators):
    """Of the library, and by transports written out."""
    field, linked = frame_field(phi, generators), frame_field(links, generators)
    found = edge_divergences(gaussian, field, EDGES, links=linked)
    return found, transported(gaussian, phi, links, generators)


@pytest.mark.parametrize(
    "generators",
    [pytest.param(VECTOR, marks=pytest.mark.slow), oracle.GENERAL],
    ids=["vector", "general"],
)
def test_divergences_are_those_of_the_transport(generators, rng):
    population = oracle.random_population(rng, 4, generators)
    links = 0.5 * rng.normal(size=(5, 3))
    found, expected = divergences(population.belief, population.phi, links, generators)
    # Factors of condition number below 10, turned three times.
    chex.assert_trees_all_close(found, expected, rtol=1e-11)


@jax.jit
def total_on_points(population, links):
    """Value and gradient of the alignment with links, at two points of a line."""

    def total(population, links):
        terms = free_energy_terms(
            population,
            VECTOR,
            weights=WEIGHTS,
            temperature=2.5,
            prior_temperature=1.5,
            edges=EDGES,
            links=links,
        )
        return terms.total, terms

    (_, terms), gradient = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(
        population, links
    )
    return terms, gradient


@jax.jit
def expected_energies(population, links):
    """Belief and prior alignment by attention over the edges, one point after another."""

    def energy(gaussian, phi, links, tau):
        divergence = transported(gaussian, phi, links, VECTOR)
        factors = jnp.exp(-divergence / tau)
        sums = jax.ops.segment_sum(factors, EDGES.receivers, 4)
        return jnp.sum(factors / sums[EDGES.receivers] * divergence)

    both = jax.tree.map(lambda *x: jnp.stack(x), population.belief, population.prior)
    over_points = jax.vmap(energy, in_axes=(1, 1, 1, None))
    of_both = jax.vmap(over_points, in_axes=(0, None, None, 0))
    return of_both(both, population.phi, links, jnp.asarray([2.5, 1.5])).sum(axis=1)


def test_energies_of_a_field_have_links_and_two_temperatures(rng):
    population = oracle.random_population(rng, 4, VECTOR, (2,))
    links = rng.normal(size=(5, 2, 3))
    terms, (_, slope) = total_on_points(population, links)
    belief, prior = expected_energies(population, links)
    np.testing.assert_allclose(terms.belief_alignment, 1.3 * belief, rtol=1e-11)
    np.testing.assert_allclose(terms.prior_alignment, 0.7 * prior, rtol=1e-11)
    assert np.min(np.max(np.abs(slope), axis=-1)) > 0


def test_pure_gauge_links_undo_the_frames_and_zero_links_are_none(rng):
    """``U_i -> U_i H_i^{-1}``: with U = 1 on all agents and V_e = U_i U_j^{-1} nothing changes."""
    population = oracle.random_population(rng, 4, VECTOR, (2,))
    still = population._replace(phi=jnp.zeros_like(population.phi))
    u = np.asarray(frames(population.phi, VECTOR))
    omega = u[EDGES.receivers] @ np.swapaxes(u[EDGES.senders], -1, -2)
    angle = np.arccos((np.trace(omega, axis1=-2, axis2=-1) - 1) / 2)
    skew = (omega - np.swapaxes(omega, -1, -2)) / (2 * np.sin(angle))[..., None, None]
    axis = np.stack([skew[..., 2, 1], skew[..., 0, 2], skew[..., 1, 0]], axis=-1)
    links = angle[..., None] * axis
    with_frames, _ = total_on_points(population, np.zeros_like(links))
    with_links, _ = total_on_points(still, links)
    chex.assert_trees_all_close(with_links, with_frames, rtol=1e-9)


def test_links_need_edges_and_must_fit_them(rng):
    population = oracle.random_population(rng, 4, VECTOR)
    with pytest.raises(ValueError, match="links need edges: give"):
        free_energy(population, VECTOR, links=np.zeros((5, 3)))
    with pytest.raises(ValueError, match=r"links must have shape \(5, 3\) .* got \(4, 3\)"):
        free_energy(population, VECTOR, edges=EDGES, links=np.zeros((4, 3)))


@jax.jit
def loops_of(links, loops):
    value = agent_links.loop_energy(links, loops, VECTOR)
    return agent_links.loop_holonomy(links, loops, VECTOR), value


def test_loops_of_a_list_are_its_pairs_and_triangles(rng):
    loops = agent_links.short_loops(EDGES, 4)
    # 0 and 2 listen to each other: edges 3 and 2. Triangle 0-1-2 by edges 0, 1 and, back, 3.
    np.testing.assert_array_equal(loops.edges, [[3, 2, 0], [0, 1, 3]])
    np.testing.assert_array_equal(loops.signs, [[1, 1, 0], [1, 1, -1]])
    links = rng.normal(size=(5, 3))
    v = np.asarray(frames(jnp.asarray(links), VECTOR))
    holonomy, energy = loops_of(links, loops)
    expected = np.stack([v[3] @ v[2], v[0] @ v[1] @ v[3].T])
    chex.assert_trees_all_close(holonomy, expected, rtol=0, atol=1e-13)
    np.testing.assert_allclose(
        energy, np.sum(1 - np.trace(expected, axis1=-2, axis2=-1) / 3), rtol=1e-12
    )
    with pytest.raises(ValueError, match=r"one shape \[p, l\], got \(1, 2\) and \(1, 3\)"):
        agent_links.loop_holonomy(
            jnp.asarray(links), Loops(np.zeros((1, 2), int), np.zeros((1, 3), int)), VECTOR
        )


@pytest.mark.parametrize(
    ("edges", "signs", "message"),
    [
        ([[0, 5, 0]], [[1, 1, 0]], r"loops.edges must be in \[0, 5\), got 5 in step 1 of loop 0"),
        ([[0], [-1]], [[1], [-1]], r"loops.edges must be in \[0, 5\), got -1 in step 0 of loop 1"),
        ([[0, 1]], [[1, 2]], "loops.signs must be -1, 0 or 1, got 2 in step 1 of loop 0"),
        ([[0.0, 1.0]], [[1, 1]], "loops.edges must be integers, got float64"),
        (np.zeros((2, 0), int), np.zeros((2, 0), int), "each has at least one step"),
    ],
)
def test_loops_along_edges_that_do_not_exist_are_refused(edges, signs, message):
    with pytest.raises(ValueError, match=message):
        agent_links.loop_holonomy(jnp.ones((5, 3)), Loops(np.array(edges), np.array(signs)), VECTOR)


def test_traced_loops_along_edges_that_do_not_exist_are_nan():
    signs = np.array([[1, 0], [1, 0], [0, 1], [0, 1]])
    edges = np.array([[0, 9], [5, 0], [9, -1], [9, 4]])  # what is no step may name any
    holonomy = jax.jit(lambda *x: agent_links.loop_holonomy(jnp.ones((5, 3)), Loops(*x), VECTOR))
    found = holonomy(edges, signs)
    assert np.isnan(found).all(axis=(1, 2)).tolist() == [False, True, True, False]
    assert np.isnan(found).any(axis=(1, 2)).tolist() == [False, True, True, False]


def test_a_broken_link_breaks_no_loop_that_does_not_go_along_it():
    edges = Edges(np.array([2, 0, 1]), np.array([3, 1, 0]))
    loops = agent_links.short_loops(edges, 4)
    assert loops.edges.tolist() == [[1, 2, 0]]
    assert loops.signs.tolist() == [[1, 1, 0]]
    links = jnp.full((3, 3), 0.2).at[0].set(jnp.nan)
    found = agent_links.loop_holonomy(links, loops, VECTOR)
    expected = agent_links.loop_holonomy(links.at[0].set(0.0), loops, VECTOR)
    chex.assert_trees_all_equal(found, expected)
    chex.assert_tree_all_finite(found)


def test_links_settle_into_a_pure_gauge_under_their_loop_energy(rng):
    """Plain descent of the curvature alone."""
    loops = agent_links.short_loops(EDGES, 4)

    @jax.jit
    def descend(links):
        slope = jax.grad(lambda x: agent_links.loop_energy(x, loops, VECTOR))
        return jax.lax.fori_loop(0, 300, lambda _, x: x - 0.3 * slope(x), links)

    start = rng.normal(size=(5, 3))
    last = descend(start)
    assert float(loops_of(start, loops)[1]) > 0.1
    assert float(loops_of(last, loops)[1]) < 1e-10

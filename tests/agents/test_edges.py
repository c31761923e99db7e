"""Neighbour lists: exact divergences along edges, energies against masked rows, and what is
refused.
"""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle as oracle

from vfejax.agents import edges, pairwise
from vfejax.agents.edges import Edges
from vfejax.beliefs.gaussian import Gaussian, kl_divergence

VECTOR = oracle.ROTATIONS["vector"]
SUM = oracle.ROTATIONS["sum"]
NUM = 7


def eps(dtype):
    return float(jnp.finfo(dtype).eps)


def neighbours_of(rng):
    """Who listens to whom: agent 2 has no edge, agent 5 one to itself alone."""
    neighbours = rng.uniform(size=(NUM, NUM)) < 0.4
    neighbours[2] = False
    neighbours[5] = np.arange(NUM) == 5
    neighbours[3, 3] = True
    return neighbours


def edges_of(neighbours, order=None):
    ends = np.nonzero(neighbours)
    order = np.arange(ends[0].size) if order is None else order.permutation(ends[0].size)
    return Edges(*(x[order] for x in ends))


def agents(rng, generators=VECTOR, dtype=np.float64):
    population = oracle.random_population(rng, NUM, generators, dtype=dtype)
    return population.belief, population.phi


@partial(jax.jit, static_argnames="alignment_fn")
def energy_of(gaussian, phi, temperature, coefficient, log_weight, pairs, alignment_fn):
    field = pairwise.frame_field(phi, VECTOR)
    return edges.edge_alignment_energy(
        gaussian,
        field,
        pairs,
        temperature,
        coefficient=coefficient,
        log_weight=log_weight,
        alignment_fn=alignment_fn,
    )


def masked(gaussian, phi, temperature, coefficient, log_weight, neighbours, alignment_fn):
    """The same by the oracle's masked rows."""
    return oracle.alignment_energy(
        oracle.pairwise_kl(gaussian, phi, VECTOR),
        temperature,
        coefficient=coefficient,
        weight=jnp.exp(log_weight),
        neighbours=neighbours,
        alignment_fn=alignment_fn,
    )


def with_gradient(energy_fn):
    return jax.jit(jax.value_and_grad(energy_fn, argnums=range(5)), static_argnames="alignment_fn")


@pytest.mark.parametrize(
    ("generators", "dtype"),
    [
        pytest.param(VECTOR, "float32", id="vector f32"),
        pytest.param(SUM, "float64", id="sum f64", marks=pytest.mark.slow),
        pytest.param(oracle.GENERAL, "float64", id="general f64", marks=pytest.mark.slow),
    ],
)
def test_divergences_equal_the_oracle(generators, dtype, rng):
    gaussian, phi = agents(rng, generators, dtype)
    pairs = edges_of(np.ones((NUM, NUM), bool), rng)
    actual = jax.jit(
        lambda g, p: edges.edge_divergences(g, pairwise.frame_field(p, generators), pairs)
    )(gaussian, phi)
    chex.assert_type(actual, dtype)
    expected = jax.jit(oracle.pairwise_kl)(*oracle.to_double((gaussian, phi)), generators)
    # Sums of squares, whitened by factors of condition number below 10.
    chex.assert_trees_all_close(
        np.asarray(actual, float), np.asarray(expected)[pairs], rtol=0, atol=2e3 * eps(dtype)
    )


@jax.jit
@jax.value_and_grad
def of_one_edge(mean, chol):
    field = pairwise.frame_field(jnp.zeros_like(mean), VECTOR)
    pairs = Edges(np.array([0]), np.array([1]))
    return edges.edge_alignment_energy(Gaussian(mean, chol), field, pairs, 1.0)


@pytest.mark.parametrize("offset", [0.0, 100.0, 1e5])
@pytest.mark.parametrize("far", [0.0, 1e3, 1e30, np.nan])
def test_nothing_cancels_and_agents_on_no_edge_play_no_part(offset, far):
    """Standard deviations of 0.01, means 0.005 apart."""
    chol = np.tile(np.asarray(0.01 * np.eye(3), np.float32), (3, 1, 1))
    mean = np.asarray([[0, 0, 0], [0.004, 0, 0.003], [far] * 3], np.float32)
    mean[:2] += np.float32(offset)
    exact = [Gaussian(mean[i], chol[i]) for i in (0, 1)]
    expected = jax.jit(kl_divergence)(*oracle.to_double(exact))
    energy, slope = of_one_edge(mean, chol)
    # What the means, as rounded, say; to rounding.
    chex.assert_trees_all_close(float(energy), float(expected), rtol=20 * eps("float32"))
    np.testing.assert_array_equal(slope[2], 0.0)
    chex.assert_tree_all_finite(slope)


each_energy_or_all = pytest.mark.parametrize(
    "alignment_fn",
    [oracle.mixture, *(pytest.param(fn, marks=pytest.mark.slow) for fn in oracle.ENERGIES)],
    ids=lambda f: f.__name__,
)


@each_energy_or_all
def test_energy_and_gradient_equal_masked_rows(alignment_fn, rng):
    neighbours = neighbours_of(rng)
    coefficient, log_weight = rng.uniform(0.2, 1.0, NUM), np.log(rng.uniform(0.2, 1.0, NUM))
    arguments = (*agents(rng), np.asarray(2.5), coefficient, log_weight)
    actual = with_gradient(energy_of)(
        *arguments, edges_of(neighbours, rng), alignment_fn=alignment_fn
    )
    expected = with_gradient(masked)(
        *arguments, neighbours.astype(float), alignment_fn=alignment_fn
    )
    scale = np.max(np.abs(expected[1][0].mean))
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=1e-12 * scale)
    # Agents 2 and 5 pay nothing, whatever their coefficient.
    np.testing.assert_array_equal(np.asarray(actual[1][3])[[2, 5]], 0.0)


@each_energy_or_all
def test_complete_list_equals_all_pairs_and_absent_senders_do_not_count(alignment_fn, rng):
    gaussian, phi = agents(rng)
    log_weight = np.where(np.isin(np.arange(NUM), [1, 4]), -np.inf, 0.0)
    pairs = edges_of(np.ones((NUM, NUM), bool), rng)

    @jax.jit
    def both(gaussian, phi, log_weight):
        all_pairs = pairwise.alignment_energy(
            pairwise.pair_features(gaussian, pairwise.frame_field(phi, VECTOR)),
            2.5,
            log_weight=log_weight,
            alignment_fn=alignment_fn,
        )
        listed = energy_of(gaussian, phi, 2.5, np.ones(NUM), log_weight, pairs, alignment_fn)
        return listed, all_pairs

    chex.assert_trees_all_close(*both(gaussian, phi, log_weight), rtol=1e-12)


# By default test_free_energy.py shows it.
@pytest.mark.slow
@pytest.mark.parametrize("alignment_fn", oracle.UNBOUNDED, ids=lambda f: f.__name__)
def test_a_bad_agent_never_lowers_the_energy(alignment_fn, rng):
    gaussian, phi = agents(rng, dtype=np.float32)
    everyone, ones = edges_of(~np.eye(NUM, dtype=bool)), np.ones(NUM, np.float32)
    mean = np.array(gaussian.mean)
    for bad in (np.nan, 1e20, 1e30):
        mean[1] = bad
        broken = gaussian._replace(mean=mean)
        value = energy_of(broken, phi, np.float32(2.5), ones, 0 * ones, everyone, alignment_fn)
        assert not value < np.inf


def test_a_lone_agent_and_no_edges():
    gaussian = Gaussian(np.ones((1, 3)), np.eye(3)[None])
    itself, none = np.zeros((1,), int), np.zeros((0,), int)

    @jax.jit
    def values(gaussian, phi):
        field = pairwise.frame_field(phi, VECTOR)
        return [
            edges.edge_alignment_energy(gaussian, field, Edges(ends, ends), 1.0)
            for ends in (itself, none)
        ]

    np.testing.assert_array_equal(values(gaussian, np.zeros((1, 3))), 0.0)


@pytest.mark.parametrize(
    ("receivers", "senders", "message"),
    [
        ([0, 1], [1, 7], r"edges.senders must be in \[0, 3\), got 7 in edge 1"),
        ([-1, 1], [1, 2], r"edges.receivers must be in \[0, 3\), got -1 in edge 0"),
        ([0, 1, 0], [1, 2, 1], "edges must not be listed twice, got 2 edges from sender 1 to rec"),
        ([0.0, 1.0], [1, 2], "edges.receivers must be integers, got float64"),
        ([0, 1], [1], r"edges must have .* one shape \[e\], got \(2,\) and \(1,\)"),
        ([[0]], [[1]], r"edges must have .* one shape \[e\], got \(1, 1\) and \(1, 1\)"),
    ],
)
def test_known_edges_are_checked(receivers, senders, message):
    pairs = Edges(jnp.asarray(receivers), jnp.asarray(senders))
    with pytest.raises(ValueError, match=message):
        edges.check_edges(pairs, 3)
    gaussian = Gaussian(np.zeros((3, 3)), np.tile(np.eye(3), (3, 1, 1)))

    @jax.jit
    def value(phi):
        field = pairwise.frame_field(phi, VECTOR)
        return edges.edge_alignment_energy(gaussian, field, pairs, 1.0)

    # A constant of a compiled function is known while it is traced.
    with pytest.raises(ValueError, match=message):
        value(np.zeros((3, 3)))


def test_traced_edges_out_of_range_give_nan():
    gaussian = Gaussian(np.eye(3), np.tile(np.eye(3), (3, 1, 1)))

    @jax.jit
    def value(receivers, senders):
        field = pairwise.frame_field(np.zeros((3, 3)), VECTOR)
        return edges.edge_alignment_energy(gaussian, field, Edges(receivers, senders), 1.0)

    chex.assert_tree_all_finite(value(np.asarray([0, 1]), np.asarray([1, 2])))
    for pair in ((0, 7), (7, 0), (-1, 0), (0, -1)):
        assert np.isnan(value(*np.asarray([pair, (1, 2)]).T)), pair


def test_edges_of_an_energy_of_ones_own(rng):
    """Pairs that do not count arrive with -inf and divergence 0."""
    gaussian, phi = agents(rng)
    pairs = edges_of(neighbours_of(rng))

    @jax.jit
    def seen_by_energy(gaussian, phi):
        seen = []

        def record(divergence, log_weight, over):
            seen.append((divergence, log_weight))
            return over.sum(jnp.where(log_weight > -jnp.inf, divergence, 0.0))

        field = pairwise.frame_field(phi, VECTOR)
        edges.edge_alignment_energy(gaussian, field, pairs, 1.0, alignment_fn=record)
        return seen[-1]

    divergence, log_weight = seen_by_energy(gaussian, phi)
    itself = np.asarray(pairs.receivers == pairs.senders)
    assert np.any(itself)
    np.testing.assert_array_equal(log_weight, np.where(itself, -np.inf, 0.0))
    np.testing.assert_array_equal(np.asarray(divergence)[itself], 0.0)

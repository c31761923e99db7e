"""Groups of agents: components, compactness, and divergences averaged over overlaps."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle

from vfejax.agents import clusters
from vfejax.agents.pairwise import frame_field

NUM = 12
components = jax.jit(clusters.components)
compact_clusters = jax.jit(functools.partial(clusters.compact_clusters, levels=5))


def groups_of(places, threshold=1.0, diameter=2.0, min_members=2, max_members=NUM):
    """Groups of points on a line, at distances ``(x - y)^2 / 2`` as unit Gaussians are; points
    beyond the given ones are no candidates.
    """
    places = np.asarray(places, float)
    candidate = np.arange(NUM) < places.size
    padded = np.append(places, np.zeros(NUM - places.size))
    distance = 0.5 * (padded[:, None] - padded[None]) ** 2
    label, joined = compact_clusters(
        distance,
        candidate,
        threshold=threshold,
        diameter=diameter,
        min_members=min_members,
        max_members=max_members,
    )
    assert not np.any(np.asarray(joined)[places.size :])
    label, joined = np.asarray(label), np.asarray(joined)
    return [np.flatnonzero(joined & (label == x)).tolist() for x in np.unique(label[joined])]


@pytest.mark.parametrize("seed", range(6))
def test_components_are_those_of_a_search(seed):
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.uniform(size=(NUM, NUM)) < 0.03 * (1 + seed), 1)
    linked = upper | upper.T
    reach = linked | np.eye(NUM, dtype=bool)
    for _ in range(4):
        reach = (reach.astype(int) @ reach.astype(int)) > 0
    np.testing.assert_array_equal(components(linked), np.argmax(reach, axis=1))


def test_a_long_chain_is_one_component():
    order = np.random.default_rng(0).permutation(NUM)
    linked = np.zeros((NUM, NUM), bool)
    linked[order[:-1], order[1:]] = linked[order[1:], order[:-1]] = True
    np.testing.assert_array_equal(components(linked), np.zeros(NUM))


def test_two_separated_groups_are_two():
    assert groups_of([0.0, 9.0, 0.1, 9.1, 0.2, 9.2]) == [[0, 2, 4], [1, 3, 5]]


@pytest.mark.parametrize("spacing", [1.3, 1.0, 0.7])
def test_an_evenly_spaced_chain_is_no_group(spacing):
    # Neighbours are linked, at some level or all; the ends are 40 thresholds apart.
    assert groups_of(spacing * np.arange(NUM)) == []


def test_two_tight_groups_come_apart_at_an_agent_between_them():
    assert groups_of([0.0, 0.1, 0.2, 1.5, 2.8, 2.9, 3.0]) == [[0, 1, 2], [4, 5, 6]]


def test_the_coarsest_compact_cut_is_taken():
    # The four are compact as they are, although the halved threshold would make them two pairs.
    assert groups_of([0.0, 0.1, 1.2, 1.3], threshold=1.0) == [[0, 1, 2, 3]]
    assert groups_of([0.0, 0.1, 1.2, 1.3], threshold=0.5) == [[0, 1], [2, 3]]


def test_numbers_of_members_are_limited():
    assert groups_of([0.0, 0.1, 5.0, 5.1, 5.2], min_members=3) == [[2, 3, 4]]
    assert groups_of([0.0, 0.1, 1.2, 1.3], max_members=3) == [[0, 1], [2, 3]]


def test_nan_links_nothing():
    assert groups_of([0.0, np.nan, 0.1, 0.2]) == [[0, 2, 3]]


def test_a_distance_is_the_larger_of_both_ways():
    np.testing.assert_array_equal(
        clusters.two_way(jnp.asarray([[0.0, 1.0], [3.0, 0.0]])), [[0, 3], [3, 0]]
    )


def test_no_levels_are_refused():
    with pytest.raises(ValueError, match="levels"):
        clusters.compact_clusters(
            jnp.zeros((2, 2)), jnp.ones(2, bool), threshold=1.0, diameter=1.0, levels=0
        )


def test_divergences_of_fields_are_averaged_over_the_overlap(rng):
    group = agents_oracle.ROTATIONS["vector"]
    population = agents_oracle.random_population(rng, 4, group, grid=(3,))
    chi = np.array([[1.0, 0.5, 0.0], [0.2, 1.0, 0.0], [0.0, 0.3, 1.0], [0.0, 0.0, 0.7]])
    quadrature = np.array([0.5, 1.0, 2.0])
    # The last agent is broken where it is not.
    broken = population.belief.mean.at[3, 0].set(jnp.nan)
    belief, phi = population.belief, population.phi
    actual = jax.jit(
        lambda q, phi: clusters.mean_divergences(
            q, frame_field(phi, group), jnp.asarray(chi), jnp.asarray(quadrature)
        )
    )(belief._replace(mean=broken), phi)
    at_points = jax.jit(
        jax.vmap(lambda q, phi: agents_oracle.pairwise_kl(q, phi, group), in_axes=1, out_axes=2)
    )(belief, phi)
    overlap = chi[:, None] * chi[None] * quadrature
    with np.errstate(divide="ignore"):
        expected = np.where(
            overlap.sum(-1) == 0, np.inf, np.sum(overlap * at_points, -1) / overlap.sum(-1)
        )
    assert np.isinf(expected[0, 3])
    assert np.isfinite(expected[1, 2])
    # Divergences up to 100 by products that cancel a few of their digits.
    chex.assert_trees_all_close(actual, expected, rtol=0, atol=1e-11)

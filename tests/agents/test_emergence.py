"""Condensation and dissolution of meta-agents: who joins whom, in every gauge."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import agents_oracle
from helpers import hierarchy_oracle as oracle

from vfejax.agents import emergence
from vfejax.agents.emergence import Criteria
from vfejax.agents.formation import joint_support
from vfejax.agents.hierarchy import Scales
from vfejax.beliefs.gaussian import Gaussian

GROUP = oracle.VECTOR
NUM, CAPACITIES = 8, (3, 2)
SCALES = Scales(NUM, CAPACITIES)
CRITERIA = Criteria(threshold=0.5, diameter=1.0, release=3.0)


@jax.jit
def condense(hierarchy, criteria):
    return emergence.condense(hierarchy, SCALES, GROUP, criteria)


@jax.jit
def dissolve(hierarchy, criteria):
    return emergence.dissolve(hierarchy, SCALES, GROUP, criteria)


def line(*places):
    """Places on the first axis; agents that are not named are far away and far apart."""
    found = np.zeros((NUM, 3))
    found[:, 1] = 50.0 * np.arange(NUM)
    found[: len(places), 0], found[: len(places), 1] = places, 0.0
    return found


def start(places, rng=None):
    return oracle.places_hierarchy(places, CAPACITIES, rng)[0]


def moved(hierarchy, row, shift):
    """The hierarchy with one belief moved along the first axis of the common frame."""
    population = hierarchy.population
    turned = oracle.frame(population.phi[row]) @ [shift, 0.0, 0.0]
    mean = population.belief.mean.at[row].add(jnp.asarray(turned))
    return hierarchy._replace(
        population=population._replace(belief=population.belief._replace(mean=mean))
    )


TWO = line(0.0, 5.0, 0.1, 5.1, 0.2, 5.2)


@pytest.mark.parametrize("seed", [None, 0, 1, 2])
def test_two_groups_condense_into_two_whatever_the_frames(seed):
    rng = None if seed is None else np.random.default_rng(seed)
    found, event = condense(start(TWO, rng), CRITERIA)
    np.testing.assert_array_equal(found.parent, [8, 9, 8, 9, 8, 9, 6, 7, 8, 9, 10, 11, 12])
    np.testing.assert_array_equal(np.flatnonzero(event.formed), [8, 9])
    assert event.refused == 0
    common = [
        np.linalg.inv(oracle.frame(found.population.phi[row])) @ found.population.belief.mean[row]
        for row in (8, 9)
    ]
    # The middle of each group: members agree alike but for the one in the middle.
    expected = np.array([[0.1, 0.0, 0.0], [5.1, 0.0, 0.0]])
    chex.assert_trees_all_close(np.array(common), expected, rtol=0, atol=1e-12)


def test_an_agent_that_comes_to_agree_joins_the_meta_agent_that_is_there(rng):
    found, _ = condense(start(TWO, rng), CRITERIA)
    population = found.population
    # Agent 6 takes the place of agent 0, seen from its own frame; agent 7 stays far away.
    there = oracle.frame(population.phi[6]) @ np.linalg.inv(oracle.frame(population.phi[0]))
    belief = population.belief
    chol = np.linalg.cholesky(there @ belief.chol[0] @ belief.chol[0].T @ there.T)
    belief = Gaussian(
        belief.mean.at[6].set(there @ belief.mean[0]), belief.chol.at[6].set(jnp.asarray(chol))
    )
    again, event = condense(found._replace(population=population._replace(belief=belief)), CRITERIA)
    np.testing.assert_array_equal(np.flatnonzero(event.adopted), [6])
    assert not np.any(event.formed)
    np.testing.assert_array_equal(again.parent[:8], [8, 9, 8, 9, 8, 9, 8, 7])
    # What the meta-agent believes is its own affair: it hears of its new member from now on.
    chex.assert_trees_all_equal(again.population.belief.mean[8], found.population.belief.mean[8])


def test_a_broken_meta_agent_keeps_nobody_from_the_others(rng):
    joined, _ = condense(start(TWO, rng), CRITERIA)
    orphan = joined._replace(parent=joined.parent.at[0].set(0))
    belief = orphan.population.belief
    broken = belief._replace(mean=belief.mean.at[9].set(jnp.nan))
    orphan = orphan._replace(population=orphan.population._replace(belief=broken))
    found, event = condense(orphan, CRITERIA)
    np.testing.assert_array_equal(np.flatnonzero(event.adopted), [0])
    chex.assert_trees_all_equal(found.parent, joined.parent)


def test_a_support_that_is_nan_makes_that_of_its_group_nan_beside_a_full_one():
    chi, slot = jnp.array([1.0, jnp.nan, 1.0, 0.0, 0.0]), jnp.array([3, 3, 4, 5, 5])
    np.testing.assert_array_equal(joint_support(chi, slot, Scales(3, (2,))), [np.nan, 1.0])


def test_members_hundreds_of_nats_apart_have_a_moment_match_too(rng):
    """Whose coherence is 0 in floating point."""
    wide = CRITERIA._replace(threshold=6000.0, diameter=6000.0)
    found, _ = condense(start(line(100.0, 200.0), rng), wide)
    assert found.parent[0] == found.parent[1] == 8
    mean, _ = oracle.transported(found.population.belief, found.population.phi, 8, np.zeros(3))
    chex.assert_trees_all_close(mean, np.array([150.0, 0.0, 0.0]), rtol=1e-12, atol=1e-9)


def test_an_evenly_spaced_chain_does_not_condense(rng):
    found, event = condense(start(line(*(0.8 * np.arange(NUM))), rng), CRITERIA)
    assert not np.any(event.formed)
    np.testing.assert_array_equal(found.active, np.arange(13) < NUM)


def test_a_bridge_between_two_groups_stays_outside(rng):
    found, _ = condense(start(line(0.0, 0.1, 0.2, 1.1, 2.0, 2.1, 2.2), rng), CRITERIA)
    np.testing.assert_array_equal(found.parent[:NUM], [8, 8, 8, 3, 9, 9, 9, 7])


def test_priors_count_when_they_have_a_threshold(rng):
    hierarchy = start(TWO, rng)
    population = hierarchy.population
    prior = population.prior
    prior = prior._replace(mean=prior.mean.at[2].add(30.0))
    hierarchy = hierarchy._replace(population=population._replace(prior=prior))
    assert condense(hierarchy, CRITERIA)[0].parent[2] == 8
    found, _ = condense(hierarchy, CRITERIA._replace(prior_threshold=0.5))
    np.testing.assert_array_equal(found.parent[:6], [8, 9, 2, 9, 8, 9])


def test_scales_stack_to_three(rng):
    places = line(0.0, 0.05, 0.6, 0.65, 20.0, 20.1, 20.6, 20.7)
    first, event = condense(start(places, rng), CRITERIA._replace(threshold=0.1, diameter=0.2))
    # Four pairs and three slots: one is refused, and waits.
    assert event.refused == 1
    np.testing.assert_array_equal(first.parent[:8], [8, 8, 9, 9, 10, 10, 6, 7])
    second, event = condense(first, CRITERIA)
    np.testing.assert_array_equal(np.flatnonzero(event.formed), [11])
    np.testing.assert_array_equal(second.parent[8:], [11, 11, 10, 11, 12])
    # The pair without a slot is near enough, at this threshold, to join the one beside it.
    np.testing.assert_array_equal(np.flatnonzero(event.adopted), [6, 7])
    assert event.refused == 0


def test_a_member_that_is_pulled_away_leaves_and_another_does_not(rng):
    joined, _ = condense(start(TWO, rng), CRITERIA)
    # KL(q_i || q_M) is about d^2 / 2 = 1.5 at the border.
    stays, event = dissolve(moved(joined, 4, 1.2), CRITERIA)
    assert not np.any(event.left)
    chex.assert_trees_all_equal(stays.parent, joined.parent)
    found, event = dissolve(moved(joined, 4, 2.5), CRITERIA)
    np.testing.assert_array_equal(np.flatnonzero(event.left), [4])
    np.testing.assert_array_equal(found.parent[:6], [8, 9, 8, 9, 4, 9])
    assert not np.any(event.dissolved)
    # Between the two borders an agent neither leaves nor, outside, joins.
    apart, _ = condense(start(line(0.0, 5.0, 0.1, 5.1, 1.4, 5.2), rng), CRITERIA)
    assert apart.parent[4] == 4


def test_a_meta_agent_without_members_goes_and_takes_its_membership_with_it(rng):
    places = line(0.0, 0.05, 0.6, 0.65, 20.0, 20.1)
    first, _ = condense(start(places, rng), CRITERIA._replace(threshold=0.1, diameter=0.2))
    both, _ = condense(first, CRITERIA)
    np.testing.assert_array_equal(both.parent[8:12], [11, 11, 10, 11])
    found, event = dissolve(moved(both, 0, 9.0), CRITERIA)
    np.testing.assert_array_equal(np.flatnonzero(event.left), [0])
    np.testing.assert_array_equal(np.flatnonzero(event.dissolved), [8, 11])
    np.testing.assert_array_equal(found.parent, [0, 1, 9, 9, 10, 10, *range(6, 13)])
    np.testing.assert_array_equal(np.flatnonzero(found.active[8:]), [1, 2])
    chex.assert_trees_all_equal(found.population.belief.chol[8], np.eye(3))


def test_nothing_between_scales_leaves_a_gauge_dependent_trace(rng):
    """Weights and moments of the meta-agents, seen from the common frame, are the same."""
    plain, turned = (condense(start(TWO, x), CRITERIA)[0].population for x in (None, rng))
    for row in (8, 9):
        seen = [
            oracle.transported(x.belief, np.asarray(x.phi), row, np.zeros(3))
            for x in (plain, turned)
        ]
        chex.assert_trees_all_close(*seen, rtol=0, atol=1e-12)


def test_a_common_rotation_turns_the_frame_of_a_meta_agent_with_its_members(rng):
    population = agents_oracle.random_population(rng, 13, GROUP)
    hierarchy = start(TWO)
    phi = jnp.where(np.arange(13)[:, None] < NUM, 0.3 * population.phi, 0.0)
    hierarchy = hierarchy._replace(population=hierarchy.population._replace(phi=phi))
    turn = np.tile([0.4, -0.2, 0.3], (13, 1))
    turned = hierarchy._replace(population=oracle.turned(hierarchy.population, turn))
    wide = CRITERIA._replace(threshold=50.0, diameter=90.0)
    before, after = condense(hierarchy, wide)[0], condense(turned, wide)[0]
    chex.assert_trees_all_equal(before.parent, after.parent)
    rows = np.flatnonzero(before.active[NUM:]) + NUM
    assert rows.size
    for row in rows:
        expected = oracle.frame(turn[0]) @ oracle.frame(before.population.phi[row])
        chex.assert_trees_all_close(
            oracle.frame(after.population.phi[row]), expected, rtol=0, atol=1e-12
        )


def test_on_a_field_agents_that_never_meet_do_not_join():
    """Four agents with the same belief on four points; two halves of the line."""
    chi = np.array([[1, 0.5, 0, 0], [0.5, 1, 0, 0], [0, 0, 1, 0.5], [0, 0, 0.5, 1]], float)
    places = np.zeros((4, 4, 3))
    places[:, :, 1] = np.arange(4)
    hierarchy, scales = oracle.places_hierarchy(
        places, (2,), np.random.default_rng(0), supports=jnp.asarray(chi)
    )

    @jax.jit
    def look(hierarchy):
        found = emergence.condense(hierarchy, scales, GROUP, CRITERIA)
        return found, emergence.dissolve(found[0], scales, GROUP, CRITERIA)

    (found, event), (after, _) = look(hierarchy)
    np.testing.assert_array_equal(found.parent, [4, 4, 5, 5, 4, 5])
    assert event.refused == 0
    expected = np.array([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])
    chex.assert_trees_all_close(found.supports[4:], expected, rtol=0, atol=1e-15)
    for point in (0, 1):
        belief = jax.tree.map(lambda x, c=point: x[:, c], found.population.belief)
        seen = oracle.transported(
            belief, np.asarray(found.population.phi[:, point]), 4, np.zeros(3)
        )
        chex.assert_trees_all_close(
            seen, (np.array([0.0, point, 0.0]), np.eye(3)), rtol=0, atol=1e-12
        )
    chex.assert_trees_all_equal(after.parent, found.parent)
    chex.assert_tree_all_finite(found)

"""Hierarchies as arrays of a fixed size."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import hierarchy_oracle as oracle

from vfejax.agents.hierarchy import (
    Scales,
    ancestors,
    check_hierarchy,
    initial_hierarchy,
    is_member,
    presence,
    quiet,
)


@pytest.fixture(scope="module")
def start():
    return oracle.places_hierarchy(np.arange(12.0).reshape(4, 3), (2, 1))


def test_rows_are_divided_into_scales():
    scales = Scales(4, (2, 1))
    assert scales.num_rows == 7
    assert scales.num_scales == 3
    assert [list(range(7))[rows] for rows in scales.slices] == [[0, 1, 2, 3], [4, 5], [6]]
    np.testing.assert_array_equal(scales.of_rows, [0, 0, 0, 0, 1, 1, 2])


def test_scales_pass_through_jit_as_a_static_value():
    assert jax.jit(lambda scales: jnp.zeros(scales.num_rows))(Scales(3, (2,))).shape == (5,)


@pytest.mark.parametrize(
    ("num", "capacities", "name"),
    [(0, (), "num_agents"), (2, (1, 0), "capacities.1."), (2.0, (), "num_agents")],
)
def test_a_size_that_is_no_count_is_refused(num, capacities, name):
    with pytest.raises(ValueError, match=name):
        Scales(num, capacities)


def test_the_ground_holds_the_agents_and_unit_gaussians(start):
    hierarchy, _ = start
    chex.assert_trees_all_equal(hierarchy.population.belief.mean[:4], np.arange(12.0).reshape(4, 3))
    chex.assert_trees_all_equal(hierarchy.population.belief.chol[4:], np.stack([np.eye(3)] * 3))
    chex.assert_trees_all_equal(hierarchy.population.phi[4:], np.zeros((3, 3)))
    assert not np.any(is_member(hierarchy.parent))
    np.testing.assert_array_equal(presence(hierarchy), [1, 1, 1, 1, 0, 0, 0])


def test_supports_are_padded_with_nothing(start):
    chi = np.array([0.5, 1.0, 0.0, 0.2])
    population = jax.tree.map(lambda x: x[:4], start[0].population)
    hierarchy, _ = initial_hierarchy(population, (2,), jnp.asarray(chi))
    np.testing.assert_array_equal(presence(hierarchy), [0.5, 1.0, 0.0, 0.2, 0, 0])
    with pytest.raises(ValueError, match="supports"):
        initial_hierarchy(population, (2,), jnp.ones(3))


def test_ancestors_end_at_the_top():
    parent = jnp.asarray([4, 4, 5, 3, 6, 5, 6], jnp.int32)
    expected = [[4, 4, 5, 3, 6, 5, 6], [6, 6, 2, 3, 4, 5, 6], [0, 1, 2, 3, 4, 5, 6]]
    np.testing.assert_array_equal(ancestors(parent, 3), expected)
    assert ancestors(parent, 0).shape == (0, 7)


def test_quiet_rows_hide_what_they_held(start):
    hierarchy, _ = start
    broken = jax.tree.map(lambda x: x.at[4:].set(jnp.nan), hierarchy.population)
    chex.assert_trees_all_equal(quiet(broken, hierarchy.active), hierarchy.population)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parent", jnp.zeros(7, jnp.int64)),
        ("active", jnp.zeros(6, bool)),
        ("supports", jnp.ones((7, 2))),
    ],
)
def test_an_array_that_does_not_fit_is_named(field, value, start):
    hierarchy, scales = start
    with pytest.raises(ValueError, match=field):
        check_hierarchy(hierarchy._replace(**{field: value}), scales, oracle.VECTOR)


def test_other_scales_are_refused(start):
    with pytest.raises(ValueError, match="must have 6 rows"):
        check_hierarchy(start[0], Scales(4, (2,)), oracle.VECTOR)

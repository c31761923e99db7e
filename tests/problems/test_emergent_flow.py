"""The flow of a hierarchy: it descends between events, keeps time, and never compiles again."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import hierarchy_oracle as oracle

from vfejax.agents.emergence import Criteria
from vfejax.agents.hierarchy import Scales
from vfejax.agents.hierarchy_energy import CrossScale, energy_terms
from vfejax.agents.observation import identity_observations
from vfejax.problems.emergent_flow import emergent_flow, every, information
from vfejax.types import Array

GROUP = oracle.VECTOR
NUM = 6
SCALES = Scales(NUM, (3, 1))
PLACES = np.zeros((NUM, 3))
PLACES[:, 0] = [0.0, 4.0, 0.1, 4.1, 0.2, 4.3]
CRITERIA = Criteria(threshold=0.3, diameter=0.8, release=3.0)
# Step size, criteria, every how many steps to look, and the two clocks of scale 1.
DEFAULT = {
    "step_size": 0.02,
    "criteria": CRITERIA,
    "detect_every": 4,
    "period": 1,
    "nats": np.inf,
    "values": PLACES + 0.3,
}


def flow_of(step_size, criteria, detect_every, period, nats, values, scales=SCALES):
    observations = identity_observations(jnp.asarray(values)[:, None], 0.7)
    energy_fn = functools.partial(
        energy_terms,
        scales=scales,
        generators=GROUP,
        temperature=4.0,
        cross_scale=CrossScale(blend=0.8, bottom_up=1.0, depth=1),
        observations=observations,
    )

    def clock(step: Array, received: Array) -> Array:
        return every(period)(step, received) | information(nats)(step, received)

    return emergent_flow(
        energy_fn,
        scales,
        GROUP,
        step_size,
        criteria=criteria._replace(levels=4),
        clocks=(clock,) + (every(1),) * (len(scales.capacities) - 1),
        detect_every=detect_every,
    )


@jax.jit
def begin(hierarchy):
    return flow_of(**DEFAULT).init(hierarchy)


@jax.jit
@chex.assert_max_traces(1)
def one_step(state, options):
    return flow_of(**options).step(state)


def start(seed=0):
    return begin(oracle.places_hierarchy(PLACES, (3, 1), np.random.default_rng(seed))[0])


def run(state, num, **options):
    """The states before and after every step, and what the steps say."""
    states, infos = [state], []
    for _ in range(num):
        state, info = one_step(state, {**DEFAULT, **options})
        states.append(state)
        infos.append(info)
    return states, infos


@pytest.fixture(scope="module")
def course():
    """Two groups condense at step 4, and go on."""
    return run(start(), 7)


def test_groups_condense_at_the_end_of_the_step_that_looks(course):
    _, infos = course
    expected = [[], [], [], [6, 7], [], [], []]
    assert [np.flatnonzero(info.condensed.formed).tolist() for info in infos] == expected
    np.testing.assert_array_equal(infos[-1].parent, [6, 7, 6, 7, 6, 7, *range(6, 10)])
    # assert_max_traces has held the program to one compilation.


def test_energy_falls_between_events(course):
    energies = np.array([info.energy for info in course[1]])
    falls = np.diff(energies) < 0
    assert np.all(falls[[0, 1, 3, 4, 5]])


def test_flows_of_information_sum_to_the_drop(course):
    states, infos = course
    # The event at the end of step 4 starts the terms between scales; later steps only move.
    for before, after, info in zip(states[4:-1], states[5:], infos[4:], strict=True):
        drop = np.asarray(before.between - after.between)
        chex.assert_trees_all_close(info.down + info.up, drop, rtol=0, atol=1e-13)
        assert np.all(np.abs(info.down[0]) > 1e-6)
        assert np.all(np.abs(info.up[0]) > 1e-6)
    chex.assert_trees_all_equal(infos[0].down, np.zeros(2))


def test_a_slow_clock_holds_its_scale_and_no_other(course):
    states, infos = run(course[0][4], 6, period=3, detect_every=100)
    assert [bool(info.moved[1]) for info in infos] == [False, True, False, False, True, False]
    for before, after, info in zip(states[:-1], states[1:], infos, strict=True):
        same = jax.tree.map(
            lambda x, y: bool(jnp.all(x[6:8] == y[6:8])), before.position, after.position
        )
        assert jax.tree.reduce(bool.__and__, same) == (not info.moved[1])
        assert not np.array_equal(before.position.phi[:6], after.position.phi[:6])


def test_a_clock_of_information_waits_for_the_members(course):
    states, infos = run(course[0][4], 8, period=1000, nats=2e-3, detect_every=100)
    received = np.array([state.information[1] for state in states])
    moved = np.array([bool(info.moved[1]) for info in infos])
    # What was received before the step decides; the step's own counts for the next time.
    np.testing.assert_array_equal(moved, received[:-1] > 2e-3)
    assert 0 < np.sum(moved) < 8
    assert np.all(np.diff(received)[~moved] > 0)


def test_when_no_slot_is_free_the_run_says_so_and_goes_on():
    # Six agents that would each make a group, and three slots.
    alone = CRITERIA._replace(threshold=1e-6, diameter=1e-6, min_members=1)
    (_, after), (info,) = run(start(), 1, criteria=alone, detect_every=1)
    assert info.condensed.refused == 3
    np.testing.assert_array_equal(after.parent[:NUM], [6, 7, 8, 3, 4, 5])
    assert np.isfinite(info.energy)
    chex.assert_tree_all_finite(after)


def test_members_that_are_pulled_apart_leave_and_their_meta_agent_goes(course):
    values = 6.0 * np.eye(NUM, 3)[np.array([0, 1, 2, 0, 1, 2])]
    values[3:] *= -1.0
    _, infos = run(course[0][4], 40, values=PLACES + values, detect_every=1, step_size=0.1)
    assert any(np.any(info.dissolved.left) for info in infos)
    assert any(np.any(info.dissolved.dissolved) for info in infos)
    assert np.all(np.isfinite([info.energy for info in infos]))


def test_nan_in_one_agent_stays_visible(course):
    state = course[0][4]
    gradient = state.gradient._replace(phi=state.gradient.phi.at[1, 0].set(jnp.nan))
    (_, after), (info,) = run(state._replace(gradient=gradient), 1)
    assert np.isnan(info.energy)
    assert np.any(np.isnan(after.position.phi[1]))


def test_what_an_empty_slot_holds_reaches_nothing():
    hierarchy, _ = oracle.places_hierarchy(PLACES, (3, 1), np.random.default_rng(0))
    for bad in (np.nan, np.inf, -1e30):
        population = jax.tree.map(lambda x, b=bad: x.at[NUM:].set(b), hierarchy.population)
        found = begin(hierarchy._replace(population=population))
        chex.assert_trees_all_equal(found, start())


def test_energies_and_decisions_do_not_depend_on_the_gauge():
    states = [start(), start(seed=1)]
    turns = [
        oracle.frame(new) @ oracle.frame(old).T
        for old, new in zip(*(state.position.phi[:NUM] for state in states), strict=True)
    ]
    values = [DEFAULT["values"], np.einsum("nkl,nl->nk", turns, DEFAULT["values"])]
    plain, turned = (
        run(state, 5, values=x, step_size=0.0)[1] for state, x in zip(states, values, strict=True)
    )
    assert np.any(plain[-1].active[NUM:])
    for left, right in zip(plain, turned, strict=True):
        chex.assert_trees_all_equal((left.parent, left.active), (right.parent, right.active))
        # Rotations of numbers of order 10 before they cancel.
        chex.assert_trees_all_close(left.terms, right.terms, rtol=1e-11, atol=1e-11)


@pytest.mark.slow
def test_seeds_side_by_side_are_the_seeds_one_by_one():
    states = [start(seed) for seed in range(3)]
    together = jax.tree.map(lambda *x: jnp.stack(x), *states)
    many_steps = jax.jit(jax.vmap(lambda state: flow_of(**DEFAULT).step(state)))
    for _ in range(5):
        together, _ = many_steps(together)
        states = [one_step(state, DEFAULT)[0] for state in states]
    expected = jax.tree.map(lambda *x: jnp.stack(x), *states)
    assert np.any(expected.active[:, NUM:])
    # The same sums in another order, along five steps.
    chex.assert_trees_all_close(together, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.slow
def test_the_gradient_through_a_step_that_condenses_is_that_of_finite_differences(rng):
    state = start()
    options = {**DEFAULT, "detect_every": 1}

    def outcome(mean):
        belief = state.position.belief._replace(mean=mean)
        after, info = flow_of(**options).step(
            state._replace(position=state.position._replace(belief=belief))
        )
        return info.energy + jnp.sum(after.position.phi**2) + jnp.sum(info.down), after.active

    evaluate = jax.jit(jax.value_and_grad(outcome, has_aux=True))
    mean = state.position.belief.mean
    direction = jnp.asarray(rng.normal(size=mean.shape) * (np.arange(mean.shape[0]) < NUM)[:, None])
    (_, active), gradient = evaluate(mean)
    assert np.any(active[NUM:])
    chex.assert_tree_all_finite(gradient)
    size = 1e-5
    up, down = (float(evaluate(mean + sign * size * direction)[0][0]) for sign in (1, -1))
    # The central difference is off by its step squared, and by rounding over the step.
    slope = float(jnp.sum(gradient * direction))
    assert abs((up - down) / (2 * size) - slope) < 1e-6 * abs(slope)


@pytest.mark.slow
def test_capacity_that_is_not_used_changes_nothing(course):
    hierarchy, scales = oracle.places_hierarchy(PLACES, (64, 1), np.random.default_rng(0))
    flow = flow_of(**DEFAULT, scales=scales)
    step, state = jax.jit(flow.step), jax.jit(flow.init)(hierarchy)
    for _ in course[1]:
        state, info = step(state)

    def seen(state, info):
        rows = jax.tree.map(lambda x: x[: NUM + 3], (state.position, state.active, state.parent))
        return rows, info.terms, info.down, info.up, info.condensed.refused

    # The same sums with more zeros in them, which XLA may add in another order.
    expected = seen(course[0][-1], course[1][-1])
    chex.assert_trees_all_close(seen(state, info), expected, rtol=1e-11, atol=1e-12)


def test_another_number_of_clocks_is_refused():
    with pytest.raises(ValueError, match="clocks"):
        emergent_flow(energy_terms, SCALES, GROUP, clocks=(every(1),))

"""Programs compiled ahead of time, and the choice among them by measured times."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.runs.ladder import Load, Shedding, compile_ladder, expected, follow, reach, settle

SECONDS = (0.010, 0.004, 0.001)
SHEDDING = Shedding(patience=5)


def _count(amount):
    def step(state, observation, key, mask):
        return state + jnp.where(mask, amount * observation, 0), jax.random.uniform(key)

    return step


@pytest.fixture(scope="module")
def ladder():
    zero, there = jnp.zeros((), jnp.int32), jnp.array(True)
    steps = {2: _count(10), 0: _count(1)}
    return compile_ladder(steps, zero, zero + 1, there, jax.random.key(0))


def test_all_programs_share_a_state_and_a_stream_of_keys(ladder):
    one, there = jnp.ones((), jnp.int32), jnp.array(True)
    carry, drawn = ladder.carry, []
    for program in (ladder.programs[0], ladder.programs[1], ladder.programs[0]):
        carry, number = program(carry, one, there)
        drawn.append(float(number))
    assert int(carry[0]) == 21
    assert len(set(drawn)) == 3
    assert int(ladder.programs[0](carry, *ladder.absent)[0][0]) == 21  # nothing was observed
    assert ladder.depths == (2, 0)
    assert all(0 < seconds < 1 for seconds in ladder.seconds)


def test_other_shapes_are_refused_and_never_compiled(ladder):
    with pytest.raises(TypeError, match="differ from the types for which"):
        ladder.programs[0](ladder.carry, jnp.ones(2, jnp.int32), jnp.array(True))


def test_steps_that_do_not_make_a_ladder_are_refused():
    zero, key = jnp.zeros(()), jax.random.key(0)

    def wider(state, observation, key, mask):
        return jnp.zeros(2), ()

    for steps, mask, said in (
        ({}, True, r"falling order, got \[\]"),
        ({0: _count(1.0), 1: _count(1.0)}, True, r"falling order, got \[0, 1\]"),
        ({0: _count(1.0)}, 1.0, "mask must be boolean, got float"),
        ({1: wider}, True, r"steps\[1\] must give a state like the one it takes"),
    ):
        with pytest.raises(ValueError, match=said):
            compile_ladder(steps, zero, zero, jnp.asarray(mask), key)


def _after(load, rung, *taken):
    for seconds in taken:
        load = follow(SECONDS, load, rung, seconds)
    return load


def test_a_lasting_load_of_one_rung_is_known_of_all_and_one_pause_is_not_taken_for_it():
    load = _after(Load(), 1, *[0.008] * 80)
    # 80 steps of an eighth leave (7/8)^80 = 2e-5 of the difference.
    np.testing.assert_allclose(expected(SECONDS, load, 0), 0.020, rtol=1e-3)
    np.testing.assert_allclose(expected(SECONDS, load, 2), 0.002, rtol=1e-2)
    paused = _after(Load(), 1, 0.500)
    assert expected(SECONDS, paused, 1) < 0.009  # at most about twice as much
    lasting = _after(Load(), 1, *[0.500] * 8)
    assert expected(SECONDS, lasting, 1) > 0.250


def test_depth_is_given_up_at_once_down_to_what_fits():
    for factor, rung in ((1.2, 0), (1.3, 1), (3.3, 2), (100.0, 2)):
        assert settle(SECONDS, Load(factor=factor), 0.016, SHEDDING).rung == rung


def test_depth_is_taken_back_after_a_calm_while_as_far_as_there_was_time_in_all_of_it():
    for factors, rungs in (
        ([1.0] * 5, [2, 2, 2, 2, 0]),
        ([1.0, 1.0, 1.5, 1.0, 1.0], [2, 2, 2, 2, 1]),  # 15 ms of 18 once
        ([1.0, 1.0, 4.0, 1.0, 1.0], [2, 2, 2, 2, 2]),
    ):
        load, found = Load(rung=2), []
        for factor in factors:
            load = settle(SECONDS, load._replace(factor=factor), 0.018, SHEDDING)
            found.append(load.rung)
        assert found == rungs
    # Between the shares of shed and restore nothing changes: 0.0102 < 0.01 * 1.2 < 0.0136.
    busy = Load(rung=1, factor=1.2, calm=4)
    assert settle(SECONDS, busy, 0.017, SHEDDING) == busy._replace(calm=0, patience=5)


def test_patience_doubles_to_a_limit_while_depth_cannot_be_kept_and_is_forgotten_after():
    load, patience = Load(rung=1), []
    for _ in range(5):
        while load.rung == 1:
            load = settle(SECONDS, load._replace(factor=1.0), 0.018, SHEDDING)
        load = settle(SECONDS, load._replace(factor=2.0), 0.018, SHEDDING)  # it proves too much
        patience.append(load.patience)
    assert patience == [10, 20, 40, 40, 40]
    while load.rung == 1:
        load = settle(SECONDS, load._replace(factor=1.0), 0.018, SHEDDING)
    for _ in range(50):
        load = settle(SECONDS, load, 0.018, SHEDDING)
    assert settle(SECONDS, load._replace(factor=2.0), 0.018, SHEDDING).patience == 5


def test_a_late_cycle_takes_a_cheaper_rung_and_no_deeper_one_than_the_load_allows():
    for left, rung in ((0.016, 0), (0.006, 1), (0.002, 2), (-0.1, 2)):
        assert reach(SECONDS, Load(), left, SHEDDING) == rung
    assert reach(SECONDS, Load(rung=1), 1.0, SHEDDING) == 1


def test_depth_that_takes_next_to_nothing_is_not_given_up_for_the_pauses_of_the_system():
    pauses, seconds = Load(deviation=0.006), (0.0006, 0.0004, 0.0001)
    assert settle(seconds, pauses, 0.016, SHEDDING).rung == 0  # 0.5 ms of 16 is a trifle
    assert settle(seconds, pauses._replace(rung=1), 0.016, SHEDDING).calm == 1
    assert reach(seconds, pauses, 0.008, SHEDDING) == 1
    assert settle(SECONDS, pauses, 0.016, SHEDDING).rung == 2  # and 9 ms are none

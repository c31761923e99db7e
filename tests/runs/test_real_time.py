"""The loop with deadlines, on a clock that the test moves: nothing here depends on the machine."""

import gc
import itertools
import math
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vfejax.runs.fixed_rate import Clock
from vfejax.runs.ladder import Ladder, Shedding, compile_ladder
from vfejax.runs.real_time import Reading, run

THERE = np.array(True)


class World:
    """A clock that passes in sleeps and in programs alone, and a ladder of programs that take as
    long as the test says: ``seconds[depth]`` times the ``load``, a function of the time.
    """

    def __init__(self, seconds, load=lambda time: 1.0, acting=0.0):
        self.time, self.begun, self.answers = 50.0, [], []
        self.clock = Clock(lambda: self.time, self.sleep)
        self.load, self.acting = load, acting
        depths = tuple(seconds)
        programs = tuple(self._program(depth, seconds[depth]) for depth in depths)
        self.ladder = Ladder(depths, programs, tuple(seconds.values()), 0, (None, ~THERE))

    def sleep(self, seconds):
        self.time += max(seconds, 1e-9)

    def _program(self, depth, seconds):
        def program(carry, observation, mask):
            self.begun.append(self.time - 50.0)
            self.time += seconds * self.load(self.time - 50.0)
            return carry + 1, (depth, observation, bool(mask))

        return program

    def act(self, answer):
        self.time += self.acting
        self.answers.append(answer)

    def run(self, sense=lambda: None, **options):
        options = {"rate": 100, "spin": 0.0, "clock": self.clock, **options}
        return run(self.ladder, sense, self.act, **options)


def test_ticks_do_not_drift_and_a_late_cycle_is_a_miss_that_skips_whole_periods():
    world = World({0: 0.001}, load=lambda t: 27 if 0.0295 < t < 0.0305 else 1)
    outcome = world.run(duration=0.1)
    # The cycle at 30 ms ends at 57 ms: the tick at 40 ms is skipped, and that at 50 ms begins late.
    expected = [0.0, 0.01, 0.02, 0.03, 0.057, 0.06, 0.07, 0.08, 0.09]
    np.testing.assert_allclose(world.begun, expected, rtol=0, atol=1e-6)
    record = outcome.record
    assert (record.cycles, record.misses, record.skipped, outcome.carry) == (9, 1, 1, 9)
    assert record.in_time == 0.8
    assert record.latencies.longest == pytest.approx(0.027, rel=1e-6)
    assert record.seconds == pytest.approx(0.1)
    # The cycle at 50 ms took 1 ms and began 7 ms late: both count.
    assert record.latencies.quantile(0.88) == pytest.approx(0.008, rel=0.03)


def test_ticks_after_the_end_are_not_skipped_and_time_ends_with_the_last_cycle():
    world = World({0: 0.001}, load=lambda t: 50 if t > 0.075 else 1)
    record = world.run(duration=0.1).record  # the cycle at 80 ms ends at 130 ms
    assert (record.cycles, record.misses, record.skipped) == (9, 1, 1)
    assert record.seconds == pytest.approx(0.09)
    ended = World({0: 0.001}).run(iter([None, None]).__next__)
    assert ended.record.seconds == pytest.approx(0.02)


def test_handing_the_answer_over_counts_as_latency():
    record = World({0: 0.004}, acting=0.007).run(duration=0.03).record
    assert record.misses == record.cycles == 3


def test_a_million_ticks_come_when_they_should():
    world = World({0: 1e-5})
    for _ in range(2):  # the error of a sum of periods would be near 1e-6
        world.begun.clear()
        start = world.time
        world.run(rate=3e4, duration=0.5)
        offsets = np.array(world.begun) + 50.0 - start
        np.testing.assert_allclose(offsets, np.arange(15000) / 3e4, rtol=0, atol=3e-9)


def test_observations_that_are_missing_or_too_old_leave_the_prediction():
    world = World({0: 0.001})
    ages = iter([0.0, None, 0.019, 0.021, math.nan])

    def sense():
        age = next(ages)
        return None if age is None else Reading("seen", THERE, world.time - age)

    outcome = world.run(sense)
    seen, nothing = (0, "seen", True), (0, None, False)
    assert world.answers == [seen, nothing, seen, nothing, nothing]
    assert (outcome.record.missing, outcome.record.stale) == (3, 2)
    world.answers.clear()
    world.run(iter([Reading("seen", THERE, world.time - 1)]).__next__, max_age=2.0)
    assert world.answers == [seen]


def test_a_rising_load_sheds_depth_before_any_deadline_is_missed_and_depth_returns():
    def load(time):  # up to threefold within a second, and back: 15 ms of 10 at the deepest
        return 1 + 2 * max(0.0, 1 - abs(time - 2))

    world = World({3: 0.005, 2: 0.002, 1: 0.0005}, load)
    record = world.run(duration=5, shedding=Shedding(patience=20)).record
    assert (record.misses, record.skipped, record.cycles) == (0, 0, 500)
    depths = [answer[0] for answer in world.answers]
    changes = [depth for depth, _ in itertools.groupby(depths)]
    assert changes == [3, 2, 3]
    assert record.depths == {3: depths.count(3), 2: depths.count(2), 1: 0}
    assert 100 < record.depths[2] < 300  # while the deepest would take 6 of the 10 ms or more


def test_a_sudden_overload_is_shed_within_a_few_cycles_to_the_last_rung():
    world = World({2: 0.006, 1: 0.005, 0: 0.0002}, lambda t: 20 if t > 0.5 else 1)
    record = world.run(duration=2).record
    assert record.misses + record.skipped < 40  # of the 150 ticks under load
    assert [answer[0] for answer in world.answers][-50:] == [0] * 50
    assert record.depth == 0


def test_depth_that_never_fits_is_never_planned():
    record = World({1: 0.009, 0: 0.001}).run(duration=1).record
    assert record.depths == {1: 0, 0: 100}


def test_a_status_is_published_every_second_with_what_a_supervisor_needs():
    world = World({0: 0.001}, lambda t: 35 if 0.9985 < t < 1.0005 else 1)
    told = []
    world.run(duration=2.5, watch=lambda answer: {"free_energy": 1.5}, publish=told.append)
    assert [status["cycles"] for status in told] == [100, 198, 248]
    assert [status["rate"] for status in told] == pytest.approx([100, 98, 248 / 2.5], rel=0.02)
    first, last = told[0], told[-1]
    assert (first["misses"], last["misses"], last["skipped"]) == (0, 1, 2)
    assert first["latency_p50_ms"] == pytest.approx(1.0, rel=0.024)
    assert last["latency_max_ms"] == pytest.approx(35, rel=1e-5)
    assert (last["free_energy"], last["depth"], last["missing"]) == (1.5, 0, 248)
    assert last["cycles_by_depth"] == {"0": 248}


def test_the_loop_ends_when_told_and_goes_on_from_where_it_was():
    world = World({0: 0.001})
    outcome = world.run(stopped=lambda: len(world.answers) >= 7)
    assert outcome.record.cycles == outcome.carry == 7
    world.ladder = world.ladder._replace(carry=outcome.carry)
    assert world.run(duration=0.05).carry == 12
    assert math.isnan(world.run(stopped=lambda: True).record.in_time)


def test_numbers_that_are_no_rate_or_time_are_refused():
    world = World({0: 0.001})
    for name, value in (
        ("rate", 0.0),
        ("rate", math.inf),
        ("rate", math.nan),
        ("duration", 0),
        ("max_age", -1.0),
    ):
        with pytest.raises(ValueError, match=f"^{name} must be"):
            world.run(**{name: value})


def test_a_compiled_ladder_runs_without_compilation_or_growth_and_refuses_the_rest(caplog):
    def step(state, observation, key, mask):
        state = jnp.where(mask, state + observation, state)
        return state, state

    zero = jnp.zeros(3)
    ladder = compile_ladder({0: step}, zero, zero, jnp.array(True), jax.random.key(0))
    one, there, answers = np.ones(3), np.array(True), []
    hand = World({0: 0.0})
    frozen = gc.get_freeze_count()

    def cycles(number):
        readings = (Reading(one, there, hand.time) for _ in range(number))
        hand_over = answers.append if number == 3 else lambda answer: None
        fast = {"rate": 1000, "clock": hand.clock, "spin": 0.0}
        return run(ladder, readings.__next__, hand_over, **fast)

    with jax.log_compiles():
        cycles(3)
    assert "compil" not in caplog.text.lower()
    np.testing.assert_array_equal(answers[-1], 3 * one)
    tracemalloc.start()
    cycles(2000)  # fills what Python keeps for later use
    arrays, held = len(jax.live_arrays()), [tracemalloc.get_traced_memory()[0]]
    for _ in range(3):  # a thread that another test left may allocate meanwhile
        assert cycles(2000).record.cycles == 2000
        held.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    # Two bytes a cycle; anything kept would be more than fifty, every time.
    assert np.diff(held).min() < 4000
    assert len(jax.live_arrays()) <= arrays
    assert gc.get_freeze_count() == frozen
    with pytest.raises(ValueError, match="an observation and its mask must be like"):
        run(ladder, lambda: Reading(np.ones(2), there, hand.time), print, rate=1, clock=hand.clock)

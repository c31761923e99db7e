"""Waiting for a moment, on a clock that the test moves."""

import pytest

from vfejax.runs.fixed_rate import Clock, wait_until


class Hand:
    """A clock whose time passes in sleeps alone, which return late by a share of a millisecond, and
    by a microsecond whenever it is asked.
    """

    def __init__(self):
        self.time, self.slept = 100.0, []
        self.clock = Clock(self.now, self.sleep)

    def now(self):
        self.time += 1e-6
        return self.time

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.time += seconds + 1e-4


def test_a_wait_ends_at_its_moment_although_sleeps_are_late():
    hand = Hand()
    wait_until(100.05, hand.clock, spin=3e-4)
    assert 0 <= hand.time - 100.05 < 3e-6
    assert len(hand.slept) == 1
    wait_until(100.0, hand.clock)  # has passed
    assert len(hand.slept) == 1


def test_a_long_wait_looks_ten_times_a_second_whether_to_stop():
    hand = Hand()
    wait_until(1000.0, hand.clock, stopped=lambda: hand.time > 101.0)
    assert hand.time < 101.2
    assert hand.slept == pytest.approx([0.1] * len(hand.slept))

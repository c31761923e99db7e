"""A rate that does not drift: moments on a clock, reached by sleep and a short spin."""

import time
from collections.abc import Callable
from typing import NamedTuple

__all__ = ["MONOTONIC", "Clock", "wait_until"]

_LOOK = 0.1  # seconds between looks at whether to stop


class Clock(NamedTuple):
    """A clock that never goes back, and its sleep; a test gives one whose time it decides.

    Attributes:
        now: seconds since some moment.
        sleep: ``sleep(seconds)``; it may return late.
    """

    now: Callable[[], float]
    sleep: Callable[[float], None]


MONOTONIC = Clock(time.monotonic, time.sleep)


def wait_until(
    moment: float,
    clock: Clock = MONOTONIC,
    *,
    spin: float = 3e-4,
    stopped: Callable[[], bool] = lambda: False,
) -> None:
    """Return at a moment, or as soon as it is known that it has passed.

    A sleep returns 50 to 100 microseconds late on Linux, so it ends a little early, and the rest is
    spent asking the clock.

    Args:
        moment: on the clock, in seconds.
        clock: what tells the time.
        spin: seconds that are not slept.
        stopped: asked ten times a second and while spinning; the wait ends when it is true.

    >>> start = MONOTONIC.now()
    >>> wait_until(start + 0.01)
    >>> MONOTONIC.now() >= start + 0.01
    True
    """
    while not stopped():
        left = moment - clock.now()
        if left <= 0:
            return
        if left > spin:
            clock.sleep(min(left - spin, _LOOK))

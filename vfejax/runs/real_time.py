"""A loop of perception and action at a fixed rate, with deadlines.

A cycle begins at a tick of the clock: the newest observation is taken, one compiled program makes
an answer of it, and the answer is handed over, before the next tick. Ticks are multiples of the
period since the start, so that the rate does not drift. A cycle that ends after its deadline is a
miss; ticks that pass meanwhile are skipped, never made up for. An observation that is absent, or
too old, leaves a cycle with its prediction. Where cycles come near to their deadline, the loop
changes to a cheaper program before it misses (:mod:`vfejax.runs.ladder`).

Nothing is compiled in the loop and memory does not grow, whatever its duration.
"""

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import numpy as np

from vfejax.runs.fixed_rate import MONOTONIC, Clock, wait_until
from vfejax.runs.ladder import Ladder, Load, Shedding, follow, reach, settle
from vfejax.runs.latency import Latencies
from vfejax.types import Array, PyTree

__all__ = ["Outcome", "Reading", "Record", "run"]

_TOLD_EVERY = 1.0  # seconds between statuses


class Reading(NamedTuple):
    """What was observed.

    Attributes:
        observation: with the shapes and dtypes that the ladder was compiled for.
        mask: which parts of it are there.
        time: when it was made, on the clock of the loop, in seconds.
    """

    observation: PyTree
    mask: Array | np.ndarray
    time: float


@dataclass
class Record:
    """What a loop has done so far, in constant memory.

    Attributes:
        cycles: answers.
        misses: answers that came after their deadline.
        skipped: ticks that passed while a cycle was late.
        missing: cycles without an observation, those with an old one among them.
        stale: observations that were too old.
        seconds: from the first tick to the last deadline.
        depth: that of the last cycle.
        depths: cycles by depth.
        latencies: from a tick to its answer, seconds.
    """

    cycles: int = 0
    misses: int = 0
    skipped: int = 0
    missing: int = 0
    stale: int = 0
    seconds: float = 0.0
    depth: int = 0
    depths: dict[int, int] = field(default_factory=dict)
    latencies: Latencies = field(default_factory=Latencies)

    def add(self, depth: int, latency: float, limit: float) -> None:
        """Count a cycle.

        Args:
            depth: at which it planned.
            latency: of its answer, in seconds.
            limit: the latency from which on it is a miss.
        """
        self.cycles += 1
        self.misses += not latency <= limit
        self.depth = depth
        self.depths[depth] += 1
        self.latencies.add(latency)

    @property
    def in_time(self) -> float:
        """Share of all ticks whose answer came before their deadline; NaN without any."""
        ticks = self.cycles + self.skipped
        return (self.cycles - self.misses) / ticks if ticks else math.nan

    def summary(self) -> dict[str, Any]:
        """As numbers: latencies in milliseconds."""
        quantiles = {"p50": 0.5, "p99": 0.99, "p99_9": 0.999}
        return {
            **{name: getattr(self, name) for name in ("cycles", "misses", "skipped")},
            "in_time": self.in_time,
            **{name: getattr(self, name) for name in ("missing", "stale")},
            **{
                f"latency_{name}_ms": 1e3 * self.latencies.quantile(share)
                for name, share in quantiles.items()
            },
            "latency_max_ms": 1e3 * self.latencies.longest,
            "cycles_by_depth": {str(depth): count for depth, count in self.depths.items()},
        }


class Outcome(NamedTuple):
    """Where a loop ended.

    Attributes:
        carry: state and key, for another loop to go on with (``ladder._replace(carry=...)``).
        record: what happened.
    """

    carry: PyTree
    record: Record


def run(
    ladder: Ladder,
    sense: Callable[[], Reading | None],
    act: Callable[[PyTree], None],
    *,
    rate: float,
    duration: float = math.inf,
    max_age: float | None = None,
    shedding: Shedding | None = None,
    watch: Callable[[PyTree], Mapping[str, float]] | None = None,
    publish: Callable[[Mapping[str, Any]], None] | None = None,
    stopped: Callable[[], bool] = lambda: False,
    clock: Clock = MONOTONIC,
    spin: float = 3e-4,
) -> Outcome:
    """Run the loop until its duration is over, nothing more comes, or it is told to stop.

    Args:
        ladder: of :func:`vfejax.runs.ladder.compile_ladder`.
        sense: called at every tick; gives what was observed, or None. It should not wait. The loop
            ends when it raises StopIteration, so that the ``__next__`` of an iterator will do.
        act: takes the answer of a cycle, which has been computed.
        rate: ticks per second.
        duration: seconds.
        max_age: an observation made longer ago, in seconds, counts as missing; by default two
            periods.
        shedding: when depth is given up and taken back; by default ``Shedding()``, whose patience
            is 60 cycles.
        watch: numbers of an answer that a supervisor should see, such as a free energy.
        publish: called about once a second with a status; it should not wait.
        stopped: asked at every tick.
        clock: what tells the time; the one of the readings.
        spin: seconds before a tick that are not slept, for its sake.

    Raises:
        ValueError: when rate, duration or age are no positive numbers, or an observation is not
            like the one that the ladder was compiled for.

    >>> import jax.numpy as jnp
    >>> from vfejax.runs.ladder import compile_ladder
    >>> def average(state, observation, key, mask):
    ...     state = jnp.where(mask, 0.5 * (state + observation), state)
    ...     return state, state
    >>> zero, there = jnp.zeros(()), jnp.array(True)
    >>> ladder = compile_ladder({0: average}, zero, zero, there, jax.random.key(0))
    >>> readings = iter([Reading(jnp.ones(()), there, MONOTONIC.now()), None])
    >>> answers = []
    >>> outcome = run(ladder, readings.__next__, answers.append, rate=100, max_age=60.0)
    >>> [float(x) for x in answers], outcome.record.cycles, outcome.record.missing
    ([0.5, 0.5], 2, 1)
    """
    if not 0 < rate < math.inf:
        raise ValueError(f"rate must be finite and greater than 0, got {rate}")
    oldest = 2 / rate if max_age is None else max_age
    for name, value in (("duration", duration), ("max_age", oldest)):
        if not value > 0:
            raise ValueError(f"{name} must be greater than 0, got {value}")
    shedding = Shedding() if shedding is None else shedding
    record = Record(depths=dict.fromkeys(ladder.depths, 0))
    tell = _teller(record, publish, watch)
    carry, load, period, answer = ladder.carry, Load(), 1 / rate, None
    with _quiet_collector():
        for due, seconds in _ticks(period, duration, clock, spin, stopped, record):
            try:
                observation, mask = _usable(ladder, sense(), clock, oldest, record)
            except StopIteration:
                break
            load = settle(ladder.seconds, load, period, shedding)
            begun = clock.now()
            rung = reach(ladder.seconds, load, due + period - begun, shedding)
            carry, answer = _call(ladder, rung, carry, observation, mask)
            load = follow(ladder.seconds, load, rung, clock.now() - begun)
            act(answer)
            record.seconds = seconds
            record.add(ladder.depths[rung], clock.now() - due, period)
            tell(answer)
        tell(answer, last=True)
    return Outcome(carry, record)


def _ticks(
    period: float,
    duration: float,
    clock: Clock,
    spin: float,
    stopped: Callable[[], bool],
    record: Record,
) -> Iterator[tuple[float, float]]:
    """The moments at which cycles are due, each when it has come, and the seconds from the first to
    the next one; those that passed are counted.
    """
    start, tick, number = clock.now(), 0, duration / period
    while tick < number - 0.5:
        due = start + tick * period
        wait_until(due, clock, spin=spin, stopped=stopped)
        if stopped():
            return
        yield due, (tick + 1) * period
        after = max(tick + 1, int((clock.now() - start) / period))
        record.skipped += round(min(after, number)) - tick - 1
        tick = after


def _usable(
    ladder: Ladder, reading: Reading | None, clock: Clock, max_age: float, record: Record
) -> tuple[PyTree, Array | np.ndarray]:
    """Observation and mask of a cycle; nothing where nothing new enough is there."""
    if reading is not None:
        if clock.now() - reading.time <= max_age:
            return reading.observation, reading.mask
        record.stale += 1
    record.missing += 1
    return ladder.absent


def _call(
    ladder: Ladder, rung: int, carry: PyTree, observation: PyTree, mask: Array | np.ndarray
) -> tuple[PyTree, PyTree]:
    try:
        return jax.block_until_ready(ladder.programs[rung](carry, observation, mask))
    except TypeError as error:
        raise ValueError(
            f"an observation and its mask must be like {ladder.absent}, for which the ladder was "
            f"compiled: {error}"
        ) from error


def _teller(
    record: Record,
    publish: Callable[[Mapping[str, Any]], None] | None,
    watch: Callable[[PyTree], Mapping[str, float]] | None,
) -> Callable[..., None]:
    """A function that publishes a status when a second has passed, and at the end."""
    seconds, cycles = 0.0, 0

    def tell(answer: PyTree, last: bool = False) -> None:
        nonlocal seconds, cycles
        since = record.seconds - seconds
        if publish is None or not record.cycles or (since < _TOLD_EVERY and not last):
            return
        recent = (record.cycles - cycles) / since if since > 0 else math.nan
        rate = record.cycles / record.seconds if last else recent
        watched = {} if watch is None else watch(answer)
        head = {"seconds": record.seconds, "rate": rate, "depth": record.depth}
        publish({**head, **watched, **record.summary()})
        seconds, cycles = record.seconds, record.cycles

    return tell


@contextlib.contextmanager
def _quiet_collector() -> Iterator[None]:
    """Python's collector looks through all objects of traced programs now and then, for a hundred
    milliseconds: what exists when the loop begins is left out.
    """
    frozen = gc.get_freeze_count()
    gc.freeze()  # takes no time, whatever there is
    try:
        yield
    finally:
        if not frozen:  # else the caller's own would be thawed
            gc.unfreeze()

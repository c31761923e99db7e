"""An agent at 60 Hz: how many answers come in time, and what its memory does.

    python benchmarks/real_time.py [--seconds 60] [--rate 60] [--limit 16]

A random model with 100 states, 100 observations and 4 controls, policies of length 3, and the world
that behaves as it says. A latency is the time from the tick of the clock, not from the moment at
which the loop woke up, to the moment at which the action has been handed over. The target is that
99.9 % of the cycles are under 16 ms; the machine should have nothing else to do. Memory is what the
process holds in the end less what it held after the first tenth.
"""

import argparse
import os
import platform
from typing import Any

import jax
import jax.numpy as jnp

from vfejax.inference.active_inference import policy_planner
from vfejax.inference.anytime import Choice, anytime_agent
from vfejax.inference.policies import enumerate_policies
from vfejax.problems.environments import process, random_model
from vfejax.runs import real_time
from vfejax.runs.fixed_rate import MONOTONIC
from vfejax.runs.ladder import Ladder, compile_ladder

HORIZON = 3


def resident() -> float:
    """MiB that the process holds; NaN where the system does not tell."""
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        return float("nan")


class World:
    """What the agent acts in, compiled: it moves while the agent waits for the next tick."""

    def __init__(self, model: Any, key: jax.Array) -> None:
        world = process(model)
        begin, key = jax.random.split(key)
        self.state, self.seen = world.init(begin)
        self.key, self.there = key, jnp.ones(1, bool)

        def step(state: jax.Array, action: jax.Array, key: jax.Array) -> tuple:
            key, own = jax.random.split(key)
            return (*world.step(state, action, own), key)

        action = jnp.zeros(1, int)
        self.step = jax.jit(step).lower(self.state, action, key).compile()

    def sense(self) -> real_time.Reading:
        """The newest observation."""
        return real_time.Reading(self.seen, self.there, MONOTONIC.now())

    def act(self, choice: Choice) -> None:
        """Take an action."""
        self.state, self.seen, self.key = self.step(self.state, choice.action, self.key)


def build(model: Any, world: World) -> Ladder:
    """The agent's steps, compiled."""
    planners = [policy_planner(enumerate_policies(model, h)) for h in range(HORIZON, 0, -1)]
    agent = anytime_agent(model, planners)
    steps = dict(zip(range(HORIZON, -1, -1), agent.steps, strict=True))
    return compile_ladder(steps, agent.init(), world.seen, world.there, jax.random.key(1))


def main() -> None:
    """Run the loop and print what it did."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--rate", type=float, default=60.0, help="in Hz")
    parser.add_argument("--limit", type=float, default=16.0, help="in ms")
    options = parser.parse_args()
    model = random_model(jax.random.key(0), [100], [100], [4])
    world = World(model, jax.random.key(2))
    ladder = build(model, world)
    # The latencies of the second loop are counted; the first one brings memory to where it stays.
    first = real_time.run(
        ladder, world.sense, world.act, rate=options.rate, duration=options.seconds / 10
    )
    before, arrays = resident(), len(jax.live_arrays())
    ladder = ladder._replace(carry=first.carry)
    record = real_time.run(
        ladder, world.sense, world.act, rate=options.rate, duration=options.seconds
    ).record
    grown, kept = resident() - before, len(jax.live_arrays()) - arrays
    report(record, ladder, options.limit)
    print(f"memory after {options.seconds / 10:g} s: {grown:+.1f} MiB, {kept:+d} arrays")
    device = f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores)"
    print(f"jax {jax.__version__}, python {platform.python_version()}, {device}")


def report(record: real_time.Record, ladder: Ladder, limit: float) -> None:
    """Print latencies and depths."""
    print("depth | program, ms | cycles\n--- | ---: | ---:")
    for depth, seconds in zip(ladder.depths, ladder.seconds, strict=True):
        print(f"{depth} | {1e3 * seconds:.3f} | {record.depths[depth]}")
    under = record.latencies.share_below(1e-3 * limit)
    told = record.summary()
    print(
        f"\n{record.cycles} cycles in {record.seconds:.0f} s: "
        f"{100 * under:.3f} % under {limit:g} ms (target: 99.9 %)\n"
        f"latency: median {told['latency_p50_ms']:.2f}, 99 % {told['latency_p99_ms']:.2f}, "
        f"99.9 % {told['latency_p99_9_ms']:.2f}, longest {told['latency_max_ms']:.2f} ms\n"
        f"after their deadline: {record.misses}; ticks skipped: {record.skipped}"
    )


if __name__ == "__main__":
    main()

"""Planners on a chain of cues: the time of one plan, its memory, and whether it asks first.

    python benchmarks/planning.py [--quick] [--cues 4 6 8]

In ``cue_chain(n)`` the last of n cues tells which of two sides pays, and every cue is told only
where the one before was just seen, so that asking costs n + 1 steps. All fixed policies of n + 2
steps are listed; sophisticated inference follows the two most probable outcomes; tree search is by
mctx (pip install mctx). A plan is that of an agent at the start. Its time is the best of three
calls by the clock, its memory what XLA sets aside. What would need more memory than --limit GiB is
not run.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vfejax.inference.active_inference import Planner, policy_planner, sophisticated_planner
from vfejax.inference.policies import enumerate_policies
from vfejax.inference.pomdp import POMDP
from vfejax.inference.tree_search import tree_search_planner
from vfejax.problems.environments import cue_chain

GIBIBYTE = 2**30
GO_ON = 1  # the control that goes to the next cue


def listed(model: POMDP, horizon: int) -> Planner:
    """Values all sequences of controls."""
    return policy_planner(enumerate_policies(model, horizon))


def searched(num_simulations: int) -> Callable[[POMDP, int], Planner]:
    """Builds a tree of so many nodes."""

    def make(model: POMDP, horizon: int) -> Planner:
        return tree_search_planner(horizon, jax.random.key(0), num_simulations=num_simulations)

    return make


PLANNERS: dict[str, Callable[[POMDP, int], Planner]] = {
    "all fixed policies": listed,
    "`sophisticated`, two outcomes": lambda _, horizon: sophisticated_planner(
        horizon, num_outcomes=2
    ),
    "`tree_search`, 512 nodes": searched(512),
    "`tree_search`, 2048 nodes": searched(2048),
}


def cell(make: Callable[[POMDP, int], Planner], cues: int, limit: float) -> str:
    """Time and memory of one plan, and what it does where it does not ask first."""
    model = cue_chain(cues)
    try:
        planner = make(model, cues + 2)
        program = jax.jit(planner).lower(model, model.D).compile()
    except (ValueError, ImportError) as error:
        return f"refused: {error}"
    memory = program.memory_analysis().temp_size_in_bytes
    if memory > limit * GIBIBYTE:
        return f"not run: {memory / GIBIBYTE:.1f} GiB"
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        plan = jax.block_until_ready(program(model, model.D))
        best = min(best, time.perf_counter() - start)
    asks = int(jnp.argmax(plan.controls[0])) == GO_ON
    return f"{best:.3f} s, {memory / 2**20:.0f} MiB" + ("" if asks else ", does not ask")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="two cues, to see that it runs")
    parser.add_argument("--cues", type=int, nargs="+", default=[4, 6, 8])
    parser.add_argument("--limit", type=float, default=4.0, help="memory of a plan, in GiB")
    options = parser.parse_args()
    chains = [2] if options.quick else options.cues
    print("| planner | " + " | ".join(f"{n} cues, horizon {n + 2}" for n in chains) + " |")
    print("| --- |" + " ---: |" * len(chains))
    for name, make in PLANNERS.items():
        cells = [cell(make, cues, options.limit) for cues in chains]
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
    device = f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores)"
    print(f"\njax {jax.__version__}, python {platform.python_version()}, {device}")


if __name__ == "__main__":
    main()

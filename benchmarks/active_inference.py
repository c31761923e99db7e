"""An agent's step beside pymdp: beliefs from an observation, and the posterior over policies.

    python benchmarks/active_inference.py [--quick] [--batch 1 64] [--limit 4]

Random models with 100 states, 100 observations and 4 controls, policies of length 1 to 4 and 6
(4096 policies), a T-maze with policies of length 1 and 4, and a grid of 15 x 15 places with
policies of length 3. Both are compiled by the same jax before they are timed, with their models as
arguments (ours with the entropies of its observations, which are taken once for a model), and take
turns; a time is the best of up to 75 calls. A ratio is theirs / ours, of times
and of temporary memory as XLA reports it. Compile times are seconds of the processor.

Both use the sum of information over modalities here, as pymdp has no other, and their posteriors
and values are compared before anything is timed. pymdp is optional (pip install
inferactively-pymdp): without it only our columns are shown. It runs in float32, as ours does here.
"""

import argparse
import os
import platform
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.expected_free_energy import expected_free_energy
from vfejax.inference.information_gain import observation_entropies
from vfejax.inference.policies import enumerate_policies, policy_posterior
from vfejax.inference.pomdp import POMDP, infer_states
from vfejax.inference.pomdp.pymdp_arrays import to_pymdp
from vfejax.problems.environments import random_model, t_maze
from vfejax.problems.grid_world import grid_world

try:
    from pymdp.agent import Agent
except ImportError:
    Agent = None

MEBIBYTE = 2**20


def grid(size: int) -> POMDP:
    """An empty grid with one goal, in the far corner."""
    rows = [["."] * size for _ in range(size)]
    rows[0][0], rows[-1][-1] = "S", "1"
    return grid_world("\n".join("".join(row) for row in rows))


def cases(quick: bool) -> dict[str, tuple[POMDP, int]]:
    """Models and horizons."""
    found = {f"T-maze, horizon {h}": (t_maze(), h) for h in ((1,) if quick else (1, 4))}
    size = 10 if quick else 100
    large = random_model(jax.random.key(0), [size], [size], [4])
    horizons = (1, 2) if quick else (1, 2, 3, 4, 6)
    found |= {f"{size} states, horizon {h}": (large, h) for h in horizons}
    side = 4 if quick else 15
    return found | {f"grid {side}, horizon 3": (grid(side), 3)}


def ours(model: POMDP, horizon: int) -> Callable:
    """One step of a batch of agents with beliefs of their own."""
    policies = enumerate_policies(model, horizon)

    def step(model: POMDP, entropies: tuple, observations: jax.Array, priors: tuple) -> tuple:
        def one(observation: jax.Array, prior: tuple) -> tuple:
            beliefs, _ = infer_states(model, list(observation), prior)
            values = expected_free_energy(
                model, beliefs, policies, joint=False, entropies=entropies
            ).neg_efe
            return beliefs, policy_posterior(values, 1.0), values

        return jax.vmap(one)(observations, priors)

    return step


def theirs(model: POMDP, horizon: int, batch: int) -> tuple[Any, Callable]:
    """The same by pymdp: the agent, and a step of it."""
    agent = Agent(**to_pymdp(model), policy_len=horizon, batch_size=batch, gamma=1.0)

    def step(agent: Any, observations: list, priors: list) -> tuple:
        beliefs = agent.infer_states(observations, priors)
        return beliefs, *agent.infer_policies(beliefs)

    return agent, step


def compiled(run: Callable, *arrays: Any) -> tuple[Callable[[], Any], float, int]:
    """The compiled call, its processor seconds of compilation and bytes of temporary memory."""
    start = time.process_time()
    program = jax.jit(run).lower(*arrays).compile()
    seconds = time.process_time() - start
    memory = program.memory_analysis().temp_size_in_bytes
    return lambda: jax.block_until_ready(program(*arrays)), seconds, memory


def in_turns(methods: list[Callable[[], Any]]) -> list[float]:
    """Best seconds of each over up to 25 rounds or 10 s; in a round each runs three times, as what
    ran before it leaves the caches cold.
    """
    best, began = [np.inf] * len(methods), time.perf_counter()
    for _ in range(25):
        for i, method in enumerate(methods):
            for _ in range(3):
                start = time.perf_counter()
                method()
                best[i] = min(best[i], time.perf_counter() - start)
        if time.perf_counter() - began > 10:
            break
    return best


def row(name: str, model: POMDP, horizon: int, batch: int, limit: float) -> None:
    """Measure one case and print it."""
    rng = np.random.default_rng(0)
    seen = np.stack([rng.integers(n, size=batch) for n in model.num_observations], axis=1)
    if "states" not in name:  # in a maze only what is seen at the start fits the belief
        seen[:] = 0
    priors = tuple(jnp.broadcast_to(d, (batch, d.size)) for d in model.D)
    entropies = observation_entropies(model)
    mine = compiled(ours(model, horizon), model, entropies, jnp.asarray(seen), priors)
    line = f"| {name}, batch {batch} |"
    if Agent is None:
        seconds = in_turns([mine[0]])[0]
        print(f"{line} {1e3 * seconds:.2f} | {mine[1]:.1f} | {mine[2] / MEBIBYTE:.1f} | | | | | |")
        return
    agent, step = theirs(model, horizon, batch)
    observations = [jnp.asarray(seen[:, m : m + 1]) for m in range(seen.shape[1])]
    other = compiled(step, agent, observations, list(priors))
    if other[2] > limit * 1024 * MEBIBYTE:
        seconds = in_turns([mine[0]])[0]
        print(
            f"{line} {1e3 * seconds:.2f} | {mine[1]:.1f} | {mine[2] / MEBIBYTE:.1f} | not run | "
            f"{other[1]:.1f} | {other[2] / MEBIBYTE:.1f} | | {other[2] / max(mine[2], 1):.0f} |",
            flush=True,
        )
        return
    beliefs, posterior, values = mine[0]()
    their_beliefs, their_posterior, their_values = other[0]()
    for q, p in zip(beliefs, their_beliefs, strict=True):
        np.testing.assert_allclose(q, p[:, -1], atol=1e-5)
    np.testing.assert_allclose(values, their_values, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(posterior, their_posterior, atol=1e-5)
    times = in_turns([mine[0], other[0]])
    print(
        f"{line} {1e3 * times[0]:.2f} | {mine[1]:.1f} | {mine[2] / MEBIBYTE:.1f} | "
        f"{1e3 * times[1]:.2f} | {other[1]:.1f} | {other[2] / MEBIBYTE:.1f} | "
        f"{times[1] / times[0]:.1f} | {other[2] / max(mine[2], 1):.0f} |",
        flush=True,
    )


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="small models, to see that it runs")
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 64])
    parser.add_argument("--limit", type=float, default=4.0, help="memory for pymdp, in GiB")
    options = parser.parse_args()
    print(
        "| step | ours, ms | compile, s | MiB | pymdp, ms | compile, s | MiB | times | memory |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"
    )
    for name, (model, horizon) in cases(options.quick).items():
        for batch in options.batch:
            row(name, model, horizon, batch, options.limit)
    device = f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores)"
    print(f"\njax {jax.__version__}, python {platform.python_version()}, {device}")


if __name__ == "__main__":
    main()

"""Alignment energy of a population whose agents are shared out over host devices, value and
gradient: bytes per device by devices, error against one device, and one large population.

    python benchmarks/population_mesh.py [--agents 131072] [--devices 2 4 8] [--compare 8192]

ring     ``vfejax.agents.ring``: receivers stay, senders travel round
placed   the same arrays on the same devices without a method: XLA gathers the receivers on every
         device and adds up parts of rows, block by block
one      a single device

All host devices share the cores of one machine, so more of them are not faster there. What counts
is the processor time, which should not grow with them, and what a device holds: arguments, results
and temporary memory of the compiled program. Times are those of the call that took the least
processor time: seconds that passed, and seconds of all cores. Exchanges are the collectives that
run, those in a loop as often as it turns. Errors are those against one device in float64: the
largest difference over the largest entry, of any array.
"""

import argparse
import os
import platform
import re
import resource
import time
from functools import partial

parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
parser.add_argument("--agents", type=int, default=131_072, help="size of the large population")
parser.add_argument("--devices", type=int, nargs="+", default=[2, 4, 8])
parser.add_argument("--compare", type=int, default=8192, help="agents where all methods run")
OPTIONS = parser.parse_args()

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUM_CPU_DEVICES"] = str(max(OPTIONS.devices))

import jax  # noqa: E402
import numpy as np  # noqa: E402
from jax.sharding import AxisType, NamedSharding, PartitionSpec  # noqa: E402

from vfejax.agents import pairwise  # noqa: E402
from vfejax.agents.free_energy import Weights, free_energy  # noqa: E402
from vfejax.agents.pairwise import Method  # noqa: E402
from vfejax.agents.population import Population  # noqa: E402
from vfejax.agents.ring import ring  # noqa: E402
from vfejax.beliefs.gaussian import Gaussian  # noqa: E402
from vfejax.geometry import irreps  # noqa: E402


def population(num: int, k: int = 3) -> tuple[np.ndarray, ...]:
    """Means, factors and frames of a random population."""
    rng = np.random.default_rng(num)
    chol = np.tril(0.2 * rng.standard_normal((num, k, k)), -1)
    chol += np.eye(k) * rng.uniform(0.7, 1.3, (num, k, 1))
    arrays = rng.standard_normal((num, k)), chol, rng.uniform(-1.5, 1.5, (num, 3))
    return tuple(array.astype(np.float32) for array in arrays)


def energy(method: Method, mean: jax.Array, chol: jax.Array, phi: jax.Array) -> jax.Array:
    """Alignment energy alone."""
    belief = Gaussian(mean, chol)
    agents = Population(belief, belief, phi)
    weights = Weights(0, 1, 0, 0)
    return free_energy(agents, irreps.so3((1,)), weights=weights, temperature=10.0, method=method)


def compiled(name: str, num: int, devices: int, dtype: str):
    """The program of a method for one size, and where its arguments belong."""
    mesh = jax.make_mesh(
        (devices,), ("data",), axis_types=(AxisType.Auto,), devices=jax.devices()[:devices]
    )
    of_agents = NamedSharding(mesh, PartitionSpec("data"))
    shapes = [
        jax.ShapeDtypeStruct((num, *shape), dtype, sharding=of_agents)
        for shape in ((3,), (3, 3), (3,))
    ]
    method = ring(mesh, "data") if name == "ring" else pairwise.alignment_energy
    slope = jax.jit(jax.value_and_grad(partial(energy, method), argnums=(0, 1, 2)))
    return slope.lower(*shapes).compile(), of_agents


def held(program) -> float:
    """Megabytes that one device holds."""
    memory = program.memory_analysis()
    parts = memory.argument_size_in_bytes, memory.output_size_in_bytes, memory.temp_size_in_bytes
    return sum(parts) / 2**20


def exchanges(program) -> int:
    """Collectives that run: those in a loop once for each turn."""
    computations = re.split(r"\n\n+", program.as_text())
    name = re.compile(r"^(?:ENTRY )?%?([\w.\-]+)")
    bodies = {found[1]: text for text in computations if (found := name.match(text.strip()))}
    kinds = r" (?:all-gather|all-reduce|collective-permute|all-to-all)(?:-start)?\("

    def count(text: str) -> int:
        total = len(re.findall(kinds, text))
        for line in re.findall(r".* while\(.*", text):
            turns = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            body = re.search(r"body=%?([\w.\-]+)", line)
            if body:
                total += (int(turns[1]) if turns else 1) * count(bodies[body[1]])
        for called in re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", text):
            if called in bodies and " call(" in text:
                total += count(bodies[called])
        return total

    entry = next(text for text in computations if text.strip().startswith("ENTRY"))
    return count(entry)


def run(program, of_agents: NamedSharding, num: int, dtype: str, calls: int):
    """Value and gradient; seconds that pass and processor seconds of the call that took least."""
    arrays = jax.device_put([x.astype(dtype) for x in population(num)], of_agents)
    seconds = []
    for _ in range(calls):
        began, busy = time.perf_counter(), time.process_time()
        found = jax.block_until_ready(program(*arrays))
        seconds.append((time.process_time() - busy, time.perf_counter() - began))
    return jax.tree.map(np.asarray, found), min(seconds)


def error(found, expected) -> float:
    """Largest difference of any array, over its largest entry."""
    pairs = zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True)
    return max(float(np.max(np.abs(a - b)) / np.max(np.abs(b))) for a, b in pairs)


def main() -> None:
    """Compare where all methods run, then the large population."""
    jax.config.update("jax_enable_x64", True)
    cores = len(os.sched_getaffinity(0))
    print(f"jax {jax.__version__}, {cores} cores of {platform.machine()}, k = 3\n")
    header = f"{'agents':>8} {'method':>7} {'devices':>8} {'MiB/device':>11} {'exchanges':>10}"
    print(f"{header} {'passed s':>8} {'cores s':>8} {'error':>8}")

    def row(name: str, num: int, devices: int, expected=None, dtype="float32", calls: int = 3):
        program, of_agents = compiled(name, num, devices, dtype)
        found, (busy, passed) = run(program, of_agents, num, dtype, calls)
        wrong = "" if expected is None else f"{error(found, expected):8.0e}"
        head = f"{num:8d} {name:>7} {devices:8d} {held(program):11.1f} {exchanges(program):10d}"
        print(f"{head} {passed:8.2f} {busy:8.2f} {wrong:>8} {dtype}", flush=True)
        return found

    expected = row("one", OPTIONS.compare, 1, dtype="float64")
    row("ring", OPTIONS.compare, max(OPTIONS.devices), expected, "float64")
    row("one", OPTIONS.compare, 1, expected)
    for devices in OPTIONS.devices:
        for name in ("placed", "ring"):
            row(name, OPTIONS.compare, devices, expected)
    if OPTIONS.agents:
        value, gradient = row("ring", OPTIONS.agents, max(OPTIONS.devices), calls=1)
        finite = all(np.all(np.isfinite(x)) for x in gradient)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"\nenergy {value:.6g} nats, gradient finite: {finite}")
        print(f"peak memory of the whole process {peak:.2f} GiB")


if __name__ == "__main__":
    main()

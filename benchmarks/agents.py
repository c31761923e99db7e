"""Value and gradient of the belief-alignment energy of n agents, side by side in one run; then a
step of a population with meta-agents and one without.

    python benchmarks/agents.py [--quick] [--cases 512x9 64x64x9] [--steps 64 512]

ours     common frame, streamed blocks, jit (float32, closed-form rotations)
(a)      the energy alone in vectorised NumPy, n x n x k x k
(b)      batched n x n x k x k autograd in PyTorch
(c)      the common-frame algorithm in eager PyTorch autograd, n x n logits
floor    three feature products (logits and the gradients of both sides) and two exponentials per
         pair, streamed in JAX
step     a step of population_flow (theirs) and one of emergent_flow on the same agents (ours), with
         slots for n / 8 and n / 64 meta-agents, groups of eight that have condensed, and a look for
         groups every 10 steps, which is part of the time

Fields have a third number, the points of their grid (64x64x9: 64 agents on 64 points, k = 9). They
have no rivals here, but two rows: the alignment alone, and every term (self-coupling, alignment and
direct observations) over the same floor. The floor holds the arithmetic of pairs, 6 n^2 f for n
agents with f features. What each agent needs once, its frame, features and their slopes, is not in
it: at k = 9 about 22000 operations, which is as much again as the pairs of 64 agents.

A ratio is theirs / ours (above 1: we are faster). Methods run interleaved; times are medians.
PyTorch is optional: without it (b) and (c) are left out; it runs on a GPU where JAX does. Before
anything is timed, every energy, and the gradient norms of (b) and (c), are checked against ours.
"""

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from agents_rivals import SPINS, TEMPERATURE, rivals, torch

from vfejax.agents import free_energy, hierarchy, hierarchy_energy
from vfejax.agents.free_energy import Weights
from vfejax.agents.observation import identity_observations
from vfejax.agents.population import Population, constrain, unconstrain
from vfejax.beliefs.gaussian import Gaussian
from vfejax.dynamics.rollout import rollout
from vfejax.geometry import irreps
from vfejax.problems.emergent_flow import emergent_flow
from vfejax.problems.population_flow import population_flow

BLOCK_ENTRIES = 2**20  # pairs in a block of the floor: 4 MB, as in the library


def population(num: int, k: int, grid: tuple[int, ...] = ()) -> tuple[np.ndarray, ...]:
    """Means, factors and frames of a random population, float32."""
    rng = np.random.default_rng(num + k)
    shape = (num, *grid)
    chol = np.tril(0.2 * rng.standard_normal((*shape, k, k)), -1) + np.eye(k) * rng.uniform(
        0.7, 1.3, (*shape, k, 1)
    )
    arrays = rng.standard_normal((*shape, k)), chol, rng.uniform(-1.5, 1.5, (*shape, 3))
    return tuple(array.astype(np.float32) for array in arrays)


def ours(arrays: tuple[np.ndarray, ...], k: int, *, every_term: bool = False):
    """Compiled value and gradient of the library, with its compile time and temporary memory."""
    group = irreps.so3(SPINS[k])
    weights = Weights(1, 1, 0, 1) if every_term else Weights(0, 1, 0, 0)
    seen = identity_observations(jnp.asarray(arrays[0][:, None]), 0.5)

    def energy(mean, chol, phi):
        belief = Gaussian(mean, chol)
        prior = Gaussian(jnp.zeros_like(mean), jnp.broadcast_to(jnp.eye(k), chol.shape))
        return free_energy.free_energy(
            Population(belief, prior, phi),
            group,
            weights=weights,
            temperature=TEMPERATURE,
            observations=seen,
        )

    start = time.perf_counter()
    compiled = jax.jit(jax.value_and_grad(energy, argnums=(0, 1, 2))).lower(*arrays).compile()
    seconds = time.perf_counter() - start
    inputs = [jnp.asarray(x) for x in arrays]
    memory = compiled.memory_analysis().temp_size_in_bytes
    return (lambda: jax.block_until_ready(compiled(*inputs))), seconds, memory


def floor(num: int, k: int, grid: tuple[int, ...] = ()) -> Callable[[], object]:
    """The arithmetic that value and gradient cannot do without: one product for the logits, two for
    the gradient, two exponentials.
    """
    width = k * (k + 1) // 2 + k + 2
    rng = np.random.default_rng(0)
    left, right = (
        jnp.asarray(rng.uniform(0, 1 / width, (*grid, num, width)), jnp.float32) for _ in range(2)
    )
    size = max(1, min(num, BLOCK_ENTRIES // num))
    product = partial(jnp.matmul, precision="highest")

    def sweep(left, right):
        def block(total, rows):
            slope = jnp.exp(-jnp.exp(product(rows, right.T)))
            return total + product(slope.T, rows), product(slope, right)

        return jax.lax.scan(block, jnp.zeros_like(right), left.reshape(num // size, size, width))

    sweep = jax.jit(jax.vmap(sweep) if grid else sweep)
    return lambda: jax.block_until_ready(sweep(left, right))


def interleaved(
    methods: dict[str, Callable[[], object]], firsts: dict[str, float]
) -> dict[str, float]:
    """Median seconds of each method. Every round runs all of them, seven rounds or 6 s; what takes
    above 3 s is not run again.
    """
    times = {name: [seconds] if seconds > 3 else [] for name, seconds in firsts.items()}
    began = time.perf_counter()
    for _ in range(7):
        for name, method in methods.items():
            if firsts[name] <= 3:
                start = time.perf_counter()
                method()
                times[name].append(time.perf_counter() - start)
        if time.perf_counter() - began > 6:
            break
    return {name: statistics.median(values) for name, values in times.items()}


def _norm(gradient) -> float:
    """Norm of the gradient in means, factors (the triangle in use) and frames."""
    host = (x.cpu() if torch is not None and isinstance(x, torch.Tensor) else x for x in gradient)
    mean, chol, phi = (np.asarray(x, np.float64) for x in host)
    return float(np.sqrt(np.sum(mean**2) + np.sum(np.tril(chol) ** 2) + np.sum(phi**2)))


def _timed(method: Callable[[], object]) -> tuple[object, float]:
    start = time.perf_counter()
    result = method()
    return result, time.perf_counter() - start


def case(num: int, k: int) -> None:
    """Check, time and print one size."""
    arrays = population(num, k)
    mine, compile_seconds, memory = ours(arrays, k)
    (value, gradient), seconds = _timed(mine)
    value, norm = float(value), _norm(gradient)
    methods = {"ours": mine, **rivals(num, k, arrays), "floor": floor(num, k)}
    firsts = {"ours": seconds}
    for name, method in list(methods.items())[1:]:
        result, firsts[name] = _timed(method)
        if name == "floor":
            _, firsts[name] = _timed(method)  # the first one compiled
            continue
        # float32 against float32, summed over n^2 pairs whose terms cancel: four digits are what
        # the slower forms give.
        assert abs(result[0] - value) <= 1e-3 * abs(value), (name, result[0], value)
        assert result[1] is None or abs(_norm(result[1]) - norm) <= 1e-3 * norm, (
            name,
            _norm(result[1]),
            norm,
        )
    times = interleaved(methods, firsts)
    for name in list(methods)[1:]:
        mine_ms, theirs_ms = 1e3 * times["ours"], 1e3 * times[name]
        print(
            f"{name:<18} {num:>6} {k:>2} {mine_ms:>10.2f} {theirs_ms:>10.2f} "
            f"{theirs_ms / mine_ms:>9.2f} {memory / 1e6:>9.1f} "
            f"{compile_seconds:>8.1f} {compile_seconds + firsts['ours']:>7.1f}",
            flush=True,
        )


def groups(num: int) -> Population:
    """Groups of eight agents that agree, in frames of their own, float32."""
    rng = np.random.default_rng(num)
    centre = 3.0 * rng.standard_normal((-(-num // 8), 3))
    mean = np.repeat(centre, 8, axis=0)[:num] + 0.05 * rng.standard_normal((num, 3))
    phi = rng.uniform(-1.0, 1.0, (num, 3))
    frames = irreps.so3((1,)).exponential(jnp.asarray(phi), irreps.so3_generators((1,)))
    mean, chol = np.einsum("nkl,nl->nk", frames, mean), np.tile(0.5 * np.eye(3), (num, 1, 1))
    mean, chol, phi = (jnp.asarray(x, jnp.float32) for x in (mean, chol, phi))
    return Population(Gaussian(mean, chol), Gaussian(mean, chol), phi)


def steps(num: int) -> None:
    """Time and print a step with and without meta-agents, K = 3."""
    group, agents = irreps.so3((1,)), groups(num)
    observations = identity_observations(agents.belief.mean[:, None], 0.5)
    shared = {"temperature": TEMPERATURE, "observations": observations}
    start, scales = hierarchy.initial_hierarchy(agents, (num // 8, max(1, num // 64)))

    def energy(x):
        return free_energy.free_energy(constrain(x), group, **shared)

    energy_fn = partial(hierarchy_energy.energy_terms, scales=scales, generators=group, **shared)
    flows = {
        "ours": (emergent_flow(energy_fn, scales, group), start),
        "theirs": (population_flow(energy, group), unconstrain(agents)),
    }
    methods, firsts, compiling = {}, {}, {}
    for name, (flow, position) in flows.items():
        state = jax.jit(flow.init)(position)
        began = time.perf_counter()
        ten = jax.jit(lambda state, flow=flow: rollout(flow, state, 10)[0]).lower(state).compile()
        compiling[name] = time.perf_counter() - began
        memory = ten.memory_analysis().temp_size_in_bytes
        state, firsts[name] = _timed(partial(lambda f, x: jax.block_until_ready(f(x)), ten, state))
        if name == "ours":
            assert int(jnp.sum(state.active)) > num, "no meta-agent has formed"
            ours_memory = memory
        methods[name] = partial(lambda f, x: jax.block_until_ready(f(x)), ten, state)
    times = interleaved(methods, firsts)
    ours_ms, theirs_ms = 100 * times["ours"], 100 * times["theirs"]
    print(
        f"{'step, emergence':<18} {num:>6} {3:>2} {ours_ms:>10.2f} {theirs_ms:>10.2f} "
        f"{theirs_ms / ours_ms:>9.2f} {ours_memory / 1e6:>9.1f} {compiling['ours']:>8.1f} "
        f"{compiling['ours'] + firsts['ours']:>7.1f}",
        flush=True,
    )


def field_case(num: int, points: int, k: int) -> None:
    """Time and print a field: the alignment alone and every term, against the floor."""
    arrays = population(num, k, (points,))
    alone, every = ours(arrays, k), ours(arrays, k, every_term=True)
    methods = {"alignment": alone[0], "every term": every[0], "floor": floor(num, k, (points,))}
    firsts = {}
    for name, method in methods.items():
        _, firsts[name] = _timed(method)
    _, firsts["floor"] = _timed(methods["floor"])  # the first one compiled
    times = interleaved(methods, firsts)
    for name, (_, compile_seconds, memory) in (("alignment", alone), ("every term", every)):
        print(
            f"{'floor, ' + name:<18} {f'{num}x{points}':>6} {k:>2} {1e3 * times[name]:>10.2f} "
            f"{1e3 * times['floor']:>10.2f} {times['floor'] / times[name]:>9.2f} "
            f"{memory / 1e6:>9.1f} {compile_seconds:>8.1f} {compile_seconds + firsts[name]:>7.1f}",
            flush=True,
        )


def _size(text: str) -> tuple[int, ...]:
    numbers = text.split("x")
    fits = len(numbers) in (2, 3) and all(number.isdigit() for number in numbers)
    if not (fits and int(numbers[-1]) in SPINS):
        raise argparse.ArgumentTypeError(
            f"{text!r} is not like 512x9 or 64x64x9 (k: {', '.join(map(str, SPINS))})"
        )
    return tuple(int(number) for number in numbers)


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="up to 512 agents only")
    parser.add_argument(
        "--cases",
        nargs="+",
        type=_size,
        metavar="N[xPOINTS]xK",
        help="these sizes only, such as 512x9 2048x3 64x64x9",
    )
    parser.add_argument(
        "--steps", nargs="*", type=int, metavar="N", help="these steps only, such as 64 512"
    )
    options = parser.parse_args()
    numbers = (32, 64, 128, 512) if options.quick else (32, 64, 128, 512, 2048, 8192, 16384)
    sizes = [(num, k) for k in SPINS for num in numbers] + [(64, 64, k) for k in SPINS]
    print(
        f"{'what':<18} {'n':>6} {'k':>2} {'ours ms':>10} {'theirs ms':>10} {'ratio':>9} "
        f"{'temp MB':>9} {'compile':>8} {'first s':>7}"
    )
    cases, nums = sizes, (64, 512, 4096)
    if options.cases is not None or options.steps is not None:
        cases, nums = options.cases or [], options.steps or ()
    for size in cases:
        (case if len(size) == 2 else field_case)(*size)
        jax.clear_caches()
    for num in nums:
        if num <= numbers[-1]:
            steps(num)
            jax.clear_caches()
    versions = (
        f"jax {jax.__version__}, numpy {np.__version__}, torch "
        f"{torch.__version__ if torch else 'absent'}"
    )
    device = f"{jax.devices()[0].device_kind} ({jax.device_count()} device, {os.cpu_count()} cores)"
    print(f"{versions}, python {platform.python_version()}, {device}")


if __name__ == "__main__":
    main()

"""Variational message passing beside BayesPy: seconds per iteration with its ELBO, in one run.

    python benchmarks/message_passing.py [--bayespy PYTHON] [--quick] [--double]

mixture      10,000 points in 2 dimensions, 10 components, unknown weights, means and precisions
pca          20 x 2000 matrix, 5 factors, relevance of every factor, unknown noise
state space  8 outputs, 4 states, 1000 steps, unknown dynamics, outputs and noise

ours     one sweep over all nodes and the ELBO, jit, float32 (float64 with --double)
theirs   BayesPy's ``VB.update`` of the same nodes in the same order, which computes its bound too

BayesPy needs numpy below 2, so it runs in a process of its own: PYTHON is an interpreter that can
import it, by default this one; without BayesPy its columns are left out. Both start from the same
beliefs. Before anything is timed the bounds after each of the first iterations are compared, in
float64. Times are the best of several rounds, in which the two take turns: calls of milliseconds
are lengthened by whatever else the machine does, and never shortened. A ratio is theirs / ours.
"""

import argparse
import json
import platform
import subprocess
import sys
import time

import numpy as np

SIZES = {
    "mixture": {"num": 10_000, "dim": 2, "size": 10},
    "pca": {"num": 2000, "dim": 20, "size": 5},
    "state space": {"num": 1000, "dim": 8, "size": 4},
}
QUICK = {
    "mixture": {"num": 300, "dim": 2, "size": 3},
    "pca": {"num": 100, "dim": 6, "size": 2},
    "state space": {"num": 50, "dim": 3, "size": 2},
}


def data_of(name: str, num: int, dim: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Observations, and the start of the node that breaks the symmetry: labels, or means."""
    rng = np.random.default_rng(num)
    if name == "mixture":
        points = 4 * rng.normal(size=(size, dim))[rng.integers(size, size=num)]
        return points + rng.normal(size=(num, dim)), rng.integers(size, size=num)
    states = rng.normal(size=(num, size))
    if name == "state space":
        for t in range(1, num):
            states[t] += 0.9 * np.roll(states[t - 1], 1)
    noise = 0.5 * rng.normal(size=(dim, num))
    return rng.normal(size=(dim, size)) @ states.T + noise, rng.normal(size=(num, size))


def bayespy_method(name: str, num: int, dim: int, size: int):
    """A function that makes one iteration of BayesPy and returns its bound."""
    from bayespy.inference import VB
    from bayespy.nodes import (
        Categorical,
        Dirichlet,
        Dot,
        Gamma,
        Gaussian,
        GaussianARD,
        GaussianMarkovChain,
        Mixture,
        Wishart,
    )

    values, start = data_of(name, num, dim, size)
    if name == "mixture":
        weights = Dirichlet(1e-2 * np.ones(size))
        mean = Gaussian(np.zeros(dim), 1e-2 * np.eye(dim), plates=(size,))
        precision = Wishart(dim, np.eye(dim), plates=(size,))
        label = Categorical(weights, plates=(num,))
        label.initialize_from_value(start)
        data, hidden = Mixture(label, Gaussian, mean, precision), (weights, mean, precision, label)
    elif name == "pca":
        relevance = Gamma(1e-3, 1e-3, plates=(size,))
        loadings = GaussianARD(0, relevance, shape=(size,), plates=(dim, 1))
        noise = Gamma(1e-3, 1e-3)
        factors = GaussianARD(0, 1, shape=(size,), plates=(1, num))
        factors.initialize_from_parameters(start[None], 1)
        data = GaussianARD(Dot(loadings, factors), noise)
        hidden = (relevance, loadings, noise, factors)
    else:
        relevance = Gamma(1e-5, 1e-5, plates=(size,))
        dynamics = GaussianARD(0, relevance, shape=(size,), plates=(size,))
        states = GaussianMarkovChain(
            np.zeros(size), 1e-3 * np.eye(size), dynamics, np.ones(size), n=num
        )
        states.initialize_from_value(start)
        gains = Gamma(1e-5, 1e-5, plates=(size,))
        outputs = GaussianARD(0, gains, shape=(size,), plates=(dim, 1))
        noise = Gamma(1e-5, 1e-5)
        data = GaussianARD(Dot(outputs, states), noise)
        hidden = (relevance, dynamics, gains, outputs, noise, states)
    data.observe(values)
    inference = VB(data, *hidden)

    def iterate() -> float:
        inference.update(*hidden, repeat=1, verbose=False, tol=0)
        return float(inference.L[inference.iter - 1])

    return iterate


def our_method(name: str, num: int, dim: int, size: int, dtype):
    """The same iteration, compiled; and the seconds of compilation."""
    import jax
    import jax.numpy as jnp

    from vfejax.inference.worked_models import factors, mixture, state_space

    values, start = data_of(name, num, dim, size)
    if name == "mixture":
        method, data = (
            mixture.gaussian_mixture(num, dim, size),
            {"point": jnp.asarray(values, dtype)},
        )
        begin = {"label": (jnp.asarray(np.where(np.eye(size)[start] > 0, 0.0, -1e3), dtype),)}
    elif name == "pca":
        method, data = (
            factors.principal_components(dim, num, size),
            {"data": jnp.asarray(values, dtype)},
        )
        begin = {"factors": (jnp.asarray(start, dtype), -0.5 * jnp.eye(size, dtype=dtype))}
    else:
        method = state_space.linear_state_space(dim, size, num)
        data = {"data": jnp.asarray(values, dtype)}
        # Nearly without variance, as BayesPy starts from a value.
        precision = jnp.broadcast_to(1e8 * jnp.eye(size, dtype=dtype), (num, size, size))
        begin = {
            "states": (
                1e8 * jnp.asarray(start, dtype),
                -0.5 * precision,
                jnp.zeros((size, size), dtype),
            )
        }
    beliefs = jax.jit(lambda data, start: method.init(None, data, start=start))(data, begin)
    since = time.perf_counter()
    sweep = jax.jit(method.sweep).lower(beliefs, data).compile()
    seconds = time.perf_counter() - since
    carried = [beliefs]

    def iterate() -> float:
        carried[0], info = sweep(carried[0], data)
        return float(info.elbo)

    return iterate, seconds


def best(iterate, repeats: int) -> float:
    """Seconds of the fastest of several iterations."""
    seconds = []
    for _ in range(repeats):
        since = time.perf_counter()
        iterate()
        seconds.append(time.perf_counter() - since)
    return min(seconds)


def serve(name: str, size: dict[str, int]) -> None:
    """BayesPy in this process: reads a number of iterations per line, answers with bounds and
    seconds.
    """
    iterate = bayespy_method(name, **size)
    print("ready", flush=True)
    for line in sys.stdin:
        since = time.perf_counter()
        bounds = [iterate() for _ in range(int(line))]
        print(json.dumps([bounds, (time.perf_counter() - since) / int(line)]), flush=True)


def bayespy_process(python: str, name: str, quick: bool) -> subprocess.Popen | None:
    """BayesPy in a process of its own, or None where it cannot be imported."""
    command = [python, __file__, "--serve", name, *(["--quick"] if quick else [])]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    return process if process.stdout.readline().strip() == "ready" else None


def ask(process: subprocess.Popen, num: int) -> tuple[list[float], float]:
    process.stdin.write(f"{num}\n")
    process.stdin.flush()
    return tuple(json.loads(process.stdout.readline()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bayespy", default=sys.executable, help="interpreter with BayesPy")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that it runs")
    parser.add_argument("--double", action="store_true", help="time ours in float64")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    sizes = QUICK if options.quick else SIZES
    if options.serve:
        serve(options.serve, sizes[options.serve])
        return
    import jax

    print(f"jax {jax.__version__}, {jax.devices()[0].device_kind}, {platform.machine()}")
    print(f"{'model':12} {'compile s':>9} {'ours ms':>8} {'BayesPy ms':>10} {'ratio':>6}  bounds")
    for name, size in sizes.items():
        process = bayespy_process(options.bayespy, name, options.quick)
        agreement = "not compared"
        if process is not None:
            with jax.enable_x64(True):
                iterate, _ = our_method(name, **size, dtype="float64")
                ours = np.array([iterate() for _ in range(5)])
            theirs = np.array(ask(process, 5)[0])
            agreement = f"{np.max(np.abs(ours / theirs - 1)):.1e} apart"
        with jax.enable_x64(options.double):
            iterate, seconds = our_method(
                name, **size, dtype="float64" if options.double else "float32"
            )
            rounds = []
            for _ in range(options.rounds):
                mine = best(iterate, 20)
                rounds.append((mine, ask(process, 1)[1] if process else float("nan")))
        mine, other = (1e3 * min(column) for column in zip(*rounds, strict=True))
        print(
            f"{name:12} {seconds:9.2f} {mine:8.3f} {other:10.1f} {other / mine:6.0f}  {agreement}"
        )
        if process is not None:
            process.stdin.close()
            process.wait()


if __name__ == "__main__":
    main()

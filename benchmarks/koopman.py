"""Streaming Koopman statistics beside recursive least squares, Gram matrices and other packages.

    python benchmarks/koopman.py            # d = 256, blocks of 1 to 1,600 samples

All methods take turns, and the least of their processor times gives the ratios, which other work on
the machine changes little. The packages odmd, kooplearn and PyDMD are measured where they are
installed.
"""

import argparse
import importlib.util
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.koopman import dictionaries, operators, spectrum, streaming
from vfejax.problems import known_spectra


def odmd_update(operator, inverse, x, y):
    """A step of online dynamic mode decomposition, as its authors write it in NumPy."""
    moved = inverse @ x
    gain = 1.0 / (1.0 + x @ moved)
    operator = operator + np.outer(gain * (y - operator @ x), moved)
    inverse = inverse - gain * np.outer(moved, moved)
    return operator, (inverse + inverse.T) / 2.0


def recursive_least_squares(operator, inverse, now, following):
    """The same as one compiled loop."""

    def step(carry, pair):
        operator, inverse = carry
        x, y = pair
        moved = inverse @ x
        gain = 1.0 / (1.0 + x @ moved)
        operator = operator + jnp.outer(gain * (y - operator @ x), moved)
        return (operator, inverse - gain * jnp.outer(moved, moved)), None

    return jax.lax.scan(step, (operator, inverse), (now, following))[0]


def least(methods: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Processor seconds of each method, which take turns."""
    for method in methods.values():
        jax.block_until_ready(method())
    times: dict[str, list[float]] = {name: [] for name in methods}
    for _ in range(turns):
        for name, method in methods.items():
            start = time.process_time()
            jax.block_until_ready(method())
            times[name].append(time.process_time() - start)
    return {name: min(found) for name, found in times.items()}


def speed(dim: int, block: int, turns: int) -> None:
    """Microseconds per sample."""
    rng = np.random.default_rng(0)
    now, following = rng.normal(size=(2, block, dim))
    now32, following32 = (jnp.asarray(x, jnp.float32) for x in (now, following))
    update = jax.jit(streaming.update)
    old = jnp.asarray(rng.normal(size=(2, 4 * dim, dim)), jnp.float32)
    factor = update(streaming.init(dim), *old)
    wide = update(streaming.init(dim, compensated=True), old[0][:dim], old[1][:dim])
    start = (jnp.zeros((dim, dim), jnp.float32), jnp.eye(dim, dtype=jnp.float32))
    compiled = jax.jit(recursive_least_squares)

    def in_numpy():
        state = np.zeros((dim, dim)), np.eye(dim)
        for x, y in zip(now, following, strict=True):
            state = odmd_update(*state, x, y)
        return state

    methods = {
        "triangular factor, float32": lambda: update(factor, now32, following32),
        "the same, compensated": lambda: update(wide, now32, following32),
        "recursive, compiled loop, float32": lambda: compiled(*start, now32, following32),
        "recursive, NumPy (formula of odmd), float64": in_numpy,
    }
    if importlib.util.find_spec("odmd"):
        from odmd import OnlineDMD

        online = OnlineDMD(dim, 1.0)

        def package():
            for x, y in zip(now, following, strict=True):
                online.update(x, y)

        methods["odmd"] = package
    found = least(methods, turns)
    own = found["triangular factor, float32"]
    print(f"\nd = {dim}, blocks of {block}: microseconds per sample, and in units of the factor")
    for name, seconds in found.items():
        print(f"  {name:45} {1e6 * seconds / block:9.1f} {seconds / own:8.2f}")


def precision(dim: int = 16, num: int = 640) -> None:
    """Error of the map and of its predictions in float32, against float64 of the same data."""
    print(f"\nd = {dim}, {num} samples, float32: error of the map (of its predictions)")
    update, recursive = jax.jit(streaming.update), jax.jit(recursive_least_squares)
    for condition in (1e1, 1e4):
        rng = np.random.default_rng(0)
        left, _, right = np.linalg.svd(rng.normal(size=(num, dim)), full_matrices=False)
        now = ((left * np.geomspace(1.0, 1.0 / condition, dim)) @ right).astype(np.float32)
        following = (now.astype(float) @ rng.normal(size=(dim, dim)).T).astype(np.float32)
        true = np.linalg.lstsq(now.astype(float), following.astype(float))[0].T
        found = {}
        for name, compensated in (("factor", False), ("compensated", True)):
            for block in (num, 40, 1):
                factor = streaming.init(dim, compensated=compensated)
                for i in range(0, num, block):
                    factor = update(factor, now[i : i + block], following[i : i + block])
                found[f"{name}, blocks of {block}"] = operators.ridge(factor)
        found["Gram matrix"] = np.linalg.solve(now.T @ now, now.T @ following).T
        for scale in (1e6, 1e15):
            start = (jnp.zeros((dim, dim), jnp.float32), scale * jnp.eye(dim, dtype=jnp.float32))
            found[f"recursive, P = {scale:.0e}"] = recursive(*start, now, following)[0]
        for name, operator in found.items():
            error = np.asarray(operator, float) - true
            print(
                f"  condition {condition:.0e}  {name:26}"
                f"{np.linalg.norm(error) / np.linalg.norm(true):10.1e}"
                f" ({np.linalg.norm(now @ error.T) / np.linalg.norm(now @ true.T):.1e})"
            )


def noise(trials: int = 10) -> None:
    """Mean error of the modulus 0.98 under noise of 0.3."""
    print("\nmean error of |lambda| = 0.98 under noise of 0.3 (standard deviation)")
    turn = 0.98 * np.array([[np.cos(0.5), -np.sin(0.5)], [np.sin(0.5), np.cos(0.5)]])
    fits = {
        "least squares": operators.ridge,
        "forward-backward": operators.forward_backward,
        "total least squares": operators.total_least_squares,
        "corrected": lambda factor: operators.noise_corrected(factor, 0.3**2),
    }
    rng, update = np.random.default_rng(0), jax.jit(streaming.update)
    for num in (100, 10_000):
        errors: dict[str, list[float]] = {name: [] for name in fits}
        for _ in range(trials):
            x = rng.normal(size=(num, 2))
            pair = (x + 0.3 * rng.normal(size=x.shape), x @ turn.T + 0.3 * rng.normal(size=x.shape))
            factor = update(streaming.init(2), *(jnp.asarray(z, jnp.float32) for z in pair))
            for name, fit in fits.items():
                values = np.linalg.eigvals(np.asarray(fit(factor)))
                errors[name].append(float(np.mean(np.abs(values))) - 0.98)
        for name, found in errors.items():
            print(f"  m = {num:6} {name:22}{np.mean(found):+9.4f} ({np.std(found):.4f})")


def others(seeds: int = 5) -> None:
    """The second eigenvalue of the logistic map from trajectories, on the same features."""
    true, lift = known_spectra.logistic_spectrum(10)[:3], dictionaries.harmonics(10)
    print("\nlogistic map: distance of the 3 leading true eigenvalues from those found, by seed")
    for seed in range(seeds):
        x = known_spectra.logistic_map(jax.random.key(seed), 10_001)
        z = lift(x)
        factor = streaming.update(streaming.init(21), z[:-1], z[1:])
        found = {"vfejax": np.asarray(operators.reduced_rank(factor, 15, 1e-6 * factor.count))}
        if importlib.util.find_spec("kooplearn"):
            from kooplearn.linear_model import Ridge

            model = Ridge(n_components=15, reduced_rank=True, alpha=1e-6)
            found["kooplearn"] = model.fit(np.asarray(z, float)).eig()
        if importlib.util.find_spec("pydmd"):
            from pydmd import DMD

            found["PyDMD"] = DMD(svd_rank=15).fit(np.asarray(z, float).T).eigs
        line = []
        for name, result in found.items():
            values = spectrum.eig(result).values if name == "vfejax" else result
            line.append(f"{name} {spectrum.directed_hausdorff_distance(true, values):.4f}")
        print(f"  {seed}: " + ", ".join(line))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--blocks", type=int, nargs="+", default=[1, 10, 100, 1600])
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()
    for block in arguments.blocks:
        speed(arguments.dim, block, arguments.turns)
    precision()
    noise()
    others()


if __name__ == "__main__":
    main()

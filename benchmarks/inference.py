"""Exact inference on chains beside dynamax, in one process.

    python benchmarks/inference.py [--quick] [--steps 10000]

Kalman filter and smoother of n states and n / 2 outputs in float64, and hidden Markov filter and
smoother of k states in float32 and float64, with the expected numbers of transitions. Both are
compiled by the same jax before they are timed, and run in turns; a time is the best of up to 25
rounds. A ratio is theirs / ours (above 1: we are faster). Compile time is that of the smoother or
filter alone, in seconds of the processor.

The accuracy of both Kalman smoothers is that of the means against the joint Gaussian of a short
chain, and of ours along the long chain against the plain recursion. dynamax is optional (pip
install dynamax): without it only our times are shown.
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

from vfejax.inference.chains import LinearGaussian, kalman_filter, kalman_smoother
from vfejax.inference.chains.blocks import SEQUENTIAL
from vfejax.inference.chains.hidden_markov import (
    HiddenMarkov,
    hidden_markov_filter,
    hidden_markov_smoother,
    two_slice_sum,
)

try:
    from dynamax.hidden_markov_model import hmm_filter, hmm_smoother
    from dynamax.linear_gaussian_ssm import LinearGaussianSSM, lgssm_filter, lgssm_smoother
except ImportError:
    LinearGaussianSSM = None


def covariance(rng: np.random.Generator, size: int) -> np.ndarray:
    """A well-conditioned covariance."""
    root = rng.normal(size=(size, size))
    return root @ root.T / size + 0.3 * np.eye(size)


def gaussian(n: int) -> LinearGaussian:
    """A stable model of n states."""
    rng = np.random.default_rng(n)
    turn = 0.95 * np.linalg.qr(rng.normal(size=(n, n)))[0]
    emission = rng.normal(size=(n // 2, n))
    noise, seen = covariance(rng, n), covariance(rng, n // 2)
    return jax.tree.map(
        jnp.asarray, LinearGaussian(np.zeros(n), covariance(rng, n), turn, noise, emission, seen)
    )


def dynamax_parameters(model: LinearGaussian) -> Any:
    """The same model for dynamax."""
    o, n = model.emission.shape
    parameters, _ = LinearGaussianSSM(n, o).initialize(
        jax.random.key(0),
        initial_mean=model.initial_mean,
        initial_covariance=model.initial_cov,
        dynamics_weights=model.transition,
        dynamics_covariance=model.transition_cov,
        emission_weights=model.emission,
        emission_covariance=model.emission_cov,
    )
    return parameters


def dense_means(model: LinearGaussian, y: np.ndarray) -> np.ndarray:
    """Smoothed means of a short chain from its joint Gaussian."""
    m = jax.tree.map(np.asarray, model)
    t, n, o = len(y), len(m.initial_mean), y.shape[1]
    cov = np.zeros((t, n, t, n))
    cov[0, :, 0] = m.initial_cov
    for i in range(t - 1):
        for j in range(i + 1):
            cov[i + 1, :, j] = m.transition @ cov[i, :, j]
            cov[j, :, i + 1] = cov[i + 1, :, j].T
        cov[i + 1, :, i + 1] = m.transition @ cov[i, :, i] @ m.transition.T + m.transition_cov
    prior, seen = cov.reshape(t * n, t * n), np.kron(np.eye(t), m.emission)
    spread = seen @ prior @ seen.T + np.kron(np.eye(t), m.emission_cov)
    return (prior @ seen.T @ np.linalg.solve(spread, y.reshape(t * o))).reshape(t, n)


def compiled(run: Callable, *arrays: Any) -> tuple[Callable[[], Any], float]:
    """The compiled call and its processor seconds of compilation."""
    start = time.process_time()
    program = jax.jit(run).lower(*arrays).compile()
    seconds = time.process_time() - start
    return lambda: jax.block_until_ready(program(*arrays)), seconds


def in_turns(methods: list[Callable[[], Any]]) -> list[float]:
    """Best seconds of each over up to 25 rounds or 10 s."""
    best = [np.inf] * len(methods)
    began = time.perf_counter()
    for _ in range(25):
        for i, method in enumerate(methods):
            start = time.perf_counter()
            method()
            best[i] = min(best[i], time.perf_counter() - start)
        if time.perf_counter() - began > 10:
            break
    return best


def show(what: str, ours: tuple, theirs: tuple | None) -> None:
    """One row."""
    methods = [ours[0]] + ([theirs[0]] if theirs else [])
    times = in_turns(methods)
    row = f"{what:<34}{1e3 * times[0]:>10.2f}{ours[1]:>10.1f}"
    if theirs:
        row += f"{1e3 * times[1]:>12.2f}{theirs[1]:>10.1f}{times[1] / times[0]:>8.2f}"
    print(row, flush=True)


def kalman(n: int, num_steps: int) -> None:
    """Rows of the Kalman filter and smoother, and their accuracy."""
    model, y = gaussian(n), np.random.default_rng(1).normal(size=(num_steps, n // 2))
    theirs = None if LinearGaussianSSM is None else dynamax_parameters(model)
    pairs = [("filter", kalman_filter), ("smoother", kalman_smoother)]
    for name, run in pairs:
        mine = compiled(run, model, y)
        other = None
        if theirs is not None:
            call = lgssm_filter if name == "filter" else lgssm_smoother
            other = compiled(call, theirs, y)
        show(f"Kalman {name}, n = {n}, float64", mine, other)
    exact, short = dense_means(model, y[:50]), y[:50]
    ours = jax.jit(kalman_smoother)(model, short)
    text = f"  error against the joint Gaussian: ours {np.abs(ours.mean - exact).max():.1e}"
    if theirs is not None:
        found = jax.jit(lgssm_smoother)(theirs, short).smoothed_means
        text += f", dynamax {np.abs(found - exact).max():.1e}"
    long = jax.jit(kalman_smoother)(model, y)
    plain = jax.jit(lambda m, y: kalman_smoother(m, y, passes=SEQUENTIAL))(model, y)
    gap = max(np.abs(long.mean - plain.mean).max(), np.abs(long.cov - plain.cov).max())
    print(f"{text}; ours along the chain against the recursion {gap:.1e}", flush=True)


def smoother_and_pairs(model: HiddenMarkov, rows: jax.Array) -> tuple:
    """What dynamax's smoother computes: also the expected numbers of transitions."""
    smoothed = hidden_markov_smoother(model, rows)
    return smoothed, two_slice_sum(model, smoothed)


def hidden(k: int, num_steps: int, dtype: str) -> None:
    """Rows of the hidden Markov filter and smoother."""
    rng = np.random.default_rng(k)
    initial, rows = rng.dirichlet(np.ones(k)).astype(dtype), rng.dirichlet(np.ones(k), k)
    transition = jnp.asarray(rows.T.astype(dtype))
    scores = rng.normal(size=(num_steps, k)).astype(dtype)
    model = HiddenMarkov(jnp.asarray(initial), transition)
    for name, run in (("filter", hidden_markov_filter), ("smoother", smoother_and_pairs)):
        mine, other = compiled(run, model, scores), None
        if LinearGaussianSSM is not None:
            call = hmm_filter if name == "filter" else hmm_smoother
            other = compiled(call, initial, transition.T, scores)
            found = other[0]()
            theirs = found.filtered_probs if name == "filter" else found.smoothed_probs
            ours = mine[0]() if name == "filter" else mine[0]()[0]
            gap = np.abs(np.asarray(theirs) - np.asarray(ours.probabilities)).max()
            assert gap < 1e3 * np.finfo(dtype).eps, gap
        show(f"hidden Markov {name}, k = {k}, {dtype}", mine, other)


def main() -> None:
    """Run the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a tenth of the steps, n = 4, k = 5")
    parser.add_argument("--steps", type=int, default=10_000, help="length of the chains")
    options = parser.parse_args()
    steps = options.steps // 10 if options.quick else options.steps
    print(
        f"{f'chains of {steps} steps':<34}{'ours ms':>10}{'compile':>10}{'dynamax ms':>12}"
        f"{'compile':>10}{'ratio':>8}"
    )
    for k in (5,) if options.quick else (5, 50):
        for dtype in ("float32", "float64"):
            hidden(k, steps, dtype)
    for n in (4,) if options.quick else (4, 10):
        kalman(n, steps)
    device = f"{jax.devices()[0].device_kind} ({os.cpu_count()} cores)"
    versions = f"jax {jax.__version__}, numpy {np.__version__}"
    print(f"{versions}, python {platform.python_version()}, {device}")


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()

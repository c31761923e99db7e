"""Forecasts of ``vfejax filter --model koopman`` beside an autoregression and persistence, and how
often its intervals hold what comes: series of four kinds, whose future is drawn too.

    python benchmarks/koopman_forecasts.py
"""

import argparse
import platform

import jax
import numpy as np

from vfejax.cli.filter import koopman, operator_checks
from vfejax.cli.filter.config import FilterConfig
from vfejax.data.series import Series
from vfejax.problems import oscillations

ROWS, AHEAD = 400, 24
FIRST = 100  # seed: the rule of choice was settled on others
STEPS = (1, 8)


def noisy_oscillations(rng: np.random.Generator, num: int) -> np.ndarray:
    """Two series that two oscillators make."""
    return oscillations.simulate(rng, num).observations


def wandering(rng: np.random.Generator, num: int) -> np.ndarray:
    """``x' = 0.9 x + noise``, which an autoregression of order 1 forecasts best."""
    x = np.zeros(num)
    for step, push in enumerate(rng.normal(size=num - 1)):
        x[step + 1] = 0.9 * x[step] + push
    return x[:, None]


def logistic(rng: np.random.Generator, num: int) -> np.ndarray:
    """``x' = 3.6 x (1 - x)``: the next row is a polynomial of degree 2, seen with little noise."""
    x = np.empty(num)
    state = rng.uniform(0.2, 0.8)
    for step in range(num):
        x[step] = state
        state = 3.6 * state * (1.0 - state)
    return (x + 0.01 * rng.normal(size=num))[:, None]


def noise(rng: np.random.Generator, num: int) -> np.ndarray:
    """Nothing to forecast."""
    return rng.normal(size=(num, 1))


KINDS = (noisy_oscillations, wandering, logistic, noise)


def measure(values: np.ndarray) -> tuple[dict, np.ndarray]:
    """Held-out errors by method, and which of the rows to come are inside their intervals."""
    past, future = values[:-AHEAD], values[-AHEAD:]
    names = ("x", "y")[: values.shape[1]]
    stamps = tuple(map(str, range(len(past))))
    series = Series(names, past, None, stamps, "row", None, np.arange(len(past)))
    engine, found = koopman.build(FilterConfig(model="koopman"), None, series)
    ahead = engine.estimates(engine.params, "predicted", 0.9, AHEAD)
    rows = slice(len(past), None)
    inside = (future >= ahead.new_lower[rows]) & (future <= ahead.new_upper[rows])
    return operator_checks.losses(found), inside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=10)
    seeds = parser.parse_args().seeds
    jax.config.update("jax_enable_x64", True)
    print(f"jax {jax.__version__}, {platform.processor() or platform.machine()}, {seeds} seeds")
    for kind in KINDS:
        runs = [measure(kind(np.random.default_rng(FIRST + s), ROWS + AHEAD)) for s in range(seeds)]
        inside = 100 * np.mean([inside.mean() for _, inside in runs])
        text = []
        for step in STEPS:
            for method in runs[0][0]:
                values = [losses[method][step] for losses, _ in runs]
                text.append(f"{method} {np.mean(values):.3f} ± {np.std(values):.3f}")
        print(f"{kind.__name__:20s}{'; '.join(text)}; inside 90 %: {inside:.0f} %", flush=True)


if __name__ == "__main__":
    main()

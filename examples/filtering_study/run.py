"""Generalised filtering beside Kalman filters and the exact posterior: see README.md.

    python examples/filtering_study/run.py [--seeds 24] [--out FOLDER]

Prints root-mean-square errors for every smoothness of the noise, mean and standard deviation over
series, and writes them and a picture into the folder.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from vfejax.inference import gaussian_process, nonlinear_filters
from vfejax.inference.generalized_filtering import (
    Hyperparameters,
    Model,
    Observation,
    embedded_samples,
    filter_series,
    generalized_filter,
    observation,
    rest,
    zero_hyperparameters,
)
from vfejax.inference.generalized_filtering import generalized_coordinates as coordinates
from vfejax.inference.generalized_filtering.path_beliefs import mode
from vfejax.problems import linear_convolution, lorenz

SMOOTHNESS = (0.0, 0.25, 0.5, 1.0, 2.0)
LEAST = 0.28
"""The smoothness whose noise, integrated over a sample, has the variance of noise held over it."""

PRECISION = float(np.exp(8))
ORDER = 6
EDGE = 8
"""Samples at both ends that no error counts: some methods have no estimate there."""

Errors = dict[str, np.ndarray]


def tracked(model: Model, parameters: tuple, seen: Observation, by: Callable | None) -> jax.Array:
    """Estimates ``[t, n + m]`` by a filter, or by the least energy at each time if it is None."""
    hyper: Hyperparameters = zero_hyperparameters(model)
    if by is None:
        start = rest(model)
        path = jax.vmap(lambda now: mode(model, start, now, parameters, hyper))(seen)
    else:
        run = by(model)
        _, path, _ = filter_series(run, run.init(parameters, hyper), seen)
    return jnp.concatenate([path.states[0][:, 0], path.causes[0][:, 0]], axis=-1)


def padded(estimates: jax.Array, num: int) -> jax.Array:
    """Estimates at all samples; NaN where the centred window of ``ORDER`` samples is not full."""
    lag = (ORDER - 1) // 2
    return jnp.pad(estimates, ((ORDER - 1 - lag, lag), (0, 0)), constant_values=jnp.nan)[:num]


def rms(estimates: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Root-mean-square error of every series, ``[..., series]``."""
    inside = np.asarray(estimates)[..., EDGE:-EDGE, :] - truth[..., EDGE:-EDGE, :]
    return np.sqrt(np.mean(inside**2, axis=(-2, -1)))


def bump_path(num: int) -> np.ndarray:
    """Derivatives of the bump at all samples, ``[num, ORDER, 1]``, from Hermite polynomials."""
    x = (np.arange(num) - 12.0) / np.sqrt(2.0)
    rows = []
    for k in range(ORDER):
        hermite = np.polynomial.hermite_e.hermeval(x, [0.0] * k + [1.0])
        rows.append((-1.0) ** k * hermite * np.exp(-(x**2) / 2.0) / 2.0 ** (k / 2.0))
    return np.stack(rows, axis=1)[..., None]


def kalman(known: bool) -> nonlinear_filters.NonlinearGaussian:
    """The convolution model with white noise; an unknown cause is an Ornstein-Uhlenbeck process
    with the variance of the prior and the integral of its autocorrelation.
    """
    size = 2 if known else 3
    drift, noise = np.zeros((size, size)), np.zeros((size, size))
    drift[:2, :2] = linear_convolution.DRIFT
    initial = 1e-9 * np.eye(size)
    step, gain = gaussian_process.transition(linear_convolution.DRIFT, 1.0)
    noise[:2, :2] = gain @ gain.T / PRECISION
    if not known:
        decay = 1.0 / np.sqrt(np.pi)
        drift[:2, 2:], drift[2, 2] = linear_convolution.GAIN, -decay
        step, _ = gaussian_process.transition(drift, 1.0)
        # Integral of the white force of variance 2 decay over the step, by its midpoints.
        for k in range(32):
            column = gaussian_process.transition(drift, (k + 0.5) / 32)[0][:, 2:]
            noise += column @ column.T * 2.0 * decay / 32
        initial[2, 2] = 1.0
    matrix = jnp.asarray(step)
    emission = jnp.asarray(np.pad(linear_convolution.EMISSION, ((0, 0), (0, size - 2))))
    return nonlinear_filters.NonlinearGaussian(
        jnp.zeros(size),
        jnp.asarray(initial),
        lambda x, u: jnp.matmul(matrix, x) + u,
        jnp.asarray(noise),
        lambda x, u: jnp.matmul(emission, x),
        jnp.eye(4) / PRECISION,
    )


def convolution(seeds: int, known: bool, num: int = 64) -> tuple[Errors, Errors]:
    """Errors of states and of the cause, ``[smoothness, series]``, by method."""
    rng = np.random.default_rng(1 if known else 2)
    cause = {} if known else {"cause_precision": 1.0}
    truths, priors = [], []
    for s in SMOOTHNESS:
        true_paths = linear_convolution.convolution_paths(num, s)
        truths.append(linear_convolution.simulate(rng, true_paths, seeds, s))
        grid = np.zeros(8 * num)
        mean = {} if known else {"cause_mean": grid}
        priors.append(linear_convolution.convolution_paths(num, s, **cause, **mean))
    observations = jnp.asarray(np.stack([d.observations for d in truths]))
    truth = np.stack([np.concatenate([d.states, d.causes], -1) for d in truths])
    estimates = generalized(observations, known, num)
    estimates |= white(observations, known, priors[0].mean)
    emission = np.pad(linear_convolution.EMISSION, ((0, 0), (0, 1)))
    windows = {"exact, past": (None, 0), "exact, window": (3, 2), "exact, all": (None, None)}
    for name, window in windows.items():
        means = []
        for s, prior, data in zip(SMOOTHNESS, priors, truths, strict=True):
            # Autocorrelations of very smooth noise are singular in float64.
            kernel = linear_convolution.noise_kernel(num, s) + 1e-9 * np.eye(num)
            noise = np.eye(4) / PRECISION, kernel
            found = gaussian_process.posterior(prior, emission, noise, data.observations, window)
            means.append(found.mean)
        estimates[name] = np.stack(means)
    states = {name: rms(x[..., :2], truth[..., :2]) for name, x in estimates.items()}
    causes = {name: rms(x[..., 2:], truth[..., 2:]) for name, x in estimates.items()}
    return states, causes


def white(observations: jax.Array, known: bool, mean: np.ndarray) -> dict[str, np.ndarray]:
    """Kalman filter and smoother, which take all noise for white."""
    num = observations.shape[-2]
    model = kalman(known)
    control = np.zeros((num, 2 if known else 3))
    if known:
        step = gaussian_process.transition(linear_convolution.DRIFT, 1.0)[0]
        control[:-1] = mean[1:, :2] - mean[:-1, :2] @ step.T
    control = jnp.asarray(control)

    @jax.jit
    @partial(jax.vmap)
    @partial(jax.vmap)
    def both(series: jax.Array) -> tuple[jax.Array, jax.Array]:
        smoothed = nonlinear_filters.extended_kalman_smoother(model, series, control)
        filtered = nonlinear_filters.extended_kalman_filter(model, series, control)
        return filtered.mean, smoothed.mean

    results = dict(zip(("Kalman filter", "Kalman smoother"), both(observations), strict=True))
    if not known:
        return {name: np.asarray(x) for name, x in results.items()}
    causes = np.broadcast_to(mean[:, 2:], (*observations.shape[:-1], 1))
    return {name: np.concatenate([x, causes], axis=-1) for name, x in results.items()}


def generalized(observations: jax.Array, known: bool, num: int) -> dict[str, np.ndarray]:
    """Generalised filters: the published form, and with the covariance of embedded noise."""
    lag = (ORDER - 1) // 2
    expected = jnp.asarray(bump_path(num)[ORDER - 1 - lag : num - lag])
    expected = expected if known else jnp.zeros_like(expected[:, :3])
    embedded = [embedded_samples.embedded_covariance(ORDER, 1.0, s) for s in SMOOTHNESS]
    embedded = jnp.asarray(np.stack(embedded) + 1e-9 * np.eye(ORDER))

    def model_of(s: jax.Array, covariance: jax.Array | None) -> tuple[Model, tuple]:
        model, parameters = linear_convolution.convolution_model(
            order=ORDER,
            cause_order=ORDER if known else 3,
            smoothness=s,
            cause_precision=float(np.exp(16)) if known else 1.0,
        )
        return model._replace(cause_smoothness=1.0, sensed_covariance=covariance), parameters

    @jax.jit
    @partial(jax.vmap, in_axes=(0, 0, 0))
    @partial(jax.vmap, in_axes=(0, None, None))
    def run(series: jax.Array, s: jax.Array, covariance: jax.Array) -> list[jax.Array]:
        sensed = embedded_samples.embed(series, ORDER, 1.0)
        found = []
        for noise, by in ((None, partial(generalized_filter, dt=1.0)), (covariance, None)):
            model, parameters = model_of(s, noise)
            seen = observation(model, sensed, expected)
            found.append(padded(tracked(model, parameters, seen, by), num))
        return found

    smooth = jnp.maximum(jnp.asarray(SMOOTHNESS), LEAST)
    names = "generalised filter", "embedded noise, mode"
    found = run(observations, smooth, embedded)
    return {name: np.asarray(x) for name, x in zip(names, found, strict=True)}


NOISE = (1e-4, 1e-2, 1.0)
TRUST = (1.0, float(np.exp(4)), float(np.exp(8)))


def chaotic(seeds: int, num: int = 128) -> Errors:
    """Errors of the states of the Lorenz system. How far each method trusts the equations of motion
    is chosen of three values for every smoothness, on other series.
    """
    rng = np.random.default_rng(3)
    truths = [lorenz.simulate(rng, num, 2 * seeds, s) for s in SMOOTHNESS]
    observations = jnp.asarray(np.stack([d.observations for d in truths]))
    truth = np.stack([d.states for d in truths])
    errors = {}
    for name, (run, options) in chaotic_methods(num).items():
        over_series = jax.vmap(run, in_axes=(0, None, None))
        over_smoothness = jax.vmap(over_series, in_axes=(0, 0, None))
        program = jax.jit(jax.vmap(over_smoothness, in_axes=(None, None, 0)))
        found = program(observations, jnp.asarray(SMOOTHNESS), jnp.asarray(options))
        every = rms(found, truth[None])
        every = np.where(np.isnan(every), np.inf, every)
        best = every[..., :seeds].mean(axis=-1).argmin(axis=0)
        errors[name] = every[best, np.arange(len(SMOOTHNESS)), seeds:]
    return errors


def chaotic_methods(num: int) -> dict[str, tuple[Callable, tuple[float, ...]]]:
    """By name: ``(series, smoothness, option) -> states``, and the options to choose from."""

    def kalman_of(filter_fn: Callable, series: jax.Array, s: jax.Array, q: jax.Array) -> jax.Array:
        model = nonlinear_filters.NonlinearGaussian(
            jnp.asarray(lorenz.START),
            jnp.eye(3),
            lambda x, u: lorenz.runge_kutta(x, 1.0),
            q * jnp.eye(3),
            lambda x, u: jnp.sum(x, keepdims=True),
            jnp.eye(1),
        )
        return filter_fn(model, series).mean

    def general(
        derivatives_fn: Callable, series: jax.Array, s: jax.Array, w: jax.Array
    ) -> jax.Array:
        model, parameters = lorenz.lorenz_model(
            order=ORDER, smoothness=jnp.maximum(s, LEAST), derivatives_fn=derivatives_fn
        )
        hyper = zero_hyperparameters(model)
        hyper = hyper._replace(state=(jnp.log(w)[None] - 4.0,))
        seen = observation(model, embedded_samples.embed(series, ORDER, 1.0))
        run = generalized_filter(model, 1.0, num_steps=1)
        start = rest(model)
        start = start._replace(states=(start.states[0].at[0].set(jnp.asarray(lorenz.START)),))
        _, path, _ = filter_series(run, run.init(parameters, hyper, start), seen)
        return padded(path.states[0][:, 0], num)

    return {
        "extended Kalman": (partial(kalman_of, nonlinear_filters.extended_kalman_filter), NOISE),
        "unscented Kalman": (partial(kalman_of, nonlinear_filters.unscented_kalman_filter), NOISE),
        "generalised, local": (partial(general, coordinates.locally_linear), TRUST),
        "generalised, Taylor": (partial(general, coordinates.by_taylor), TRUST),
    }


def table(title: str, errors: Errors) -> str:
    """Mean and standard deviation over series, in Markdown."""
    lines = [
        f"### {title}",
        "",
        "| method | " + " | ".join(f"s = {s:g}" for s in SMOOTHNESS) + " |",
    ]
    lines.append("| --- |" + " ---: |" * len(SMOOTHNESS))
    for name, values in errors.items():
        cells = [f"{row.mean():.4f} ± {row.std(ddof=1):.4f}" for row in values]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])


def draw(panels: dict[str, Errors]) -> plt.Figure:
    """Errors against smoothness, one panel per problem."""
    figure, axes = plt.subplots(
        1, len(panels), figsize=(4.2 * len(panels), 4), layout="constrained"
    )
    for axis, (title, errors) in zip(axes, panels.items(), strict=True):
        for name, values in errors.items():
            spread = values.std(axis=1, ddof=1)
            axis.errorbar(SMOOTHNESS, values.mean(axis=1), spread, label=name, capsize=2)
        axis.set(title=title, xlabel="smoothness s (samples)", ylabel="RMS error", yscale="log")
        axis.legend(fontsize=7)
    return figure


def main(arguments: Sequence[str] | None = None) -> str:
    """Run the study from the command line; returns its tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seeds", type=int, default=24, help="series per smoothness")
    parser.add_argument("--out", type=Path, default=Path("runs/filtering_study"))
    options = parser.parse_args(arguments)
    if options.seeds < 2:
        parser.error(f"--seeds must be at least 2, got {options.seeds}")
    panels: dict[str, Errors] = {}
    tables: list[str] = []

    def show(title: str, errors: Errors) -> None:
        panels[title] = errors
        tables.append(table(title, errors))
        print(tables[-1], flush=True)

    with jax.enable_x64(True):
        show("Convolution, known cause: states", convolution(options.seeds, known=True)[0])
        states, causes = convolution(options.seeds, known=False)
        show("Convolution, unknown cause: states", states)
        show("Convolution, unknown cause: cause", causes)
        show("Lorenz: states", chaotic(options.seeds))
    text = "\n".join(tables)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "tables.md").write_text(text)
    draw(panels).savefig(options.out / "errors.png", dpi=120)
    return text


if __name__ == "__main__":
    main()

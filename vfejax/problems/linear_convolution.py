"""The linear convolution model of dynamic expectation maximisation: two states that ring, four
outputs that mix them, and one cause, a bump.

    dx/dt = A x + B v + w,    y = C x + z

A and B make a damped oscillation of 9 time units; C is a quarter of the first two cosines over four
outputs. All noise may be smooth. The exact posterior comes from
:mod:`vfejax.inference.gaussian_process`.

Source: Friston, Trujillo-Barreto and Daunizeau, NeuroImage 41 (2008) 849, section "Linear
convolution models" (table 1); the values are those of its software.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.inference.gaussian_process import (
    LinearPaths,
    block_kernel,
    linear_paths,
    smooth_kernel,
)
from vfejax.inference.generalized_filtering import Level, Model
from vfejax.types import Array

__all__ = [
    "DRIFT",
    "EMISSION",
    "GAIN",
    "Data",
    "bump",
    "convolution_model",
    "convolution_paths",
    "noise_kernel",
    "simulate",
]

DRIFT = np.array([[-0.25, 1.0], [-0.5, -0.25]])
"""A, in units of 1 / time."""

GAIN = np.array([[1.0], [0.0]])
"""B."""

EMISSION = np.stack(
    [np.full(4, 0.125), np.sqrt(0.5) / 4 * np.cos(np.pi * (np.arange(4) + 0.5) / 4)], 1
)
"""C."""


class Data(NamedTuple):
    """``states [..., t, 2]``, ``causes [..., t, 1]`` and ``observations [..., t, 4]``."""

    states: np.ndarray
    causes: np.ndarray
    observations: np.ndarray


def bump(times: np.ndarray) -> np.ndarray:
    """The cause of the paper, ``exp(-(t - 12)^2 / 4)``.

    >>> bump(np.array([12.0, 14.0])).round(4).tolist()
    [1.0, 0.3679]
    """
    return np.exp(-((times - 12.0) ** 2) / 4.0)


def _product(matrix: Array, vector: Array) -> Array:
    # Taylor-mode differentiation knows this product, but none of those in vfejax.numerics.
    return jnp.matmul(matrix, vector, precision="highest")


def _motion(states: Array, causes: Array, parameters: dict[str, Array]) -> Array:
    return _product(parameters["drift"], states) + _product(parameters["gain"], causes)


def _output(states: Array, causes: Array, parameters: dict[str, Array]) -> Array:
    return _product(parameters["emission"], states)


def convolution_model(
    *,
    order: int = 6,
    cause_order: int = 3,
    smoothness: float = 0.5,
    output_precision: float = float(np.exp(8)),
    state_precision: float = float(np.exp(8)),
    cause_precision: float = 1.0,
    dtype: jnp.dtype | None = None,
) -> tuple[Model, tuple[dict[str, Array]]]:
    """The model and its true parameters; ``model._replace`` changes its further fields.

    Args:
        order: number of derivatives of states and observations.
        cause_order: number of derivatives of the cause.
        smoothness: s of all noise, in units of time.
        output_precision: of z.
        state_precision: of w, in units of time^2.
        cause_precision: of the prior of the cause.
        dtype: of the parameters; the default float if None.

    Returns:
        The model and ``({"drift", "gain", "emission"},)``.

    >>> model, parameters = convolution_model()
    >>> parameters[0]["emission"].shape
    (4, 2)
    """
    level = Level(
        _motion, _output, output_precision * np.eye(4)[None], state_precision * np.eye(2)[None]
    )
    model = Model((level,), cause_precision * np.eye(1), order, cause_order, smoothness)
    values = {"drift": DRIFT, "gain": GAIN, "emission": EMISSION}
    dtype = dtype or jnp.result_type(float)
    return model, ({name: jnp.asarray(value, dtype) for name, value in values.items()},)


def noise_kernel(num: int, smoothness: float, num_substeps: int = 1) -> np.ndarray:
    """Autocorrelation on a grid of ``num * num_substeps`` points, samples one unit of time apart.

    Args:
        num: number of samples.
        smoothness: s, in units of time; 0 for noise that is independent from sample to sample and
            constant in between.
        num_substeps: points of the grid per sample.

    Returns:
        ``[g, g]``.

    >>> noise_kernel(2, 0.0).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    if smoothness == 0:
        return block_kernel(num * num_substeps, num_substeps)
    return smooth_kernel(np.arange(num * num_substeps) / num_substeps, smoothness)


def convolution_paths(
    num: int,
    smoothness: float,
    *,
    state_precision: float = float(np.exp(8)),
    cause_precision: float = np.inf,
    cause_smoothness: float = 1.0,
    cause_mean: np.ndarray | None = None,
    num_substeps: int = 8,
) -> LinearPaths:
    """Prior of states and cause for samples one unit of time apart, starting at rest.

    Args:
        num: number of samples.
        smoothness: s of the state noise; 0 for white noise.
        state_precision: of w.
        cause_precision: of the cause about its mean; infinite for a known cause.
        cause_smoothness: s of the cause about its mean.
        cause_mean: ``[g]`` on the grid; the bump if None.
        num_substeps: points of the grid per sample.

    Returns:
        The prior for :func:`vfejax.inference.gaussian_process.posterior`.

    >>> convolution_paths(4, 0.5).mean.shape
    (4, 3)
    """
    grid = np.arange(num * num_substeps) / num_substeps
    mean = bump(grid) if cause_mean is None else cause_mean
    return linear_paths(
        DRIFT,
        GAIN,
        1.0,
        num_substeps,
        initial=(np.zeros(2), np.zeros((2, 2))),
        causes=(mean[:, None], noise_kernel(num, cause_smoothness, num_substeps) / cause_precision),
        noise=(np.eye(2) / state_precision, noise_kernel(num, smoothness, num_substeps)),
    )


def simulate(
    rng: np.random.Generator,
    paths: LinearPaths,
    num_series: int,
    smoothness: float,
    output_precision: float = float(np.exp(8)),
) -> Data:
    """Draws of the model with exactly the stated autocorrelations.

    Args:
        rng: a generator of NumPy.
        paths: prior, from :func:`convolution_paths`.
        num_series: how many.
        smoothness: s of the output noise; 0 for white noise.
        output_precision: of z.

    Returns:
        States, causes and observations of all series, float64.

    >>> simulate(np.random.default_rng(0), convolution_paths(4, 0.5), 3, 0.5).observations.shape
    (3, 4, 4)
    """
    draws = rng.standard_normal((num_series, paths.root.shape[-1]))
    both = paths.mean + np.einsum("tir,sr->sti", paths.root, draws)
    values, vectors = np.linalg.eigh(noise_kernel(len(paths.mean), smoothness))
    root = vectors * np.sqrt(np.maximum(values, 0.0) / output_precision)
    noise = root @ rng.standard_normal((num_series, len(root), 4))
    states, causes = both[..., :2], both[..., 2:]
    return Data(states, causes, states @ EMISSION.T + noise)

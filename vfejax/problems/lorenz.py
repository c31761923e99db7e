"""A Lorenz system that is seen through the sum of its coordinates, in noise of any smoothness.

    dx/dt = [18 (x_2 - x_1), x_1 (46.92 - x_3) - x_2, x_1 x_2 - 4 x_3] / 32,    y = x_1 + x_2 + x_3
    + z

Time runs 32 times slower than in Lorenz' equations, so that a sample per unit of time suffices. The
coordinates themselves have no noise; what is hard is one output for three chaotic states.

Source: Friston et al., NeuroImage 41 (2008) 849, section "The Lorenz attractor", with the values of
its software; Lorenz, J. Atmos. Sci. 20 (1963) 130, for the equations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.generalized_filtering import Level, Model
from vfejax.inference.generalized_filtering.generalized_coordinates import DerivativesFn, by_taylor
from vfejax.numerics import as_floating, cast_like
from vfejax.problems.linear_convolution import noise_kernel
from vfejax.types import Array

__all__ = ["START", "Data", "lorenz_model", "runge_kutta", "simulate", "vector_field"]

START = np.array([0.9, 0.8, 30.0])
"""Expectation of the first state."""


class Data(NamedTuple):
    """``states [..., t, 3]`` and ``observations [..., t, 1]``."""

    states: np.ndarray
    observations: np.ndarray


def vector_field(states: Array) -> Array:
    """``dx/dt`` for ``states [3]``.

    >>> [round(float(x), 3) for x in vector_field(jnp.array([1.0, 1.0, 0.0]))]
    [0.0, 1.435, 0.031]
    """
    x, y, z = states[0], states[1], states[2]
    return jnp.stack([18.0 * (y - x), x * (46.92 - z) - y, x * y - 4.0 * z]) / 32.0


def runge_kutta(states: Array, dt: float, num_steps: int = 4) -> Array:
    """States ``dt`` later, by the classical scheme of fourth order.

    Args:
        states: ``[3]``.
        dt: in units of time.
        num_steps: how many steps make ``dt``.

    Returns:
        ``[3]``.

    >>> runge_kutta(jnp.zeros(3), 1.0).tolist()
    [0.0, 0.0, 0.0]
    """
    states = as_floating(states, "states")
    h = cast_like(dt, states) / num_steps

    def step(x: Array, _: None) -> tuple[Array, None]:
        a = vector_field(x)
        b = vector_field(x + h / 2 * a)
        c = vector_field(x + h / 2 * b)
        d = vector_field(x + h * c)
        return x + h / 6 * (a + 2.0 * b + 2.0 * c + d), None

    return jax.lax.scan(step, states, None, length=num_steps)[0]


def lorenz_model(
    *,
    order: int = 5,
    smoothness: float = 0.5,
    output_precision: float = 1.0,
    state_precision: float = float(np.exp(4)),
    derivatives_fn: DerivativesFn = by_taylor,
) -> tuple[Model, tuple[tuple]]:
    """The generative model, without causes, and its parameters (none); ``model._replace`` changes
    its further fields.

    Args:
        order: number of derivatives.
        smoothness: s of the noise, in units of time.
        output_precision: of z.
        state_precision: of the motion, in units of time^2: how far the model is trusted.
        derivatives_fn: of the motion.

    Returns:
        The model and ``((),)``.

    >>> lorenz_model()[0].order
    5
    """
    level = Level(
        lambda x, v, theta: vector_field(x),
        lambda x, v, theta: jnp.sum(x, keepdims=True),
        output_precision * np.eye(1)[None],
        state_precision * np.eye(3)[None],
    )
    model = Model((level,), np.eye(0), order, 1, smoothness, derivatives_fn=derivatives_fn)
    return model, ((),)


def simulate(
    rng: np.random.Generator,
    num: int,
    num_series: int,
    smoothness: float,
    *,
    output_precision: float = 1.0,
    spread: float = 1.0,
) -> Data:
    """Trajectories from near :data:`START` and their noisy observations.

    Args:
        rng: a generator of NumPy.
        num: samples per series, one unit of time apart.
        num_series: how many.
        smoothness: s of the noise, with exactly its autocorrelation; 0 for white noise.
        output_precision: of the noise.
        spread: standard deviation of the first state about its expectation.

    Returns:
        States and observations, float64 where JAX has it.

    >>> simulate(np.random.default_rng(0), 4, 2, 0.5).observations.shape
    (2, 4, 1)
    """
    first = jnp.asarray(START + spread * rng.standard_normal((num_series, 3)))

    def path(start: Array) -> Array:
        def step(x: Array, _: None) -> tuple[Array, Array]:
            return runge_kutta(x, 1.0), x

        return jax.lax.scan(step, start, None, length=num)[1]

    states = np.asarray(jax.vmap(path)(first))
    values, vectors = np.linalg.eigh(noise_kernel(num, smoothness))
    root = vectors * np.sqrt(np.maximum(values, 0.0) / output_precision)
    noise = rng.standard_normal((num_series, num)) @ root.T
    return Data(states, states.sum(axis=-1, keepdims=True) + noise[..., None])

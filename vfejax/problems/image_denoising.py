"""An Ising image denoiser: a binary picture behind independent flips, its pixels' posterior by
loopy belief propagation, and median filters as the baseline.

The prior says that neighbours agree, ``p(x) ~ exp(J sum s s')`` with spins s = +-1; each pixel is
seen flipped with probability q. The picture that has the fewest wrong pixels on average takes every
pixel's more probable value.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.loopy import LoopyInfo, belief_propagation, potts
from vfejax.numerics import as_floating
from vfejax.types import Array

__all__ = ["Denoised", "blobs", "denoise", "error_rate", "flip", "median_filter"]


class Denoised(NamedTuple):
    """Probability that each pixel is 1, ``[h, w]``, the picture of the more probable values, and
    how the messages settled.
    """

    probability: Array
    picture: Array
    info: LoopyInfo


def blobs(rng: np.random.Generator, height: int, width: int, num_shapes: int = 12) -> np.ndarray:
    """A picture of discs and bars, some cut out of others.

    Args:
        rng: NumPy generator.
        height, width: in pixels.
        num_shapes: how many shapes, drawn one over the other.

    Returns:
        0 and 1, ``[height, width]``.

    >>> blobs(np.random.default_rng(0), 20, 30).shape
    (20, 30)
    """
    row, column = np.mgrid[:height, :width].astype(float)
    size, picture = min(height, width), np.zeros((height, width), int)
    for i in range(num_shapes):
        y, x = rng.uniform(0, height), rng.uniform(0, width)
        angle, radius = rng.uniform(0, np.pi), size * rng.uniform(0.08, 0.25)
        along = np.cos(angle) * (row - y) + np.sin(angle) * (column - x)
        across = np.cos(angle) * (column - x) - np.sin(angle) * (row - y)
        disc = along**2 + across**2 < radius**2
        bar = (np.abs(along) < 2 * radius) & (np.abs(across) < max(1.5, 0.25 * radius))
        picture[disc if i % 2 else bar] = int(i % 4 < 3)
    return picture


def flip(rng: np.random.Generator, picture: np.ndarray, probability: float) -> np.ndarray:
    """The picture with every pixel flipped independently.

    Args:
        rng: NumPy generator.
        picture: 0 and 1, ``[h, w]``.
        probability: q of a flip.

    Returns:
        0 and 1, ``[h, w]``.

    >>> flip(np.random.default_rng(0), np.zeros((2, 2), int), 1.0).tolist()
    [[1, 1], [1, 1]]
    """
    return np.where(rng.random(picture.shape) < probability, 1 - picture, picture)


def denoise(
    noisy: Array,
    probability: jax.typing.ArrayLike,
    coupling: jax.typing.ArrayLike = 0.7,
    *,
    max_steps: int = 100,
) -> Denoised:
    """The posterior of each pixel under an Ising prior.

    Args:
        noisy: 0 and 1, ``[h, w]``.
        probability: q of a flip, above 0 and below 1; NaN outside where it is traced.
        coupling: J, in nats.
        max_steps: the most floods of messages.

    Returns:
        Probabilities, the picture (0 where they are NaN) and how the messages settled.

    Raises:
        ValueError: when the picture is not ``[h, w]`` or empty, or q is known and not between 0 and
            1.

    Source: Geman and Geman (1984) for the model; Bishop, Pattern Recognition and Machine Learning
        (2006), section 8.3.3, which finds the most probable picture instead.

    >>> noisy = jnp.ones((5, 5)).at[2, 2].set(0)
    >>> int(denoise(noisy, 0.1).picture.sum())
    25
    """
    noisy = as_floating(noisy, "noisy")
    if noisy.ndim != 2:
        raise ValueError(f"noisy must be [h, w], got shape {list(noisy.shape)}")
    q = as_floating(probability, "probability").astype(noisy.dtype)
    if not isinstance(q, jax.core.Tracer) and np.any((q <= 0) | (q >= 1)):
        raise ValueError(f"probability must be above 0 and below 1, got {probability}")
    seen = jnp.stack([1.0 - noisy, noisy], axis=-1)
    nodes = seen * jnp.log(1.0 - q) + (1.0 - seen) * jnp.log(q)
    coupling = as_floating(coupling, "coupling").astype(noisy.dtype)
    pair = potts(2.0 * coupling, 2)
    beliefs, info = belief_propagation(nodes, pair, pair, tolerance=1e-3, max_steps=max_steps)
    one = beliefs[..., 1]
    return Denoised(one, (one > 0.5).astype(int), info)


def median_filter(noisy: np.ndarray, size: int) -> np.ndarray:
    """The median over a square around each pixel, with the picture repeated at its border.

    Args:
        noisy: 0 and 1, ``[h, w]``.
        size: side of the square, odd.

    Returns:
        0 and 1, ``[h, w]``.

    >>> median_filter(np.eye(3, dtype=int), 3).tolist()
    [[1, 0, 0], [0, 0, 0], [0, 0, 1]]
    """
    if size < 1 or size % 2 == 0:
        raise ValueError(f"size must be odd, got {size}")
    wide = np.pad(noisy, size // 2, mode="edge")
    squares = np.lib.stride_tricks.sliding_window_view(wide, (size, size))
    return (squares.sum(axis=(-2, -1)) > size * size // 2).astype(int)


def error_rate(picture: Array, truth: np.ndarray) -> float:
    """The part of the pixels that is wrong.

    >>> error_rate(np.eye(2), np.ones((2, 2)))
    0.5
    """
    return float(np.mean(np.asarray(picture) != np.asarray(truth)))

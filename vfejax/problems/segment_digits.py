"""Seven-segment digits at random places of a small noisy image, with the best possible classifier.

A digit is three pixels wide and five high, lit at random strength, and stands anywhere in the
image; every pixel has Gaussian noise. What is known of the images is all that decides them, so that
the posterior of the digit can be summed exactly: no classifier is right more often on average than
:func:`posterior`. A linear one fails, as no pixel means a digit by itself.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Images", "posterior", "simulate"]

# Segments: top, upper left, upper right, middle, lower left, lower right, bottom.
_LIT = (
    *("1110111", "0010010", "1011101", "1011011", "0111010"),
    *("1101011", "1101111", "1010010", "1111111", "1111011"),
)
_PIXELS = (
    ((0, 0), (0, 1), (0, 2)),
    ((0, 0), (1, 0), (2, 0)),
    ((0, 2), (1, 2), (2, 2)),
    ((2, 0), (2, 1), (2, 2)),
    ((2, 0), (3, 0), (4, 0)),
    ((2, 2), (3, 2), (4, 2)),
    ((4, 0), (4, 1), (4, 2)),
)
_HEIGHT, _WIDTH = 5, 3
_STRENGTHS = (0.8, 1.0, 1.2)


class Images(NamedTuple):
    """``pixels [n, size, size]``, float32, and the digit of each, ``labels [n]``."""

    pixels: np.ndarray
    labels: np.ndarray


def _glyphs() -> np.ndarray:
    """``[10, 5, 3]``, 1 where a digit is lit."""
    glyphs = np.zeros((10, _HEIGHT, _WIDTH))
    for digit, lit in enumerate(_LIT):
        for on, pixels in zip(lit, _PIXELS, strict=True):
            if on == "1":
                glyphs[(digit, *np.transpose(pixels))] = 1.0
    return glyphs


def _templates(size: int) -> np.ndarray:
    """Every digit at every place: ``[10, places, size, size]``."""
    if size < _HEIGHT:
        raise ValueError(f"size must be at least {_HEIGHT}, got {size}")
    rows, columns = size - _HEIGHT + 1, size - _WIDTH + 1
    found = np.zeros((10, rows, columns, size, size))
    for i in range(rows):
        for j in range(columns):
            found[:, i, j, i : i + _HEIGHT, j : j + _WIDTH] = _glyphs()
    return found.reshape(10, rows * columns, size, size)


def simulate(
    rng: np.random.Generator, num_images: int, *, size: int = 7, noise_std: float = 0.25
) -> Images:
    """Draw images: digit, place and strength uniform.

    Args:
        rng: NumPy generator.
        num_images: n.
        size: pixels along each side, at least 5.
        noise_std: standard deviation of the noise of a pixel, in units of the middle strength.

    Returns:
        Images and labels.

    Raises:
        ValueError: for no image, a size below 5, or a noise that is not above 0.

    >>> images = simulate(np.random.default_rng(0), 100)
    >>> images.pixels.shape, images.labels.shape
    ((100, 7, 7), (100,))
    """
    if num_images < 1:
        raise ValueError(f"num_images must be at least 1, got {num_images}")
    _check_noise(noise_std)
    templates = _templates(size)
    labels = rng.integers(10, size=num_images)
    clean = templates[labels, rng.integers(templates.shape[1], size=num_images)]
    strength = rng.choice(_STRENGTHS, size=(num_images, 1, 1))
    pixels = strength * clean + noise_std * rng.standard_normal(clean.shape)
    return Images(pixels.astype(np.float32), labels)


def posterior(pixels: np.ndarray, noise_std: float = 0.25) -> np.ndarray:
    """``p(digit | image)``, summed over places and strengths, for images of :func:`simulate`.

    Args:
        pixels: ``[n, size, size]``.
        noise_std: that of the images.

    Returns:
        ``[n, 10]``; NaN for an image with a NaN.

    Raises:
        ValueError: for images that are not square or too small, or a noise that is not above 0.

    >>> images = simulate(np.random.default_rng(0), 200)
    >>> bool(np.mean(posterior(images.pixels).argmax(1) == images.labels) > 0.9)
    True
    """
    if pixels.ndim != 3 or pixels.shape[1] != pixels.shape[2]:
        raise ValueError(f"pixels must have shape [n, size, size], got {pixels.shape}")
    _check_noise(noise_std)
    templates = _templates(pixels.shape[1]).reshape(10, -1, pixels.shape[1] ** 2)
    flat = np.asarray(pixels, np.float64).reshape(len(pixels), templates.shape[-1])
    products = np.einsum("ni,dpi->ndp", flat, templates)
    squares = np.sum(templates**2, axis=-1)
    # |x - a t|^2 without |x|^2, which all hypotheses share.
    logs = np.stack([a * products - 0.5 * a**2 * squares for a in _STRENGTHS], axis=-1)
    logs = logs.reshape(*logs.shape[:2], len(_STRENGTHS) * templates.shape[1]) / noise_std**2
    weights = np.exp(logs - np.max(logs, axis=(1, 2), keepdims=True)).sum(axis=-1)
    return weights / weights.sum(axis=-1, keepdims=True)


def _check_noise(noise_std: float) -> None:
    if not noise_std > 0:
        raise ValueError(f"noise_std must be above 0, got {noise_std}")

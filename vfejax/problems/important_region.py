"""Pictures with a known important region, for the allocation of tokens.

A red sign with fine dark lines stands before a smooth sky and a ground of grey noise. The sign is
what matters; the noise has the largest entropy, and nobody asks for it.
"""

from typing import NamedTuple

import numpy as np

__all__ = ["Scene", "draw_scene"]


class Scene(NamedTuple):
    """A picture and what matters in it.

    Attributes:
        picture: sRGB, ``[h, w, 3]``, float32 from 0 to 1.
        important: True on the sign, ``[h, w]``.
    """

    picture: np.ndarray
    important: np.ndarray


def draw_scene(rng: np.random.Generator, height: int = 192, width: int = 256) -> Scene:
    """A sign at a random place before sky and ground.

    Args:
        rng: NumPy generator.
        height, width: in pixels, at least 8.

    Raises:
        ValueError: for a smaller picture.

    >>> scene = draw_scene(np.random.default_rng(0), 64, 96)
    >>> scene.picture.shape, bool(0.01 < scene.important.mean() < 0.2)
    ((64, 96, 3), True)
    """
    if min(height, width) < 8:
        raise ValueError(f"height and width must be at least 8, got {height} and {width}")
    row, column = np.mgrid[:height, :width] + 0.5
    horizon = height * rng.uniform(0.4, 0.6)
    fade = (row / height)[..., None]
    sky = (1 - fade) * np.array([0.45, 0.65, 0.9]) + fade * np.array([0.85, 0.9, 0.95])
    ground = 0.45 + rng.normal(0, 0.15, (height, width, 1))
    picture = np.where((row < horizon)[..., None], sky, ground)

    radius = min(height, width) * rng.uniform(0.12, 0.17)
    y, x = (rng.uniform(radius, size - radius) for size in (height, width))
    important = np.hypot(row - y, column - x) < radius
    across = (column - x) * np.cos(0.5) + (row - y) * np.sin(0.5)
    lines = (np.sin(2 * np.pi * across / 3.5) > 0.3) & (
        np.hypot(row - y, column - x) < 0.8 * radius
    )
    sign = np.where(lines[..., None], np.array([0.35, 0.05, 0.05]), np.array([0.85, 0.12, 0.1]))
    picture = np.where(important[..., None], sign, picture)
    return Scene(np.clip(picture, 0, 1).astype(np.float32), important)

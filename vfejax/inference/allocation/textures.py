"""Textures of the patches of a picture: what they look like, in thirteen numbers each.

A picture is cut into square patches; one that does not divide into whole patches is continued by
its last row and column. Colour is taken in sRGB and in CIELAB, whose distances are those that
people see, edges by Sobel's filter of the lightness, and the local entropy from a histogram of the
lightness in the patch. Every number depends on one picture alone.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.categorical import entropy
from vfejax.numerics import as_floating, safe_sqrt
from vfejax.types import Array

__all__ = ["CHANNELS", "patch_grid", "patch_means", "patch_textures", "srgb_to_lab"]

CHANNELS = (
    *("red", "green", "blue", "lightness", "a", "b"),
    *("sobel_x", "sobel_y", "sobel_magnitude", "row", "column", "eccentricity", "entropy"),
)
"""Names of the thirteen numbers, in the order of the last axis."""

# Linear sRGB to CIE XYZ (IEC 61966-2-1); the rows' sums are its white, D65.
_TO_XYZ = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
_TO_WHITE = _TO_XYZ / _TO_XYZ.sum(axis=1, keepdims=True)
_LINEAR_BELOW = (6 / 29) ** 3
_NUM_BINS = 16


def _power(base: Array, exponent: float, linear: Array, below: Array) -> Array:
    """``base^exponent``, or ``linear`` where ``below``; through exp and log, as CPUs like it."""
    power = jnp.exp(exponent * jnp.log(jnp.where(below, 1.0, base)))
    return jnp.where(below, linear, power)


def _lab(colours: Array) -> tuple[Array, Array, Array]:
    """L*, a* and b* of ``colours [3, ...]``."""
    light = _power((colours + 0.055) / 1.055, 2.4, colours / 12.92, colours <= 0.04045)
    red, green, blue = light
    x, y, z = (float(r) * red + float(g) * green + float(b) * blue for r, g, b in _TO_WHITE)
    scale, offset = (29 / 6) ** 2 / 3, 4 / 29
    x, y, z = (_power(t, 1 / 3, scale * t + offset, t <= _LINEAR_BELOW) for t in (x, y, z))
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def srgb_to_lab(colours: Array) -> Array:
    """CIELAB coordinates of sRGB colours, for white D65.

    Args:
        colours: red, green and blue, ``[..., 3]``, from 0 to 1.

    Returns:
        L* (0 to 100), a* and b*, ``[..., 3]``.

    Raises:
        ValueError: for another last axis, or integers.

    Source: CIE 15 (2004), and IEC 61966-2-1 for sRGB.

    >>> [round(float(x), 1) for x in srgb_to_lab(jnp.array([1.0, 0.0, 0.0]))]
    [53.2, 80.1, 67.2]
    """
    colours = _colours(colours, "colours", "[..., 3]")
    return jnp.stack(_lab(jnp.moveaxis(colours, -1, 0)), axis=-1)


def _colours(colours: Array, name: str, shape: str) -> Array:
    if not jnp.issubdtype(jnp.asarray(colours).dtype, jnp.floating):
        raise ValueError(
            f"{name} must be floating numbers from 0 to 1, got {jnp.asarray(colours).dtype}; "
            "divide by the largest integer"
        )
    if colours.ndim == 0 or colours.shape[-1] != 3:
        raise ValueError(f"{name} must have shape {shape}, got {list(colours.shape)}")
    return as_floating(colours, name)


def patch_grid(height: int, width: int, patch: int) -> tuple[int, int]:
    """Rows and columns of the patches that cover a picture.

    Args:
        height, width: of the picture, in pixels.
        patch: side of a patch, in pixels.

    Raises:
        ValueError: when one of them is below 1.

    >>> patch_grid(2160, 3840, 28)
    (78, 138)
    """
    if min(height, width, patch) < 1:
        raise ValueError(
            f"height, width and patch must be at least 1, got {height}, {width} and {patch}"
        )
    return -(-height // patch), -(-width // patch)


def _continued(picture: Array, patch: int) -> Array:
    """``[..., h, w]`` continued to whole patches by the last row and column."""
    height, width = picture.shape[-2:]
    rows, columns = patch_grid(height, width, patch)
    extra = [(0, 0)] * (picture.ndim - 2)
    extra += [(0, rows * patch - height), (0, columns * patch - width)]
    return jnp.pad(picture, extra, mode="edge")


def _sums(pixels: Array, patch: int) -> Array:
    """Sums over the patches of ``pixels [..., rows patch, columns patch]``: down the columns first,
    where neighbours in memory are added side by side.
    """
    *stack, height, width = pixels.shape
    down = pixels.reshape(*stack, height // patch, patch, width).sum(axis=-2)
    return down.reshape(*stack, height // patch, width // patch, patch).sum(axis=-1)


def patch_means(pixels: Array, patch: int) -> Array:
    """Means over the patches of a picture of numbers.

    Args:
        pixels: ``[h, w]``; continued by its last row and column to whole patches.
        patch: side of a patch, in pixels.

    Returns:
        ``[rows, columns]``.

    Raises:
        ValueError: for another shape, or a patch below 1.

    >>> patch_means(jnp.array([[0.0, 1.0, 5.0], [0.0, 1.0, 7.0]]), 2).tolist()
    [[0.5, 6.0]]
    """
    pixels = as_floating(pixels, "pixels")
    if pixels.ndim != 2:
        raise ValueError(f"pixels must have shape [h, w], got {list(pixels.shape)}")
    return _sums(_continued(pixels, patch), patch) / patch**2


def _sobel(lightness: Array) -> tuple[Array, Array]:
    """Slopes of ``[h, w]`` to the right and down, per pixel; the border is repeated."""
    wide = jnp.pad(lightness, 1, mode="edge")
    smooth = wide[:-2] + 2 * wide[1:-1] + wide[2:]
    rise = wide[2:] - wide[:-2]
    down = rise[:, :-2] + 2 * rise[:, 1:-1] + rise[:, 2:]
    return (smooth[:, 2:] - smooth[:, :-2]) / 8, down / 8


def _entropy(lightness: Array, patch: int) -> Array:
    """Entropy of the lightness in each patch, from counts in bins of equal width."""
    bins = jnp.clip(lightness * (_NUM_BINS / 100), 0, _NUM_BINS - 1).astype(jnp.int8)
    every = jnp.arange(_NUM_BINS, dtype=jnp.int8)[:, None, None]
    counts = _sums((bins[None] == every).astype(jnp.int32), patch)
    return entropy(jnp.moveaxis(counts, 0, -1).astype(lightness.dtype) / patch**2)


def _places(rows: int, columns: int, dtype: jnp.dtype) -> list[Array]:
    """Row and column of the centres of patches, from 0 to 1, and the distance from the middle in
    units of that of a corner.
    """
    row = np.broadcast_to(((np.arange(rows) + 0.5) / rows)[:, None], (rows, columns))
    column = np.broadcast_to((np.arange(columns) + 0.5) / columns, (rows, columns))
    away = np.hypot(row - 0.5, column - 0.5) * math.sqrt(2)
    return [jnp.asarray(x, dtype) for x in (row, column, away)]


def patch_textures(picture: Array, patch: int = 28) -> Array:
    """Thirteen numbers for each patch of a picture, see ``CHANNELS``.

    Means of red, green and blue; of L*, a* and b*; of Sobel's slopes of L* to the right and down
    and of their length, per pixel; the row and column of the centre, from 0 to 1, and its distance
    from the middle of the picture, 1 at a corner; the entropy of L* in 16 bins, in nats.

    Args:
        picture: sRGB, ``[h, w, 3]``, from 0 to 1.
        patch: side of a patch, in pixels.

    Returns:
        ``[rows, columns, 13]`` in the picture's dtype; NaN for patches with pixels that are NaN,
        and for the edges beside them.

    Raises:
        ValueError: for another shape, integers, or a patch below 1.

    >>> found = patch_textures(jnp.ones((30, 40, 3)))
    >>> found.shape, [round(float(x), 2) for x in found[0, 0, 3:9]]  # white, without edges
    ((2, 2, 13), [100.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    """
    picture = _colours(picture, "picture", "[h, w, 3]")
    if picture.ndim != 3:
        raise ValueError(f"picture must have shape [h, w, 3], got {list(picture.shape)}")
    height, width, _ = picture.shape
    rows, columns = patch_grid(height, width, patch)
    colours = _continued(jnp.moveaxis(picture, -1, 0), patch)
    lightness, a, b = _lab(colours)
    right, down = _sobel(lightness)
    length = safe_sqrt(right * right + down * down)
    pixels = (*colours, lightness, a, b, right, down, length)
    means = [_sums(x, patch) / patch**2 for x in pixels]
    # A NaN has no bin, so that a count would hide it.
    uncertain = _entropy(jax.lax.stop_gradient(lightness), patch) + 0.0 * means[3]
    return jnp.stack([*means, *_places(rows, columns, picture.dtype), uncertain], axis=-1)

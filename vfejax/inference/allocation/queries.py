"""Queries: what is asked for in a picture.

A question on colours is a joint table. q is whether a pixel shows what is asked for, with a small
probability beforehand; its content c is the cell of a lattice in CIELAB that its colour falls into:
``p(q, c) = p(q) p(c | q)``. What does not answer the question is spread evenly over all sRGB
colours, so that no picture decides what is rare. A colour, and the colours of an example, are asked
for in one way: by how near a cell is to them.

A question on a region is a prior over patches: information has no sign, and the pixels outside of
a large region tell as much as those inside.
"""

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference.allocation.information import gaussian_information, specific_information
from vfejax.inference.allocation.textures import patch_grid, patch_means, srgb_to_lab
from vfejax.numerics import safe_norm
from vfejax.types import Array

__all__ = [
    "colour_codes",
    "colour_information",
    "colour_query",
    "gaussian_colour_information",
    "region_prior",
]

# Cells: lightness in 10 steps of 10, a* and b* in 17 of 14, which hold all of sRGB. Greys lie in
# the middle of a cell.
_CELLS = (10, 17, 17)
_LOW = (0.0, -119.0, -119.0)
_WIDTH = (10.0, 14.0, 14.0)
NUM_CODES = 10 * 17 * 17
_LATTICE = 48  # points along an edge of the sRGB cube
_UNSEEN = 1e-3  # part of all colours in cells that the lattice misses


def colour_codes(picture: Array) -> Array:
    """The cell in CIELAB of each pixel's colour, integers ``[...]`` below ``NUM_CODES``.

    Args:
        picture: sRGB, ``[..., 3]``, from 0 to 1.

    Raises:
        ValueError: for another last axis, or integers.

    >>> colour_codes(jnp.zeros((1, 3))).tolist()  # black: lightness 0, a* and b* in the middle
    [144]
    """
    lab = jnp.moveaxis(srgb_to_lab(picture), -1, 0)
    places = [
        jnp.clip((x - low) / width, 0, size - 1).astype(jnp.int32)
        for x, low, width, size in zip(lab, _LOW, _WIDTH, _CELLS, strict=True)
    ]
    return (places[0] * _CELLS[1] + places[1]) * _CELLS[2] + places[2]


def _even_colours(dtype: jnp.dtype) -> Array:
    """The part of all sRGB colours in each cell, from a lattice; no cell is quite empty."""
    steps = np.linspace(0.0, 1.0, _LATTICE)
    lattice = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    counts = _count(jnp.asarray(lattice, dtype))
    return (1 - _UNSEEN) * counts + _UNSEEN / NUM_CODES


def _count(colours: Array) -> Array:
    """The part of ``colours [n, 3]`` in each cell; NaN where one of them is."""
    codes = colour_codes(colours)
    # Whole numbers: millions of small parts would not add up in float32.
    counts = jnp.zeros(NUM_CODES, jnp.int32).at[codes].add(1)
    # A NaN falls into some cell, so that a count would hide it.
    return counts.astype(colours.dtype) / codes.size + 0.0 * jnp.sum(colours)


def _near(counts: Array, bandwidth: float) -> Array:
    """Counts of cells, spread by a Gaussian in CIELAB that halves distances in lightness."""
    near = counts.reshape(_CELLS)
    for axis, (size, width, weight) in enumerate(zip(_CELLS, _WIDTH, (0.5, 1, 1), strict=True)):
        steps = np.arange(size) * width * weight / bandwidth
        kernel = jnp.asarray(np.exp(-0.5 * (steps[:, None] - steps) ** 2), counts.dtype)
        near = jnp.moveaxis(
            jnp.tensordot(kernel, near, axes=(1, axis), precision="highest"), 0, axis
        )
    return near.reshape(-1)


def colour_query(example: Array, *, bandwidth: float = 20.0, probability: float = 0.05) -> Array:
    """The joint table of the question whether a pixel has the colours of an example.

    ``p(c | other)`` is even over all sRGB colours, and ``p(c | asked)`` over those near the
    example's: a Gaussian in CIELAB weighs them, with half the distance in lightness.

    Args:
        example: sRGB colours, ``[..., 3]``, from 0 to 1: one, or all pixels of a picture.
        bandwidth: distance in CIELAB over which colours are alike.
        probability: that a pixel shows what is asked for, before it is seen.

    Returns:
        ``[2, NUM_CODES]``: other and asked, by cells.

    Raises:
        ValueError: when the bandwidth is not positive, the probability not between 0 and 1, or the
            colours have another last axis, or are integers, or none.

    >>> from vfejax.inference.allocation.information import mutual_information
    >>> red = colour_query(jnp.array([1.0, 0.0, 0.0]))
    >>> red.shape, bool(mutual_information(red) > 0)
    ((2, 2890), True)
    """
    if not bandwidth > 0:
        raise ValueError(f"bandwidth must be positive, got {bandwidth}")
    _check_probability("probability", probability)
    if example.size == 0:
        raise ValueError(f"example must hold a colour, got shape {list(example.shape)}")
    other = _even_colours(example.dtype)
    asked = other * _near(_count(example.reshape(-1, 3)), bandwidth)
    asked = asked / jnp.sum(asked)
    return jnp.stack([(1 - probability) * other, probability * asked])


def colour_information(picture: Array, joint: Array, patch: int = 28) -> Array:
    """What the pixels of each patch tell about a question on colours, in nats, on average.

    Its mean over pixels that are distributed as the table says is the mutual information.

    Args:
        picture: sRGB, ``[h, w, 3]``, from 0 to 1.
        joint: of :func:`colour_query`.
        patch: side of a patch, in pixels.

    Returns:
        ``[rows, columns]``.

    Raises:
        ValueError: when the shapes do not fit.

    >>> red = jnp.zeros((28, 56, 3)).at[:, 28:, 0].set(1.0)
    >>> colour_information(red, colour_query(jnp.array([1.0, 0.0, 0.0]))).argmax().item()
    1
    """
    if joint.shape != (2, NUM_CODES):
        raise ValueError(f"joint must have shape [2, {NUM_CODES}], got {list(joint.shape)}")
    told = specific_information(joint)[colour_codes(picture)]
    return patch_means(told + 0.0 * jnp.sum(picture, axis=-1), patch)


def gaussian_colour_information(
    picture: Array,
    colour: Array,
    patch: int = 28,
    *,
    background: Array | None = None,
    noise: float = 20.0,
) -> Array:
    """What each patch tells about a colour where contents are Gaussian, in nats: no cells, and a
    gradient to the picture and to both colours.

    ``I = 1/2 log(1 + E[(w . x)^2] / noise^2)``, with x the pixels' distance from the background in
    CIELAB and w the direction of the colour from it. A Gaussian knows no sign: the opposite colour
    tells as much.

    Args:
        picture: sRGB, ``[h, w, 3]``, from 0 to 1.
        colour: that is asked for, sRGB, ``[3]``; another one than the background.
        patch: side of a patch, in pixels.
        background: sRGB, ``[3]``; a middle grey by default.
        noise: standard deviation of what is heard, in units of CIELAB.

    Returns:
        ``[rows, columns]``.

    Raises:
        ValueError: for other shapes, integers, or noise that is not positive.

    >>> red = jnp.full((28, 56, 3), 0.5).at[:, 28:, 1:].set(0.0)
    >>> gaussian_colour_information(red, jnp.array([1.0, 0.0, 0.0])).argmax().item()
    1
    """
    if colour.shape != (3,):
        raise ValueError(f"colour must have shape [3], got {list(colour.shape)}")
    if not noise > 0:
        raise ValueError(f"noise must be positive, got {noise}")
    behind = jnp.full(3, 0.5, colour.dtype) if background is None else background
    grey = srgb_to_lab(behind)
    away = srgb_to_lab(colour) - grey
    lab = srgb_to_lab(picture)
    away = away / safe_norm(away)
    heard = jnp.matmul(lab - jnp.broadcast_to(grey, lab.shape), away, precision="highest")
    power = patch_means(heard * heard, patch)
    unit = jnp.ones((1, 1), power.dtype)
    return gaussian_information(power[..., None, None], unit, noise**2 * unit)


def region_prior(
    height: int,
    width: int,
    region: tuple[int, int, int, int],
    patch: int = 28,
    *,
    miss: float = 0.1,
    dtype: jax.typing.DTypeLike = jnp.float32,
) -> Array:
    """Log probabilities of the patches for a question on a region of the picture.

    What is asked for lies somewhere in the region, but for a small probability that it lies
    anywhere: ``p_i = (1 - miss) overlap_i / sum overlap + miss / p``.

    Args:
        height, width: of the picture, in pixels.
        region: left, top, width and height, in pixels; what reaches over the picture is cut off.
        patch: side of a patch, in pixels.
        miss: the small probability, above 0.
        dtype: of the result.

    Returns:
        ``[rows columns]``.

    Raises:
        ValueError: for a region that holds no pixel of the picture, or a miss that is none.

    >>> [round(float(p), 2) for p in jnp.exp(region_prior(28, 56, (28, 0, 28, 28)))]
    [0.05, 0.95]
    """
    _check_probability("miss", miss)
    rows, columns = patch_grid(height, width, patch)
    left, top, wide, high = region
    across = _overlaps(left, min(left + wide, width), columns, patch)
    down = _overlaps(top, min(top + high, height), rows, patch)
    covered = np.outer(down, across).reshape(-1)
    if not covered.any():
        raise ValueError(
            f"region {left},{top},{wide},{high} must hold a pixel of the picture of {width} x "
            f"{height} pixels"
        )
    chances = (1 - miss) * covered / covered.sum() + miss / covered.size
    return jnp.asarray(np.log(chances), dtype)


def _overlaps(start: int, stop: int, num: int, patch: int) -> np.ndarray:
    """Pixels that each of ``num`` patches along an axis shares with an interval."""
    first = patch * np.arange(num)
    return np.maximum(np.minimum(first + patch, stop) - np.maximum(first, start), 0)


def _check_probability(name: str, value: float) -> None:
    if not 0 < value < 1:
        raise ValueError(f"{name} must be a probability above 0 and below 1, got {value}")

"""Base manifolds as grids: points, distances, supports and quadrature.

A grid is a pytree of points and quadrature weights. ``lengths`` holds the period of each periodic
axis and infinity for an open one, so one formula for displacement serves lines, rings, planes and
tori. Lengths are in the user's unit.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.numerics import as_floating, cast_like, common_dtype, expand_leading, safe_norm
from vfejax.types import Array

__all__ = [
    "Grid",
    "displacement",
    "distance",
    "integrate",
    "line",
    "overlap",
    "plane",
    "point",
    "ring",
    "sharp_support",
    "smooth_support",
    "torus",
]


class Grid(NamedTuple):
    """A discretised base manifold.

    ``points [*shape, d]`` are coordinates, ``quadrature [*shape]`` sums to the volume, ``periods
    [d]`` is the period of each axis (inf: open).
    """

    points: Array
    quadrature: Array
    periods: Array


def _axis(num: int, length: float, periodic: bool) -> tuple[np.ndarray, np.ndarray]:
    if num < 1 or not (math.isfinite(length) and length > 0):
        raise ValueError(
            f"a grid axis needs at least 1 point and a positive length, got {num} points, length "
            f"{length}"
        )
    if periodic:
        return np.arange(num) * (length / num), np.full(num, length / num)
    if num == 1:
        return np.array([0.0]), np.array([length])
    weights = np.full(num, length / (num - 1))
    weights[[0, -1]] /= 2
    return np.linspace(0.0, length, num), weights


def _product(shape: Sequence[int], lengths: Sequence[float], periodic: bool) -> Grid:
    if len(shape) != len(lengths):
        raise ValueError(
            f"shape {tuple(shape)} and lengths {tuple(lengths)} must have the same number of axes"
        )
    axes = [_axis(num, length, periodic) for num, length in zip(shape, lengths, strict=True)]
    points = np.stack(np.meshgrid(*(x for x, _ in axes), indexing="ij"), axis=-1)
    weights = np.ones(tuple(shape))
    for axis, (_, w) in enumerate(axes):
        weights = weights * np.expand_dims(w, tuple(a for a in range(len(axes)) if a != axis))
    periods = np.asarray(lengths, float) if periodic else np.full(len(axes), np.inf)
    return Grid(jnp.asarray(points), jnp.asarray(weights), jnp.asarray(periods))


def point() -> Grid:
    """A single point of weight 1: agents without a base manifold (shape ``()``).

    >>> float(point().quadrature)
    1.0
    """
    return Grid(jnp.asarray(np.zeros(0)), jnp.asarray(np.ones(())), jnp.asarray(np.zeros(0)))


def ring(num: int, length: float = 2 * math.pi) -> Grid:
    """Circle of the given circumference; equal weights, which integrate trigonometric polynomials
    below ``num`` exactly.

    >>> ring(4, length=8.0).points[:, 0].tolist()
    [0.0, 2.0, 4.0, 6.0]
    """
    return _product((num,), (length,), periodic=True)


def line(num: int, length: float = 1.0) -> Grid:
    """Interval [0, length] with both ends on the grid; trapezoidal weights.

    >>> line(3).quadrature.tolist()
    [0.25, 0.5, 0.25]
    """
    return _product((num,), (length,), periodic=False)


def torus(shape: Sequence[int], lengths: Sequence[float] | None = None) -> Grid:
    """Product of rings, of circumference 2 pi by default.

    >>> torus((4, 3)).points.shape
    (4, 3, 2)
    """
    return _product(
        shape, [2 * math.pi] * len(shape) if lengths is None else lengths, periodic=True
    )


def plane(shape: Sequence[int], lengths: Sequence[float] | None = None) -> Grid:
    """Product of intervals, of length 1 by default.

    >>> float(plane((3, 3)).quadrature.sum())
    1.0
    """
    return _product(shape, [1.0] * len(shape) if lengths is None else lengths, periodic=False)


def displacement(grid: Grid, centre: Array) -> Array:
    """Shortest displacement from ``centre [..., d]`` to every point, ``[..., *shape, d]``; NaN
    where a coordinate of the centre is.

    >>> displacement(ring(4, length=4.0), jnp.array([3.0])).ravel().tolist()
    [1.0, -2.0, -1.0, 0.0]
    """
    axes = grid.points.ndim - 1
    centre = as_floating(centre, "centre")
    if centre.shape[-1:] != grid.points.shape[-1:]:
        raise ValueError(
            f"centre must be [..., {grid.points.shape[-1]}] on this grid, got shape {centre.shape}"
        )
    dtype = common_dtype(centre, grid.points)
    centre = jnp.reshape(centre, centre.shape[:-1] + (1,) * axes + centre.shape[-1:])
    step = expand_leading(grid.points, centre.ndim).astype(dtype) - centre.astype(dtype)
    periods = jnp.broadcast_to(grid.periods.astype(dtype), step.shape)
    turns = jnp.round(step / periods)
    return step - jnp.where(turns == 0, 0.0, turns * jnp.where(jnp.isinf(periods), 0.0, periods))


def distance(grid: Grid, centre: Array) -> Array:
    """Geodesic (flat) distance from ``centre [..., d]`` to every point, ``[..., *shape]``; its
    gradient at distance 0 is 0.

    >>> distance(ring(4, length=4.0), jnp.array([3.0])).tolist()
    [1.0, 2.0, 1.0, 0.0]
    """
    return safe_norm(displacement(grid, centre))


def sharp_support(distances: Array, radius: float | Array) -> Array:
    """Indicator of the ball: 1 where the distance is at most ``radius``, else 0; NaN at NaN.

    >>> sharp_support(jnp.array([0.0, 1.0, 2.0]), 1.0).tolist()
    [1.0, 1.0, 0.0]
    """
    distances = as_floating(distances, "distances")
    radius = cast_like(radius, distances)
    unknown = jnp.isnan(distances) | jnp.isnan(radius)
    return jnp.where(unknown, jnp.nan, (distances <= radius).astype(distances.dtype))


def smooth_support(distances: Array, radius: float | Array) -> Array:
    """Smooth bump ``exp(1 - 1 / (1 - (r / radius)^2))`` inside the ball, exactly 0 outside; all
    derivatives exist. ``radius`` is positive; NaN at NaN.

    >>> smooth_support(jnp.array([0.0, 1.0, 2.0]), 1.0).tolist()
    [1.0, 0.0, 0.0]
    """
    distances = as_floating(distances, "distances")
    square = (distances / cast_like(radius, distances)) ** 2
    outside = square >= 1
    return jnp.where(outside, 0.0, jnp.exp(1.0 - 1.0 / jnp.where(outside, 1.0, 1.0 - square)))


def overlap(supports: Array) -> Array:
    """Overlaps ``chi_i chi_j`` of supports ``[n, *shape]``, as ``[n, n, *shape]``.

    >>> overlap(jnp.array([[1.0, 0.5], [1.0, 0.0]]))[0, 1].tolist()
    [1.0, 0.0]
    """
    return supports[:, None] * supports[None, :]


def integrate(grid: Grid, values: Array) -> Array:
    """Integral over the base manifold of ``values [..., *shape]``, ``[...]``.

    Raises:
        ValueError: when ``values`` does not end in the shape of the grid, or its precision is
            another one.

    >>> float(integrate(line(3), jnp.array([0.0, 1.0, 2.0])))
    1.0
    """
    values, weights = as_floating(values, "values"), grid.quadrature
    lead = values.ndim - weights.ndim
    if values.shape[max(lead, 0) :] != weights.shape:
        raise ValueError(f"values must be [..., *{weights.shape}], got shape {values.shape}")
    if values.dtype != weights.dtype:
        raise ValueError(
            f"values must have the dtype of the grid, {weights.dtype}, got {values.dtype}; cast "
            f"the grid: jax.tree.map(lambda x: x.astype({values.dtype.name!r}), grid)"
        )
    axes = tuple(range(lead, values.ndim))
    return jnp.sum(values * expand_leading(weights, values.ndim), axis=axes)

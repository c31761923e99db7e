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

from vfejax.numerics import safe_norm
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
            f"a grid axis needs at least 1 point and a positive length, got {num} points, length {length}"
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
    """A single point of weight 1: agents without a base manifold (shape ``()``)."""
    return Grid(jnp.zeros((0,)), jnp.ones(()), jnp.zeros((0,)))


def ring(num: int, length: float = 2 * math.pi) -> Grid:
    """Circle of the given circumference; equal weights, which integrate trigonometric polynomials
    below ``num`` exactly.
    """
    return _product((num,), (length,), periodic=True)


def line(num: int, length: float = 1.0) -> Grid:
    """Interval [0, length] with both ends on the grid; trapezoidal weights."""
    return _product((num,), (length,), periodic=False)


def torus(shape: Sequence[int], lengths: Sequence[float] | None = None) -> Grid:
    """Product of rings, of circumference 2 pi by default."""
    return _product(
        shape, [2 * math.pi] * len(shape) if lengths is None else lengths, periodic=True
    )


def plane(shape: Sequence[int], lengths: Sequence[float] | None = None) -> Grid:
    """Product of intervals, of length 1 by default."""
    return _product(shape, [1.0] * len(shape) if lengths is None else lengths, periodic=False)


def displacement(grid: Grid, centre: Array) -> Array:
    """Shortest displacement from ``centre [..., d]`` to every point, ``[..., *shape, d]``."""
    axes = grid.points.ndim - 1
    centre = jnp.reshape(centre, centre.shape[:-1] + (1,) * axes + centre.shape[-1:])
    periods = jnp.reshape(grid.periods, (1,) * (centre.ndim - 1) + grid.periods.shape)
    points = jnp.reshape(grid.points, (1,) * (centre.ndim - grid.points.ndim) + grid.points.shape)
    step = points - centre
    turns = jnp.round(step / periods)
    return step - jnp.where(turns == 0, 0.0, turns * jnp.where(jnp.isinf(periods), 0.0, periods))


def distance(grid: Grid, centre: Array) -> Array:
    """Geodesic (flat) distance from ``centre [..., d]`` to every point, ``[..., *shape]``; its
    gradient at distance 0 is 0.
    """
    return safe_norm(displacement(grid, centre))


def sharp_support(distances: Array, radius: float | Array) -> Array:
    """Indicator of the ball: 1 where the distance is at most ``radius``, else 0."""
    return (distances <= radius).astype(distances.dtype)


def smooth_support(distances: Array, radius: float | Array) -> Array:
    """Smooth bump ``exp(1 - 1 / (1 - (r / radius)^2))`` inside the ball, exactly 0 outside; all
    derivatives exist.
    """
    square = (distances / radius) ** 2
    inside = square < 1
    return jnp.where(inside, jnp.exp(1.0 - 1.0 / jnp.where(inside, 1.0 - square, 1.0)), 0.0)


def overlap(supports: Array) -> Array:
    """Overlaps ``chi_i chi_j`` of supports ``[n, *shape]``, as ``[n, n, *shape]``."""
    return supports[:, None] * supports[None, :]


def integrate(grid: Grid, values: Array) -> Array:
    """Integral over the base manifold of ``values [..., *shape]``, ``[...]``."""
    axes = tuple(range(values.ndim - grid.quadrature.ndim, values.ndim))
    lead = (1,) * (values.ndim - grid.quadrature.ndim)
    return jnp.sum(values * jnp.reshape(grid.quadrature, lead + grid.quadrature.shape), axis=axes)

"""Functions of one point of the base manifold, taken at every point of a grid.

Agents at a point have arrays ``[n, ...]``. As fields they have ``[n, *grid, ...]``, and what is
written for a point holds for a field without a change. A single point is no grid of one: XLA on a
CPU has fast products of matrices and slow ones of stacks of one.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp

from vfejax.agents._streamed import BLOCK_ENTRIES
from vfejax.types import Array, PyTree

__all__ = ["at_points", "receivers_per_block", "sum_over_points"]


def _flat(arrays: PyTree, num_grid_axes: int) -> PyTree:
    """The arrays with one axis of points, ``[n, points, ...]``."""
    return jax.tree.map(
        lambda x: jnp.reshape(x, (x.shape[0], -1, *x.shape[1 + num_grid_axes :])), arrays
    )


def at_points(fn: Callable[..., PyTree], arrays: tuple[PyTree, ...], num_grid_axes: int) -> PyTree:
    """A function of agents at one point, at every point.

    Args:
        fn: ``(*arrays at one point) -> arrays [m, ...]``.
        arrays: its arguments, ``[n, *grid, ...]``.
        num_grid_axes: number of axes of the grid; 0 for agents at a point.

    Returns:
        Arrays ``[m, *grid, ...]``.

    >>> mean = lambda x: jnp.mean(x, axis=0, keepdims=True)  # of the agents
    >>> at_points(mean, (jnp.arange(8.0).reshape(2, 4),), 1)
    Array([[2., 3., 4., 5.]], dtype=float32)
    """
    if num_grid_axes == 0:
        return fn(*arrays)
    grid = jax.tree.leaves(arrays)[0].shape[1 : 1 + num_grid_axes]
    found = jax.vmap(fn, in_axes=1, out_axes=1)(*_flat(arrays, num_grid_axes))
    return jax.tree.map(lambda x: jnp.reshape(x, (x.shape[0], *grid, *x.shape[2:])), found)


def sum_over_points(
    fn: Callable[..., Array], arrays: tuple[PyTree, ...], num_grid_axes: int
) -> Array:
    """Sum over all points of a function of agents at one point.

    Args:
        fn: ``(*arrays at one point) -> array``.
        arrays: its arguments, ``[n, *grid, ...]``.
        num_grid_axes: number of axes of the grid; 0 for agents at a point.

    Returns:
        An array of the shape that ``fn`` has.

    >>> float(sum_over_points(jnp.sum, (jnp.arange(8.0).reshape(2, 4),), 1))
    28.0
    """
    if num_grid_axes == 0:
        return fn(*arrays)
    return jnp.sum(jax.vmap(fn, in_axes=1)(*_flat(arrays, num_grid_axes)), axis=0)


def receivers_per_block(
    num_agents: int, grid: tuple[int, ...], requested: int | None = None
) -> int | None:
    """How many receivers a block of pairs has where the blocks of all points are alive at once.

    Args:
        num_agents: senders of a block, n.
        grid: shape of the grid; ``()`` for agents at a point.
        requested: a number that is returned as it is.

    Returns:
        So many that the pairs of all points fit a core's cache, at least 1; None for a single
        point, where the sum over pairs decides for itself.

    >>> receivers_per_block(64, (32, 32)), receivers_per_block(64, ())
    (16, None)
    """
    points = math.prod(grid)
    if requested is not None or points <= 1:
        return requested
    return max(1, BLOCK_ENTRIES // max(1, num_agents * points))

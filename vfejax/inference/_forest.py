"""Forests as schedules: groups of independent edges, from the leaves to the roots.

A schedule is made in Python and is part of the program: a long path becomes a scan, and a wide tree
a few vectorised steps.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.types import Array

__all__ = ["Schedule", "checked_edges", "schedule", "unfused"]

# A shorter path takes less time as one small loop.
_LONG = 256


class Schedule(NamedTuple):
    """Rows of edges from the leaves to the roots, padded with the edge number e."""

    rows: np.ndarray  # [r, w]: edges
    child: np.ndarray  # [e + 1]: the end of each edge that is farther from the root; v for padding
    parent: np.ndarray  # [e + 1]
    flipped: np.ndarray  # [e]: whether the child is the first end
    roots: np.ndarray


def checked_edges(edges: np.ndarray, num_nodes: int) -> np.ndarray:
    """Pairs of nodes, as integers.

    Args:
        edges: ``[e, 2]``.
        num_nodes: of the forest.

    Raises:
        ValueError: when they are no pairs of nodes.

    >>> checked_edges([[0, 1]], 2).shape
    (1, 2)
    """
    edges = np.asarray(edges)
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise ValueError(f"edges must be integers [e, 2], got {edges.dtype} {list(edges.shape)}")
    bad = np.argwhere((edges < 0) | (edges >= num_nodes))
    if len(bad):
        raise ValueError(
            f"edges must name nodes 0 to {num_nodes - 1}; edge {bad[0, 0]} is "
            f"{edges[bad[0, 0]].tolist()}"
        )
    return edges.astype(int)


def schedule(edges: np.ndarray, num_nodes: int, roots: tuple[int, ...] = ()) -> Schedule:
    """Breadth-first order from the root of each tree, its first node where none is given.

    Args:
        edges: from :func:`checked_edges`.
        num_nodes: of the forest.
        roots: at most one of each tree.

    Raises:
        ValueError: when the edges contain a cycle.

    >>> schedule(np.array([[0, 1], [1, 2]]), 3).rows.tolist()
    [[1], [0]]
    """
    neighbours: list[list[tuple[int, int]]] = [[] for _ in range(num_nodes)]
    for e, (a, b) in enumerate(edges.tolist()):
        neighbours[a].append((b, e))
        neighbours[b].append((a, e))
    depth = np.full(num_nodes, -1)
    above = np.full(num_nodes, -1)
    found, levels = [], np.zeros(len(edges), int)
    child = np.full(len(edges) + 1, num_nodes)
    for root in (*roots, *range(num_nodes)):
        if depth[root] >= 0:
            continue
        found.append(root)
        depth[root], queue = 0, [root]
        for node in queue:
            for other, e in neighbours[node]:
                if e == above[node]:
                    continue
                if depth[other] >= 0:
                    raise ValueError(f"edges must form a forest; edge {e} closes a cycle")
                depth[other], above[other] = depth[node] + 1, e
                child[e], levels[e] = other, depth[node]
                queue.append(other)
    ends = np.append(edges, [[num_nodes, num_nodes]], axis=0)
    flipped = edges[:, 0] == child[:-1]
    parent = np.where(np.append(flipped, False), ends[:, 1], ends[:, 0])
    return Schedule(_rows(levels), child, parent, flipped, np.array(found, int))


def _rows(levels: np.ndarray) -> np.ndarray:
    """Edges by falling level, each level cut into rows of the mean width: at most twice as many
    rows as levels, and at most twice as many places as edges.
    """
    if not len(levels):
        return np.zeros((0, 1), int)
    num_levels = levels.max() + 1
    width = -(-len(levels) // num_levels)
    rows = []
    order = np.argsort(levels, kind="stable")
    for edges in np.split(order, np.searchsorted(levels[order], np.arange(1, num_levels)))[::-1]:
        for start in range(0, len(edges), width):
            row = edges[start : start + width]
            rows.append(np.pad(row, (0, width - len(row)), constant_values=len(levels)))
    return np.stack(rows)


def unfused(plan: Schedule, function: Callable[..., Any], *arrays: Array) -> Any:
    """``function(*arrays)`` of one row, on a long path fused with nothing around it on a CPU.

    A row reads messages of the carry and writes others. Where there is one edge in a row, XLA fuses
    what is read into what is written, and must copy the whole carry at every row: a path would take
    quadratic time.

    Args:
        plan: the schedule.
        function: returns arrays of the dtype of ``arrays``.
        arrays: not empty.

    >>> plan = schedule(np.array([[0, 1]]), 2)
    >>> unfused(plan, jnp.add, jnp.ones(2), jnp.ones(2)).tolist()
    [2.0, 2.0]
    """
    num_rows, width = plan.rows.shape
    if width > 1 or num_rows < _LONG:
        return function(*arrays)
    shapes = jax.eval_shape(function, *arrays)

    def never(*arrays: Array) -> Any:
        number = functools.reduce(jnp.add, [jnp.ravel(x)[0] for x in arrays])
        return jax.tree.map(lambda x: jnp.broadcast_to(number, x.shape), shapes)

    def alone(*arrays: Array) -> Any:
        # XLA fuses nothing into or out of a branch. No number is above infinity.
        return jax.lax.cond(jnp.ravel(arrays[0])[0] > jnp.inf, never, function, *arrays)

    return jax.lax.platform_dependent(*arrays, cpu=alone, default=function)

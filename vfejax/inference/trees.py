"""Sum-product on trees and forests of discrete variables: exact marginals and partition function.

``p(x) = exp(sum_v f_v(x_v) + sum_e g_e(x_a, x_b)) / Z``. Messages run from the leaves to the root
of each tree and back. The edges are data of the program: a schedule is made from them in rows of
edges that do not wait for each other, so that a long path is a scan and a wide tree is a few
vectorised steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference._logarithms import log_sum
from vfejax.numerics import as_floating, common_dtype
from vfejax.types import Array

__all__ = ["TreeMarginals", "sum_product"]


class TreeMarginals(NamedTuple):
    """Exact marginals of a forest.

    Attributes:
        nodes: probabilities of each variable, ``[v, k]``.
        edges: of each pair ``[e, k, k]``, in the order of ``edges``.
        log_partition: log Z, in nats; -inf where every assignment is impossible, and the
            probabilities are then NaN.
    """

    nodes: Array
    edges: Array
    log_partition: Array


class _Schedule(NamedTuple):
    """Rows of edges from the leaves to the roots, padded with the edge number e."""

    rows: np.ndarray  # [r, w]: edges
    child: np.ndarray  # [e + 1]: the end of each edge that is farther from the root; v for padding
    parent: np.ndarray  # [e + 1]
    flipped: np.ndarray  # [e]: whether the child is the first end
    roots: np.ndarray


def _schedule(edges: np.ndarray, num_nodes: int) -> _Schedule:
    """Breadth-first order from the first node of each tree.

    Raises:
        ValueError: when the edges contain a cycle.
    """
    neighbours: list[list[tuple[int, int]]] = [[] for _ in range(num_nodes)]
    for e, (a, b) in enumerate(edges.tolist()):
        neighbours[a].append((b, e))
        neighbours[b].append((a, e))
    depth = np.full(num_nodes, -1)
    above = np.full(num_nodes, -1)
    roots, levels = [], np.zeros(len(edges), int)
    child = np.full(len(edges) + 1, num_nodes)
    for root in range(num_nodes):
        if depth[root] >= 0:
            continue
        roots.append(root)
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
    return _Schedule(_rows(levels), child, parent, flipped, np.array(roots, int))


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


def _split(message: Array) -> tuple[Array, Array]:
    """The finite part of a log message, and 1 where it is -inf: sums can then be taken apart."""
    never = message == -jnp.inf
    return jnp.where(never, 0.0, message), never.astype(message.dtype)


def _join(finite: Array, count: Array) -> Array:
    return jnp.where(count > 0.5, -jnp.inf, finite)


def _checked(nodes: Array, pairs: Array, edges: np.ndarray) -> tuple[Array, Array, np.ndarray]:
    nodes, pairs = as_floating(nodes, "log_nodes"), as_floating(pairs, "log_pairs")
    edges = np.asarray(edges)
    if nodes.ndim != 2:
        raise ValueError(f"log_nodes must be [v, k], got shape {list(nodes.shape)}")
    v, k = nodes.shape
    if edges.ndim != 2 or edges.shape[1] != 2 or edges.dtype.kind not in "iu":
        raise ValueError(f"edges must be integers [e, 2], got {edges.dtype} {list(edges.shape)}")
    bad = np.argwhere((edges < 0) | (edges >= v))
    if len(bad):
        raise ValueError(
            f"edges must name nodes 0 to {v - 1}; edge {bad[0, 0]} is {edges[bad[0, 0]].tolist()}"
        )
    if pairs.shape not in ((k, k), (len(edges), k, k)):
        raise ValueError(
            f"log_pairs must be [{k}, {k}] or [{len(edges)}, {k}, {k}], got {list(pairs.shape)}"
        )
    dtype = common_dtype(nodes, pairs)
    return nodes.astype(dtype), pairs.astype(dtype), edges.astype(int)


def sum_product(log_nodes: Array, log_pairs: Array, edges: np.ndarray) -> TreeMarginals:
    """Marginals of a forest, exactly. O((v + e) k^2), in as many steps as twice its depth.

    The gradient of log Z in a potential is its marginal.

    Args:
        log_nodes: f, ``[v, k]``, in nats; -inf for a value that is impossible, also for variables
            with fewer than k values.
        log_pairs: g, ``[e, k, k]``, or ``[k, k]`` for all edges; the first axis belongs to the
            first end of an edge. -inf is allowed.
        edges: pairs of nodes ``[e, 2]``, a NumPy array: the program depends on it.

    Returns:
        Marginals and log Z.

    Raises:
        ValueError: when an argument does not fit, or the edges contain a cycle.

    Source: Pearl, Probabilistic Reasoning in Intelligent Systems (1988), chapter 4.

    >>> agree = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]])
    >>> found = sum_product(jnp.log(jnp.array([[0.9, 0.1], [0.5, 0.5]])), agree, np.array([[0, 1]]))
    >>> [round(float(p), 3) for p in found.nodes[1]]
    [0.9, 0.1]
    """
    nodes, pairs, edges = _checked(log_nodes, log_pairs, edges)
    (v, k), num = nodes.shape, len(edges)
    plan = _schedule(edges, v)
    pairs = jnp.broadcast_to(pairs, (num, k, k))
    # From the child (last axis) to the parent; one more for padding.
    flipped = jnp.asarray(plan.flipped)[:, None, None]
    turned = jnp.where(jnp.broadcast_to(flipped, pairs.shape), jnp.swapaxes(pairs, 1, 2), pairs)
    turned = jnp.concatenate([turned, jnp.zeros((1, k, k), pairs.dtype)])
    own = _split(jnp.concatenate([nodes, jnp.zeros((1, k), nodes.dtype)]))
    up, sums, scale = _upward(own, turned, plan)
    beliefs, down = _downward(sums, up, turned, plan)
    root = log_sum(_join(*(x[plan.roots] for x in sums)), axis=1)
    marginals = jnp.exp(beliefs[:v] - log_sum(beliefs[:v], axis=1)[:, None])
    below = _join(*(x[plan.child[:num]] for x in sums))
    joint = turned[:num] + down[:num, :, None] + below[:, None, :]
    joint = jnp.exp(joint - log_sum(joint.reshape(num, k * k), axis=1)[:, None, None])
    joint = jnp.where(jnp.broadcast_to(flipped, joint.shape), jnp.swapaxes(joint, 1, 2), joint)
    return TreeMarginals(marginals, joint, jnp.sum(root) + jnp.sum(scale))


def _upward(
    own: tuple[Array, Array], turned: Array, plan: _Schedule
) -> tuple[Array, tuple[Array, Array], Array]:
    """Messages to the parents ``[e + 1, k]``, each with maximum 0; every node's own potential and
    all that came from below; and the maxima that were taken out.
    """
    k = turned.shape[-1]

    def row(carry: tuple, edges: Array) -> tuple[tuple, None]:
        (finite, count), up, scale = carry
        child, parent = jnp.asarray(plan.child)[edges], jnp.asarray(plan.parent)[edges]
        below = _join(finite[child], count[child])
        message = log_sum(turned[edges] + below[:, None, :], axis=2)
        highest = jax.lax.stop_gradient(jnp.max(message, axis=1))
        highest = jnp.where(highest == -jnp.inf, 0.0, highest)
        message = message - highest[:, None]
        real = edges < turned.shape[0] - 1
        message = jnp.where(jnp.broadcast_to(real[:, None], message.shape), message, 0.0)
        parts = _split(message)
        sums = finite.at[parent].add(parts[0]), count.at[parent].add(parts[1])
        scale = scale.at[edges].set(jnp.where(real, highest, 0.0))
        return (sums, up.at[edges].set(message), scale), None

    zeros = jnp.zeros((turned.shape[0], k), turned.dtype)
    start = (own, zeros, zeros[:, 0])
    (sums, up, scale), _ = jax.lax.scan(row, start, jnp.asarray(plan.rows))
    return up, sums, scale


def _downward(
    sums: tuple[Array, Array], up: Array, turned: Array, plan: _Schedule
) -> tuple[Array, Array]:
    """Log beliefs of the nodes, and for each edge what its parent knows without it."""

    def row(carry: tuple, edges: Array) -> tuple[tuple, None]:
        (finite, count), down = carry
        child, parent = jnp.asarray(plan.child)[edges], jnp.asarray(plan.parent)[edges]
        own, never = _split(up[edges])
        cavity = _join(finite[parent] - own, count[parent] - never)
        message = log_sum(turned[edges] + cavity[:, :, None], axis=1)
        highest = jax.lax.stop_gradient(jnp.max(message, axis=1, keepdims=True))
        message = message - jnp.where(highest == -jnp.inf, 0.0, highest)
        real = jnp.broadcast_to((edges < turned.shape[0] - 1)[:, None], message.shape)
        parts = _split(jnp.where(real, message, 0.0))
        after = finite.at[child].add(parts[0]), count.at[child].add(parts[1])
        return (after, down.at[edges].set(cavity)), None

    start = (sums, jnp.zeros_like(up))
    (totals, down), _ = jax.lax.scan(row, start, jnp.asarray(plan.rows[::-1].copy()))
    return _join(*totals), down

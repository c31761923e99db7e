"""Sum-product and max-product on trees and forests of discrete variables: exact marginals,
partition function and the most probable assignment.

``p(x) = exp(sum_v f_v(x_v) + sum_e g_e(x_a, x_b)) / Z``. Messages run from the leaves to the root
of each tree and back. The edges are data of the program: a schedule is made from them in rows of
edges that do not wait for each other, so that a long path is a scan and a wide tree is a few
vectorised steps.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.inference._forest import Schedule, checked_edges, schedule, unfused
from vfejax.inference._logarithms import log_sum
from vfejax.numerics import as_floating, common_dtype
from vfejax.types import Array

__all__ = ["TreeAssignment", "TreeMarginals", "max_product", "sum_product"]


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


class TreeAssignment(NamedTuple):
    """The most probable assignment of a forest.

    Attributes:
        nodes: the value of each variable, ``[v]``.
        log_score: ``sum f + sum g`` of it, in nats: its log probability is ``log_score - log Z``.
            -inf where every assignment is impossible, and ``nodes`` then say nothing.
    """

    nodes: Array
    log_score: Array


def _split(message: Array) -> tuple[Array, Array]:
    """The finite part of a log message, and 1 where it is -inf: sums can then be taken apart."""
    never = message == -jnp.inf
    return jnp.where(never, 0.0, message), never.astype(message.dtype)


def _join(finite: Array, count: Array) -> Array:
    return jnp.where(count > 0.5, -jnp.inf, finite)


def _checked(nodes: Array, pairs: Array, edges: np.ndarray) -> tuple[Array, Array, np.ndarray]:
    nodes, pairs = as_floating(nodes, "log_nodes"), as_floating(pairs, "log_pairs")
    if nodes.ndim != 2:
        raise ValueError(f"log_nodes must be [v, k], got shape {list(nodes.shape)}")
    v, k = nodes.shape
    edges = checked_edges(edges, v)
    if pairs.shape not in ((k, k), (len(edges), k, k)):
        raise ValueError(
            f"log_pairs must be [{k}, {k}] or [{len(edges)}, {k}, {k}], got {list(pairs.shape)}"
        )
    dtype = common_dtype(nodes, pairs)
    return nodes.astype(dtype), pairs.astype(dtype), edges


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
    plan = schedule(edges, v)
    turned = _turned(pairs, plan)
    own = _split(_padded(nodes))
    up, sums, scale = _upward(own, turned, plan)
    beliefs, down = _downward(sums, up, turned, plan)
    root = log_sum(_join(*(x[plan.roots] for x in sums)), axis=1)
    marginals = jnp.exp(beliefs[:v] - log_sum(beliefs[:v], axis=1)[:, None])
    below = _join(*(x[plan.child[:num]] for x in sums))
    joint = turned[:num] + down[:num, :, None] + below[:, None, :]
    joint = jnp.exp(joint - log_sum(joint.reshape(num, k * k), axis=1)[:, None, None])
    joint = _flipped(joint, plan)
    return TreeMarginals(marginals, joint, jnp.sum(root) + jnp.sum(scale))


def _padded(x: Array) -> Array:
    return jnp.concatenate([x, jnp.zeros_like(x[:1])])


def _flipped(pairs: Array, plan: Schedule) -> Array:
    flipped = jnp.broadcast_to(jnp.asarray(plan.flipped)[:, None, None], pairs.shape)
    return jnp.where(flipped, jnp.swapaxes(pairs, 1, 2), pairs)


def _turned(pairs: Array, plan: Schedule) -> Array:
    """Potentials from the child (last axis) to the parent, and zeros for padding, ``[e + 1, k,
    k]``.
    """
    num, k = len(plan.flipped), pairs.shape[-1]
    turned = _flipped(jnp.broadcast_to(pairs, (num, k, k)), plan)
    return jnp.concatenate([turned, jnp.zeros((1, k, k), pairs.dtype)])


def max_product(log_nodes: Array, log_pairs: Array, edges: np.ndarray) -> TreeAssignment:
    """The most probable assignment of a forest, exactly. O((v + e) k^2).

    Messages to the root are maxima and remember which value of the child each came from; the way
    back reads them. Of several best assignments it is the one with the lowest value at the first
    node of each tree, and then at each child given its parent.

    Args:
        log_nodes, log_pairs, edges: as :func:`sum_product` takes them.

    Returns:
        The assignment and its score.

    Raises:
        ValueError: when an argument does not fit, or the edges contain a cycle.

    Source: Pearl, Probabilistic Reasoning in Intelligent Systems (1988), chapter 5.

    >>> agree = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]])
    >>> found = max_product(jnp.log(jnp.array([[0.9, 0.1], [0.2, 0.8]])), agree, np.array([[0, 1]]))
    >>> found.nodes.tolist(), round(float(jnp.exp(found.log_score)), 3)
    ([0, 0], 0.18)
    """
    nodes, pairs, edges = _checked(log_nodes, log_pairs, edges)
    v = nodes.shape[0]
    plan = schedule(edges, v)
    turned = _turned(pairs, plan)
    child, parent = jnp.asarray(plan.child), jnp.asarray(plan.parent)

    def up(score: Array, row: Array) -> tuple[Array, tuple[Array, Array]]:
        candidates = turned[row] + score[child[row]][:, None, :]
        best = jnp.max(candidates, axis=2)
        highest = jnp.max(best, axis=1)
        highest = jnp.where((highest == -jnp.inf) | (row == len(edges)), 0.0, highest)
        score = score.at[parent[row]].add(best - highest[:, None])
        return score, (jnp.argmax(candidates, axis=2), highest)

    def down(values: Array, row: tuple[Array, Array]) -> tuple[Array, None]:
        edge, links = row
        chosen = jnp.take_along_axis(links, values[parent[edge]][:, None], axis=1)[:, 0]
        return values.at[child[edge]].set(chosen), None

    rows = jnp.asarray(plan.rows)
    score, (links, scale) = jax.lax.scan(up, _padded(nodes), rows)
    roots = score[plan.roots]
    values = jnp.zeros((v + 1,), links.dtype).at[plan.roots].set(jnp.argmax(roots, axis=1))
    values, _ = jax.lax.scan(down, values, (rows, links), reverse=True)
    return TreeAssignment(values[:v], jnp.sum(jnp.max(roots, axis=1)) + jnp.sum(scale))


def _upward(
    own: tuple[Array, Array], turned: Array, plan: Schedule
) -> tuple[Array, tuple[Array, Array], Array]:
    """Messages to the parents ``[e + 1, k]``, each with maximum 0; every node's own potential and
    all that came from below; and the maxima that were taken out.
    """
    k = turned.shape[-1]

    def row(carry: tuple, edges: Array) -> tuple[tuple, None]:
        (finite, count), up, scale = carry
        child, parent = jnp.asarray(plan.child)[edges], jnp.asarray(plan.parent)[edges]
        message = unfused(
            plan,
            lambda table, *parts: log_sum(table + _join(*parts)[:, None, :], axis=2),
            turned[edges],
            finite[child],
            count[child],
        )
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
    sums: tuple[Array, Array], up: Array, turned: Array, plan: Schedule
) -> tuple[Array, Array]:
    """Log beliefs of the nodes, and for each edge what its parent knows without it."""

    def row(carry: tuple, edges: Array) -> tuple[tuple, None]:
        (finite, count), down = carry
        child, parent = jnp.asarray(plan.child)[edges], jnp.asarray(plan.parent)[edges]

        def onward(table: Array, message: Array, total: Array, lost: Array) -> tuple[Array, Array]:
            own, never = _split(message)
            cavity = _join(total - own, lost - never)
            return cavity, log_sum(table + cavity[:, :, None], axis=1)

        cavity, message = unfused(
            plan, onward, turned[edges], up[edges], finite[parent], count[parent]
        )
        highest = jax.lax.stop_gradient(jnp.max(message, axis=1, keepdims=True))
        message = message - jnp.where(highest == -jnp.inf, 0.0, highest)
        real = jnp.broadcast_to((edges < turned.shape[0] - 1)[:, None], message.shape)
        parts = _split(jnp.where(real, message, 0.0))
        after = finite.at[child].add(parts[0]), count.at[child].add(parts[1])
        return (after, down.at[edges].set(cavity)), None

    start = (sums, jnp.zeros_like(up))
    (totals, down), _ = jax.lax.scan(row, start, jnp.asarray(plan.rows[::-1].copy()))
    return _join(*totals), down

"""Linear Gaussian models on trees and forests: exact marginals and log evidence.

``x_root ~ N(m, P)``, ``x_child = A x_parent + a + N(0, Q)`` along every edge, and ``y_v = C x_v + c
+ N(0, R)`` at every node. A chain is the tree with the edges (0, 1), (1, 2), and so on.

What lies below an edge is a likelihood ``exp(h^T x - x^T J x / 2)`` of its upper end. With that of
the lower end, (h, J), it is

    J' = A^T K A,   h' = A^T (h - K (Q h + a)),   K = (J^- + Q)^-,

so J may be 0, where nothing was observed, and P and Q may be singular. On the way back the lower
end given the upper one is ``N(G x + g, S)`` with ``S = (Q^- + J)^-``, ``G = (1 - S J) A`` and ``g =
S h + (1 - S J) a``: covariances are sums of positive matrices.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax import lanes
from vfejax.inference._chain import checked, emission_offsets, time_last, whitened
from vfejax.inference._forest import Schedule, checked_edges, schedule, unfused
from vfejax.inference._semidefinite import condition, log_det_sum, semidefinite
from vfejax.inference.chains.linear_gaussian import LinearGaussian
from vfejax.types import Array

__all__ = ["TreeSmoothed", "tree_smoother"]


class TreeSmoothed(NamedTuple):
    """What is known of each node from all observations.

    Attributes:
        mean: ``[v, n]``.
        cov: ``[v, n, n]``.
        log_evidence: log density of all observations, in nats.
        cross_cov: ``Cov(x_child, x_parent)`` of each edge, ``[e, n, n]``.
    """

    mean: Array
    cov: Array
    log_evidence: Array
    cross_cov: Array


class _Edges(NamedTuple):
    """Transitions, their noise and their offsets; the stack of edges is last, one more for padding,
    or 1 where all edges are alike.
    """

    push: Array  # [n, n, e + 1]
    noise: Array  # [n, n, e + 1]
    drift: Array  # [n, 1, e + 1]

    def at(self, row: Array) -> "_Edges":
        return _Edges(*(x if x.shape[-1] == 1 else x[..., row] for x in self))


def tree_smoother(
    model: LinearGaussian, edges: np.ndarray, observations: Array, mask: Array | None = None
) -> TreeSmoothed:
    """The posterior of each node, and of each pair along an edge, given all observations.
    O(v (n^3 + o n^2)), in as many steps as twice the depth.

    Args:
        model: arrays that change have a leading axis of e edges or of v nodes in place of time; the
            first two are of every root. P and Q may be singular, R may not.
        edges: pairs (parent, child) ``[e, 2]``, a NumPy array: the program depends on it.
        observations: ``[v, o]``.
        mask: booleans ``[v, o]``, True where an entry was observed; None where all were.

    Returns:
        The moments, in the widest dtype of the arguments. NaN where R is not positive definite or
        another covariance not semidefinite.

    Raises:
        ValueError: naming the argument that does not fit; for a node with two parents, a cycle, or
            a model with controls.

    Source: Chou, Willsky and Benveniste, Multiscale recursive estimation, data fusion, and
        regularization (1994), in information form upwards.

    >>> one = jnp.eye(1)
    >>> model = LinearGaussian(jnp.zeros(1), one, one, one, one, one)
    >>> found = tree_smoother(model, np.array([[0, 1], [0, 2]]), jnp.array([[0.0], [3.0], [3.0]]))
    >>> [round(float(x), 3) for x in found.mean[:, 0]]
    [1.0, 2.0, 2.0]
    """
    if model.transition_control is not None or model.emission_control is not None:
        raise ValueError("model: a tree has no controls; use transition_offset, emission_offset")
    edges = checked_edges(edges, len(observations))
    model, y, mask, _ = checked(model, observations, mask, None, len(edges))
    plan = _directed(edges, len(y))
    steps, prior = _edges(model, plan.roots)
    vector, precision, own = _seen(model, y, mask)
    (vector, precision), score = _upward(vector, precision, steps, plan)
    # A root is the lower end of an edge whose noise is its prior.
    top = vector[..., plan.roots], precision[..., plan.roots]
    score = jnp.sum(own) + jnp.sum(score) + jnp.sum(_pull(top, prior)[2])
    down = _downward((vector, precision), _push(top, prior), steps, plan)
    mean, cov, cross = (jnp.moveaxis(x, -1, 0) for x in down)
    return TreeSmoothed(mean[:-1, :, 0], cov[:-1], score, cross[:-1])


def _directed(edges: np.ndarray, num_nodes: int) -> Schedule:
    """The schedule from the nodes without parents."""
    parents = np.bincount(edges[:, 1], minlength=num_nodes)
    if np.any(parents > 1):
        node = int(np.argmax(parents > 1))
        raise ValueError(
            f"edges must be pairs (parent, child) with one parent for each child; node {node} has "
            f"the parents {edges[edges[:, 1] == node, 0].tolist()}"
        )
    return schedule(edges, num_nodes, tuple(np.flatnonzero(parents == 0).tolist()))


def _edges(model: LinearGaussian, roots: np.ndarray) -> tuple[_Edges, _Edges]:
    """Every edge, and the priors of the roots as edges from nowhere."""
    zero = jnp.zeros_like(model.initial_mean)
    still = jnp.zeros_like(model.initial_cov)
    drift = zero if model.transition_offset is None else model.transition_offset
    steps = _Edges(
        time_last(model.transition, 2, still),
        semidefinite(time_last(model.transition_cov, 2, still)),
        time_last(drift, 1, zero)[:, None],
    )
    first = model.initial_mean[:, None, None], semidefinite(model.initial_cov[..., None])
    mean, cov = (jnp.broadcast_to(x, (*x.shape[:-1], len(roots))) for x in first)
    return steps, _Edges(jnp.zeros_like(cov), cov, mean)


def _seen(model: LinearGaussian, y: Array, mask: Array | None) -> tuple[Array, Array, Array]:
    """The likelihood of every node, ``h [n, 1, v + 1]`` and ``J [n, n, v + 1]``, and its log
    constant ``[v]``.
    """
    rows, values, constant = whitened(model, y - emission_offsets(model, y, None), mask)
    rows = jnp.broadcast_to(rows, (*rows.shape[:-1], len(y)))
    vector = lanes.matmul_tn(rows, values[:, None])
    padded = ((0, 0), (0, 0), (0, 1))
    own = constant - 0.5 * jnp.sum(values**2, axis=0)
    return jnp.pad(vector, padded), jnp.pad(lanes.matmul_tn(rows, rows), padded), own


def _pull(below: tuple[Array, Array], edge: _Edges) -> tuple[Array, Array, Array]:
    """The likelihood of the upper end: vector, precision, and log constant ``[s]``."""
    vector, precision = below
    noise = jnp.broadcast_to(edge.noise, precision.shape)
    inner = condition(precision, noise)
    spread = lanes.matmul(noise, vector)
    drift = jnp.broadcast_to(edge.drift, vector.shape)
    # h given the noise, and h given the noise and the offset.
    centred = vector - lanes.matmul(inner, spread)
    push = jnp.broadcast_to(edge.push, precision.shape)
    moved = lanes.matmul(inner, drift)
    score = jnp.sum(spread * centred + drift * (2.0 * centred - moved), axis=(0, 1))
    up = lanes.matmul(lanes.matmul_tn(push, inner), push)
    vector = lanes.matmul_tn(push, centred - moved)
    return (
        vector,
        0.5 * (up + jnp.swapaxes(up, 0, 1)),
        0.5 * (score - log_det_sum(noise, precision)),
    )


def _push(below: tuple[Array, Array], edge: _Edges) -> tuple[Array, Array, Array]:
    """The lower end given the upper one: offset ``g``, gain ``G`` and covariance ``S``."""
    vector, precision = below
    cov = condition(jnp.broadcast_to(edge.noise, precision.shape), precision)
    eye = jnp.broadcast_to(jnp.eye(cov.shape[0], dtype=cov.dtype)[..., None], cov.shape)
    kept = eye - lanes.matmul(cov, precision)
    offset = lanes.matmul(cov, vector)
    offset = offset + lanes.matmul(kept, jnp.broadcast_to(edge.drift, vector.shape))
    return offset, lanes.matmul(kept, jnp.broadcast_to(edge.push, cov.shape)), cov


def _moved(
    offset: Array, gain: Array, own: Array, mean: Array, cov: Array
) -> tuple[Array, Array, Array]:
    """The lower end of an edge given the moments of the upper one, and their covariance."""
    both = lanes.matmul(gain, cov)
    spread = lanes.matmul_nt(both, gain) + own
    spread = 0.5 * (spread + jnp.swapaxes(spread, 0, 1))
    return lanes.matmul(gain, mean) + offset, spread, both


def _upward(
    vector: Array, precision: Array, steps: _Edges, plan: Schedule
) -> tuple[tuple[Array, Array], Array]:
    """Likelihoods of all at and below each node, and log constants."""

    def up(below: tuple[Array, Array], row: Array) -> tuple[tuple[Array, Array], Array]:
        child, parent = jnp.asarray(plan.child)[row], jnp.asarray(plan.parent)[row]
        vector, precision = below
        below = vector[..., child], precision[..., child]
        pulled = unfused(plan, lambda *x: _pull(x[:2], _Edges(*x[2:])), *below, *steps.at(row))
        vector = vector.at[..., parent].add(pulled[0])
        return (vector, precision.at[..., parent].add(pulled[1])), pulled[2]

    return jax.lax.scan(up, (vector, precision), jnp.asarray(plan.rows))


def _downward(
    below: tuple[Array, Array], roots: tuple[Array, ...], steps: _Edges, plan: Schedule
) -> tuple[Array, Array, Array]:
    """Means ``[n, 1, v + 1]``, covariances, and those of each edge's ends ``[n, n, e + 1]``."""
    vector, precision = below

    def down(carry: tuple[Array, Array, Array], row: Array) -> tuple[tuple, None]:
        mean, cov, cross = carry
        child, parent = jnp.asarray(plan.child)[row], jnp.asarray(plan.parent)[row]
        end = vector[..., child], precision[..., child]
        given = _push(end, steps.at(row))
        moved, spread, both = unfused(plan, _moved, *given, mean[..., parent], cov[..., parent])
        # Padding stays 0, however long the path beside it.
        real = (row < len(plan.flipped))[None, None]
        moved, spread = (
            jnp.where(jnp.broadcast_to(real, x.shape), x, 0.0) for x in (moved, spread)
        )
        mean, cov = mean.at[..., child].set(moved), cov.at[..., child].set(spread)
        return (mean, cov, cross.at[..., row].set(both)), None

    start = (
        jnp.zeros_like(vector).at[..., plan.roots].set(roots[0]),
        jnp.zeros_like(precision).at[..., plan.roots].set(roots[2]),
        jnp.zeros((*precision.shape[:-1], len(plan.child)), precision.dtype),
    )
    return jax.lax.scan(down, start, jnp.asarray(plan.rows), reverse=True)[0]

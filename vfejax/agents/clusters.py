"""Groups of agents that agree: divergences both ways, connected components, and compactness.

Two agents are linked when each one's belief is close to the other's, in the common frame. A
connected component of links can be long: along a chain every neighbour is close and the ends are
far apart. So a component counts as a group only when it is compact, no two of its members being
further apart than a diameter. Where it is not, the threshold is halved and its links are drawn
again. The coarsest cut at which a component is compact is taken: an evenly spaced chain falls apart
all at once, and two tight groups with an agent between them come apart at the agent.

Divergences do not change under gauge transformations, global or local, and so neither do groups.
Time and memory are those of a few arrays ``[n, n]``.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.agents.pairwise import FrameField, pair_features
from vfejax.agents.points import at_points
from vfejax.beliefs.gaussian import Gaussian
from vfejax.numerics import matmul
from vfejax.types import Array

__all__ = ["Clusters", "compact_clusters", "components", "mean_divergences", "two_way"]


class Clusters(NamedTuple):
    """Groups of n agents.

    Attributes:
        label: int32 ``[n]``, the lowest number in the agent's group; its own outside any group.
        joined: bool ``[n]``, whether the agent is in a group.
    """

    label: Array
    joined: Array


def _over_points(gaussian: Gaussian, field: FrameField, chi: Array) -> tuple[Array, Array]:
    """Feature rows of all points side by side, ``[n, points, f]`` for receivers and senders."""
    features = at_points(pair_features, (gaussian, field, chi), chi.ndim - 1)
    receiver, sender = (x.reshape(x.shape[0], -1, x.shape[-1]) for x in features)
    return receiver, sender


def mean_divergences(
    gaussian: Gaussian, field: FrameField, chi: Array, quadrature: Array | None = None
) -> Array:
    """Divergences ``KL(q_i || Omega_ij q_j)`` of all pairs, averaged over where both agents are.

    ``sum_c chi_i chi_j w KL_ij(c) / sum_c chi_i chi_j w``, one product of feature rows.

    Args:
        gaussian: mean ``[n, *grid, k]``, chol ``[n, *grid, k, k]``.
        field: the agents' frames, ``[n, *grid, k, k]``.
        chi: where every agent is ``[n, *grid]``, in [0, 1].
        quadrature: weight of each point ``[*grid]``; 1 by default.

    Returns:
        ``[n, n]`` in nats, receiver i along rows; infinite for a pair that is nowhere together.

    >>> from vfejax.agents.pairwise import frame_field
    >>> from vfejax.geometry import irreps
    >>> agents = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> field = frame_field(jnp.zeros((3, 3)), irreps.so3((1,)))
    >>> mean_divergences(agents, field, jnp.array([1.0, 1.0, 0.0])).round(3)
    Array([[ 0.,  1., inf],
           [ 1.,  0., inf],
           [inf, inf, inf]], dtype=float32)
    """
    num = chi.shape[0]
    receiver, sender = _over_points(gaussian, field, chi)
    present = jnp.reshape(chi, (num, -1))
    weight = present if quadrature is None else present * jnp.reshape(quadrature, (1, -1))

    def rows(x: Array, weight: Array) -> Array:
        # An agent that is nowhere may be far away or broken: it is left out, not multiplied by 0.
        weight = weight[..., None]
        return jnp.reshape(jnp.where(weight <= 0, 0.0, weight * x), (num, -1))

    total = matmul(rows(receiver, weight), rows(sender, present).T)
    overlap = matmul(weight, present.T)
    apart = overlap <= 0
    return jnp.where(apart, jnp.inf, total / jnp.where(apart, 1.0, overlap))


def two_way(divergence: Array) -> Array:
    """``max(KL_ij, KL_ji)`` of all pairs ``[n, n]``.

    >>> two_way(jnp.array([[0.0, 1.0], [2.0, 0.0]])).tolist()
    [[0.0, 2.0], [2.0, 0.0]]
    """
    return jnp.maximum(divergence, divergence.T)


def components(linked: Array) -> Array:
    """Connected components of an undirected graph.

    Every agent takes the least label among its neighbours, passes it to the agent whose label it
    had, and labels are followed to their end, until nothing changes: about log n rounds of O(n^2).

    Args:
        linked: bool ``[n, n]``, symmetric.

    Returns:
        int32 ``[n]``, the lowest number in the agent's component.

    Source: the hooking and jumping of Shiloach and Vishkin, Journal of Algorithms 3 (1982) 57, with
    minima as in Zhang, Azad and Hu, FastSV (SIAM PP 2020).

    >>> links = jnp.zeros((4, 4), bool).at[1, 3].set(True).at[3, 1].set(True)
    >>> components(links).tolist()
    [0, 1, 2, 1]
    """
    num = linked.shape[0]
    own = jnp.arange(num, dtype=jnp.int32)

    def spread(state: tuple[Array, Array]) -> tuple[Array, Array]:
        label, _ = state
        seen = jnp.min(jnp.where(linked, label[None, :], num), axis=1, initial=num)
        least = jnp.minimum(label, seen.astype(jnp.int32))
        hooked = least.at[label].min(least)
        jumped = hooked[hooked]
        return jumped, jnp.any(jumped != label)

    label, _ = jax.lax.while_loop(lambda state: state[1], spread, (own, jnp.asarray(True)))
    return label


def _sizes_and_spans(distance: Array, label: Array) -> tuple[Array, Array]:
    """Number of agents with the label of each agent, and the largest distance among them."""
    num = label.shape[0]
    same = label[:, None] == label[None, :]
    reach = jnp.max(jnp.where(same, distance, -jnp.inf), axis=1, initial=-jnp.inf)
    span = jax.ops.segment_max(reach, label, num)[label]
    size = jax.ops.segment_sum(jnp.ones_like(label), label, num)[label]
    return size, span


def compact_clusters(
    distance: Array,
    candidate: Array,
    *,
    threshold: float | Array,
    diameter: float | Array,
    min_members: int | Array = 2,
    max_members: int | Array | None = None,
    levels: int | Array = 4,
) -> Clusters:
    """Groups of agents that agree: components of links, cut until they are compact.

    Args:
        distance: ``[n, n]``, symmetric, in nats, from :func:`two_way`.
        candidate: bool ``[n]``, the agents that may join a group.
        threshold: longest link, in nats; halved at every level.
        diameter: largest distance between two members of a group, in nats.
        min_members: members a group needs.
        max_members: the most members a group may have: a larger one is cut as one that is not
            compact is. Any number by default.
        levels: how many thresholds are tried, at least 1.

    Returns:
        The groups. A NaN distance links nothing.

    Raises:
        ValueError: when ``levels`` is known and below 1.

    >>> place = jnp.array([0.0, 0.1, 0.5, 0.9, 1.0])  # two pairs and an agent between them
    >>> distance = jnp.abs(place[:, None] - place[None, :])
    >>> everyone = jnp.ones(5, bool)
    >>> compact_clusters(distance, everyone, threshold=0.5, diameter=0.6).label.tolist()
    [0, 0, 2, 3, 3]
    """
    if not isinstance(levels, jax.core.Tracer) and levels < 1:
        raise ValueError(f"levels must be at least 1, got {levels}")
    distance = jax.lax.stop_gradient(distance)
    own = jnp.arange(distance.shape[0], dtype=jnp.int32)
    threshold = jnp.asarray(threshold, distance.dtype)
    diameter = jnp.asarray(diameter, distance.dtype)

    def cut(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        level, open_, label = state
        scale = jnp.ldexp(threshold, -level)
        near = (distance <= scale) & open_[:, None] & open_[None, :]
        component = components(near)
        size, span = _sizes_and_spans(distance, component)
        compact = span <= diameter
        if max_members is not None:
            compact = compact & (size <= max_members)
        taken = open_ & compact & (size >= min_members)
        # What is compact is settled, also when it is too small: finer links only make it smaller.
        return level + 1, open_ & ~compact, jnp.where(taken, component, label)

    def more(state: tuple[Array, Array, Array]) -> Array:
        return (state[0] < levels) & jnp.any(state[1])

    none = jnp.full_like(own, -1)
    start = (jnp.zeros((), jnp.int32), candidate, none)
    _, _, label = jax.lax.while_loop(more, cut, start)
    joined = label >= 0
    return Clusters(jnp.where(joined, label, own), joined)

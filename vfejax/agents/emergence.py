"""Meta-agents: how groups of agents condense into one agent a scale up, and dissolve again.

A meta-agent is the coherence-weighted moment match of its members
(:mod:`vfejax.agents.coarse_graining`), in a frame that is the Frechet mean of theirs. A member that
comes to disagree leaves, at a larger divergence than the one at which it joined; a meta-agent that
has lost its members dissolves.

All decisions are made on divergences, which no gauge transformation changes. Meta-agents appear in
free slots of a hierarchy (:mod:`vfejax.agents.hierarchy`), so no shape changes.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents.clusters import compact_clusters, mean_divergences, two_way
from vfejax.agents.coarse_graining import relative_coherence
from vfejax.agents.edges import common_frame, divergence_between
from vfejax.agents.formation import free_slots, joint_support, meta_agents
from vfejax.agents.hierarchy import (
    Hierarchy,
    Scales,
    check_hierarchy,
    is_member,
    presence,
    quiet,
    row_mask,
)
from vfejax.agents.pairwise import FrameField, frame_field
from vfejax.agents.population import Population
from vfejax.geometry.groups import Generators
from vfejax.numerics import matmul
from vfejax.types import Array

__all__ = [
    "Condensed",
    "Criteria",
    "Dissolved",
    "condense",
    "dissolve",
]


class Criteria(NamedTuple):
    """When agents join and when they part.

    Attributes:
        threshold: longest link between two agents that join, in nats, the larger of the divergences
            both ways.
        diameter: largest divergence between two members of a group, in nats.
        prior_threshold: the same for priors, in nats; infinite means that priors do not count.
        release: a member leaves when its divergence from its meta-agent exceeds this multiple of
            the threshold, above 1.
        min_members: members that a meta-agent needs, at least 2.
        max_members: the most it may have when it forms; None for any number.
        levels: how often the threshold is tried, halved each time; at least 1.
    """

    threshold: float | Array = 0.5
    diameter: float | Array = 1.0
    prior_threshold: float | Array = math.inf
    release: float | Array = 3.0
    min_members: int | Array = 2
    max_members: int | Array | None = None
    levels: int | Array = 4


class Condensed(NamedTuple):
    """What condensed: slots in which a meta-agent formed, bool ``[N]``; how many groups found no
    free slot; and agents that joined a meta-agent which was there already, bool ``[N]``.
    """

    formed: Array
    refused: Array
    adopted: Array


class Dissolved(NamedTuple):
    """What dissolved: members that left, and meta-agents that went, bool ``[N]``."""

    left: Array
    dissolved: Array


def _distances(
    population: Population, field: FrameField, chi: Array, quadrature: Array | None, at: Criteria
) -> tuple[Array, Array]:
    """Divergences of beliefs, and distances of all pairs: the larger of both ways, and of beliefs
    and priors relative to their thresholds.
    """
    divergence = mean_divergences(population.belief, field, chi, quadrature)
    distance = two_way(divergence)
    if not (isinstance(at.prior_threshold, float) and math.isinf(at.prior_threshold)):
        of_priors = two_way(mean_divergences(population.prior, field, chi, quadrature))
        distance = jnp.maximum(distance, of_priors * (at.threshold / at.prior_threshold))
    return divergence, distance


def _adoptions(
    distance: Array, candidate: Array, hierarchy: Hierarchy, scales: Scales, at: Criteria
) -> tuple[Array, Array]:
    """Which candidates agree with a meta-agent a scale above them, bool ``[N]``, and the closest
    such row. It must be wherever the candidate is, and have room.
    """
    _, parent, active, _ = hierarchy
    chi = jnp.reshape(presence(hierarchy), (scales.num_rows, -1))
    outside = matmul(chi, (chi <= 0).astype(chi.dtype).T)
    above = scales.of_rows[None, :] == scales.of_rows[:, None] + 1
    # False for a NaN: a broken meta-agent takes nobody, and keeps nobody from the others.
    near = above & active[None, :] & (outside <= 0) & (distance <= at.threshold)
    nearest = jnp.argmin(jnp.where(near, distance, jnp.inf), axis=1).astype(parent.dtype)
    adopted = candidate & jnp.any(near, axis=1)
    if at.max_members is not None:
        count = jax.ops.segment_sum(is_member(parent).astype(jnp.int32), parent, scales.num_rows)
        same = adopted[None, :] & (nearest[None, :] == nearest[:, None])
        ahead = jnp.sum(jnp.tril(same, -1), axis=1, dtype=jnp.int32)
        adopted = adopted & (count[nearest] + ahead < at.max_members)
    return adopted, nearest


def _same_scale(scales: Scales) -> np.ndarray:
    return scales.of_rows[:, None] == scales.of_rows[None, :]


def _write(rows: Array, slots: Array, formed: Array) -> Array:
    """The rows, with the slots that formed written over."""
    start = rows.shape[0] - slots.shape[0]
    new = jnp.where(row_mask(formed[start:], slots), slots, rows[start:])
    return jnp.concatenate([rows[:start], new])


def condense(
    hierarchy: Hierarchy,
    scales: Scales,
    generators: Generators,
    criteria: Criteria = Criteria(),  # noqa: B008 (an immutable tuple)
    *,
    quadrature: Array | None = None,
) -> tuple[Hierarchy, Condensed]:
    """Let agents without a parent join meta-agents, or form them in groups, at all scales at once.

    An agent joins the meta-agent above it that it agrees with best, where the two are within the
    threshold of each other and the meta-agent is wherever the agent is. The others form groups. A
    new meta-agent takes the lowest free slot of the next scale. Its frame is the Frechet mean of
    its members' frames, its belief and prior their moment match, all weighted by their coherence
    (:mod:`vfejax.agents.coarse_graining`); on a base manifold point by point, with members weighing
    what their supports are there. Its support is ``1 - prod_i (1 - chi_i)``. It can join a group
    itself the next time.

    Args:
        hierarchy: agents and meta-agents.
        scales: how the rows are divided.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``, of an
            orthogonal representation.
        criteria: when agents join.
        quadrature: weight of each point of the base manifold ``[*grid]``; 1 by default.

    Returns:
        The hierarchy, and what condensed. Where a scale has no free slot left a group is refused,
        and its agents stay as they are.

    Raises:
        ValueError: when shapes or dtypes do not fit, naming the array.

    >>> from vfejax.agents.hierarchy import initial_hierarchy
    >>> from vfejax.beliefs.gaussian import Gaussian
    >>> from vfejax.geometry import irreps
    >>> places = jnp.array([[0.0, 0, 0], [0.1, 0, 0], [9.0, 0, 0], [9.1, 0, 0]])
    >>> belief = Gaussian(places, jnp.tile(jnp.eye(3), (4, 1, 1)))
    >>> start, scales = initial_hierarchy(Population(belief, belief, jnp.zeros((4, 3))), (3,))
    >>> found, event = jax.jit(condense)(start, scales, irreps.so3((1,)))
    >>> found.parent.tolist(), event.formed.tolist()
    ([4, 4, 5, 5, 4, 5, 6], [False, False, False, False, True, True, False])
    """
    check_hierarchy(hierarchy, scales, generators)
    _, parent, active, supports = hierarchy
    none = jnp.zeros_like(active)
    if not scales.capacities:
        return hierarchy, Condensed(none, jnp.zeros((), jnp.int32), none)
    population, chi = quiet(hierarchy.population, active), presence(hierarchy)
    field = frame_field(population.phi, generators)
    divergence, distance = _distances(population, field, chi, quadrature, criteria)
    candidate = active & ~is_member(parent) & (scales.of_rows < scales.num_scales - 1)
    adopted, nearest = _adoptions(distance, candidate, hierarchy, scales, criteria)
    clusters = compact_clusters(
        jnp.where(_same_scale(scales), distance, jnp.inf),
        candidate & ~adopted,
        threshold=criteria.threshold,
        diameter=criteria.diameter,
        min_members=criteria.min_members,
        max_members=criteria.max_members,
        levels=criteria.levels,
    )
    slot, refused = free_slots(clusters, active, scales)
    accepted = slot < scales.num_rows
    formed = jnp.append(none, False).at[slot].set(True)[:-1]

    def form(population: Population, supports: Array | None) -> tuple[Population, Array | None]:
        weights = row_mask(relative_coherence(divergence, clusters), chi) * chi
        new = meta_agents(population, field, weights, slot, generators, scales)
        if supports is not None:
            supports = _write(supports, joint_support(chi, slot, scales), formed)
        return jax.tree.map(lambda x, y: _write(x, y, formed), population, new), supports

    population, supports = jax.lax.cond(
        jnp.any(accepted), form, lambda *unchanged: unchanged, population, supports
    )
    parent = jnp.where(accepted, slot, jnp.where(adopted, nearest, parent))
    found = Hierarchy(population, parent, active | formed, supports)
    return found, Condensed(formed, refused, adopted)


def _departures(
    hierarchy: Hierarchy, group: Generators, at: Criteria, quadrature: Array | None
) -> Array:
    """Members whose divergence from their meta-agent, averaged over where both are, is too
    large, bool ``[N]``.
    """
    belief, _, phi = quiet(hierarchy.population, hierarchy.active)
    parent, chi = hierarchy.parent, presence(hierarchy)
    rows = common_frame(belief, frame_field(phi, group))
    divergence = divergence_between(rows, jax.tree.map(lambda x: x[parent], rows))
    overlap = chi * chi[parent]
    if quadrature is not None:
        overlap = overlap * quadrature[None]
    axes = tuple(range(1, chi.ndim))
    together = jnp.sum(overlap, axis=axes)
    total = jnp.sum(jnp.where(overlap <= 0, 0.0, overlap * divergence), axis=axes)
    limit = jnp.asarray(at.release * at.threshold, chi.dtype)
    return is_member(parent) & (total > limit * together)


def dissolve(
    hierarchy: Hierarchy,
    scales: Scales,
    generators: Generators,
    criteria: Criteria = Criteria(),  # noqa: B008 (an immutable tuple)
    *,
    quadrature: Array | None = None,
) -> tuple[Hierarchy, Dissolved]:
    """Let members leave that have come to disagree, and meta-agents go that have too few left.

    A member leaves when ``KL(q_i || Omega_iM q_M)`` exceeds ``release`` times the threshold. When a
    meta-agent goes, its members have no parent any more, its slot is free, and it is no longer a
    member itself, which may end its own meta-agent too.

    Args:
        hierarchy: agents and meta-agents.
        scales: how the rows are divided.
        generators: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.
        criteria: when members leave.
        quadrature: weight of each point of the base manifold ``[*grid]``; 1 by default.

    Returns:
        The hierarchy, with unit Gaussians in the slots that were freed, and what dissolved.

    Raises:
        ValueError: when shapes or dtypes do not fit, naming the array.

    >>> from vfejax.agents.hierarchy import initial_hierarchy
    >>> from vfejax.beliefs.gaussian import Gaussian
    >>> from vfejax.geometry import irreps
    >>> belief = Gaussian(jnp.zeros((2, 3)), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> start, scales = initial_hierarchy(Population(belief, belief, jnp.zeros((2, 3))), (1,))
    >>> moved = start.population.belief._replace(mean=jnp.eye(3).at[0, 0].set(9.0))
    >>> apart = Hierarchy(
    ...     start.population._replace(belief=moved),
    ...     parent=jnp.full(3, 2, jnp.int32),
    ...     active=jnp.ones(3, bool),
    ... )
    >>> found, event = jax.jit(dissolve)(apart, scales, irreps.so3((1,)))
    >>> found.parent.tolist(), event.left.tolist(), event.dissolved.tolist()
    ([0, 1, 2], [True, False, False], [False, False, True])
    """
    check_hierarchy(hierarchy, scales, generators)
    population, parent, active, supports = hierarchy
    own = jnp.arange(scales.num_rows, dtype=parent.dtype)
    left = _departures(hierarchy, generators, criteria, quadrature)
    parent = jnp.where(left, own, parent)
    gone = jnp.zeros_like(active)
    for up in scales.slices[1:]:
        count = jax.ops.segment_sum(is_member(parent).astype(jnp.int32), parent, own.size)
        in_scale = (own >= up.start) & (own < up.stop)
        gone = gone | (in_scale & active & (count < criteria.min_members))
        parent = jnp.where(gone | gone[parent], own, parent)
    active = active & ~gone
    if supports is not None:
        supports = jnp.where(row_mask(gone, supports), 0.0, supports)
    hierarchy = Hierarchy(quiet(population, active), parent, active, supports)
    return hierarchy, Dissolved(left, gone)

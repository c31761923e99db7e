"""How a group of agents becomes a meta-agent: its slot, its support, its frame, its belief and
prior.
"""

import itertools

import jax
import jax.numpy as jnp

from vfejax.agents.clusters import Clusters
from vfejax.agents.coarse_graining import moment_match
from vfejax.agents.hierarchy import Scales
from vfejax.agents.pairwise import FrameField, frame_field
from vfejax.agents.points import at_points
from vfejax.agents.population import Population, beliefs_and_priors
from vfejax.beliefs.gaussian import Gaussian
from vfejax.geometry.groups import Generators
from vfejax.geometry.means import frechet_means
from vfejax.types import Array

__all__ = ["free_slots", "joint_support", "meta_agents"]


def free_slots(clusters: Clusters, active: Array, scales: Scales) -> tuple[Array, Array]:
    """The row in which each joined agent's meta-agent forms, the number of rows for others; and how
    many groups found none.

    Groups are served in the order of their lowest members, slots from the lowest.

    Args:
        clusters: the groups of all rows.
        active: bool ``[N]``, the slots that are taken.
        scales: how the rows are divided.

    >>> groups = Clusters(jnp.array([0, 0, 2, 2, 4, 5]), jnp.arange(6) < 4)
    >>> slot, refused = free_slots(groups, jnp.array([True] * 5 + [False]), Scales(4, (2,)))
    >>> slot.tolist(), int(refused)  # one slot is free, 6 means none
    ([5, 5, 6, 6, 6, 6], 1)
    """
    label, joined = clusters
    none = scales.num_rows
    root = joined & (label == jnp.arange(none, dtype=label.dtype))
    slots = []
    for here, up in itertools.pairwise(scales.slices):
        taken, first = active[up], root[here]
        rank = jnp.cumsum(first.astype(jnp.int32)) - 1
        order = jnp.argsort(taken, stable=True).astype(jnp.int32) + up.start
        served = first & (rank < jnp.sum(~taken, dtype=jnp.int32))
        slots.append(jnp.where(served, order[jnp.clip(rank, 0, taken.shape[0] - 1)], none))
    # Nothing is above the last scale.
    slot = jnp.concatenate([*slots, jnp.full((scales.capacities[-1],), none, jnp.int32)])
    refused = jnp.sum(root & (slot == none), dtype=jnp.int32)
    return jnp.where(joined, slot[label], none), refused


def joint_support(chi: Array, slot: Array, scales: Scales) -> Array:
    """``1 - prod_i (1 - chi_i)`` over the members of every slot, ``[C, *grid]``.

    Args:
        chi: of all rows, ``[N, *grid]``.
        slot: the row of each row's new meta-agent ``[N]``, N for none.
        scales: how the rows are divided.

    >>> joint_support(jnp.array([0.5, 0.5, 0.0]), jnp.array([2, 2, 3]), Scales(2, (1,)))
    Array([0.75], dtype=float32)
    """
    full = chi >= 1
    logs = jnp.where(full, 0.0, jnp.log1p(-jnp.where(full, 0.0, chi)))

    def total(x: Array) -> Array:
        return jax.ops.segment_sum(x, slot, scales.num_rows + 1)[scales.num_agents : -1]

    outside = total(logs)  # NaN stays, also beside a member that is there for sure
    certain = (total(full.astype(jnp.int32)) > 0) & ~jnp.isnan(outside)
    return jnp.where(certain, 1.0, -jnp.expm1(outside))


def meta_agents(
    population: Population,
    field: FrameField,
    weights: Array,
    slot: Array,
    group: Generators,
    scales: Scales,
) -> Population:
    """The meta-agent of every slot that has new members, as points or as fields, ``[C, ...]``.

    Args:
        population: all N rows.
        field: their frames.
        weights: of each row in its group ``[N, *grid]``.
        slot: the row of each row's new meta-agent ``[N]``, N for none.
        group: a :class:`vfejax.geometry.groups.Group`, or a basis ``[a, k, k]``.
        scales: how the rows are divided.

    >>> from vfejax.geometry import irreps
    >>> places = jnp.array([[0.0, 0, 0], [2.0, 0, 0], [9.0, 0, 0]])
    >>> belief = Gaussian(places, jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> rows, so3 = Population(belief, belief, jnp.zeros((3, 3))), irreps.so3((1,))
    >>> field, slot = frame_field(rows.phi, so3), jnp.array([2, 2, 3])
    >>> meta_agents(rows, field, jnp.ones(3), slot, so3, Scales(2, (1,))).belief.mean.round(4)
    Array([[1., 0., 0.]], dtype=float32)
    """
    labels = slot - scales.num_agents
    num = scales.num_rows - scales.num_agents

    def at_point(population: Population, field: FrameField, weights: Array) -> Population:
        phi = frechet_means(population.phi, weights, labels, num, group)
        frame = frame_field(phi, group)

        def match(members: Gaussian) -> Gaussian:
            return moment_match(members, field, weights, labels, frame)

        return Population(*beliefs_and_priors(match, population), phi)

    return at_points(at_point, (population, field, weights), weights.ndim - 1)

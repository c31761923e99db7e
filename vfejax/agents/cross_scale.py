"""Terms between the scales of a hierarchy: parents are priors of their members, and members data of
their parents.

All of them are divergences along edges from a row to what is above it, O(N k^3). Their formulas
stand in :mod:`vfejax.agents.hierarchy_energy`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.agents.edges import CommonFrame, common_frame, divergence_between
from vfejax.agents.hierarchy import (
    Place,
    Scales,
    ancestors,
    is_member,
    row_mask,
    sum_by_scale,
)
from vfejax.agents.pairwise import FrameField
from vfejax.beliefs.gaussian import Gaussian, entropy
from vfejax.types import Array

__all__ = ["CrossScale", "CrossScaleTerms", "Seen", "seen", "terms_between"]


class CrossScale(NamedTuple):
    """How scales act on one another.

    Attributes:
        blend: w in [0, 1], the share of the parent in the prior of its members; 1 replaces it.
        bottom_up: precision with which a meta-agent reads its members, dimensionless; 0 switches it
            off, so that no evidence counts twice.
        decay: factor per scale of the hyperpriors.
        depth: how many scales above the parent reach down as hyperpriors, a static number.
    """

    blend: float | Array = 1.0
    bottom_up: float | Array = 0.0
    decay: float | Array = 0.5
    depth: int = 0


class CrossScaleTerms(NamedTuple):
    """Weighted terms between scales, each ``[S + 1]`` by the scale of the agent that pays, in
    nats.
    """

    self_coupling: Array
    hyperprior: Array
    observation: Array

    @property
    def by_children(self) -> Array:
        """The terms between the rows at scale s and all that is above them, ``[S]``."""
        return (self.self_coupling + self.hyperprior)[:-1] + self.observation[1:]


def _shares(chi: Array, parent: Array) -> Array:
    """Share of each row in what its parent observes, ``chi_i / sum_{j in M} chi_j [N, *grid]``; 0
    without a parent, and where no member is.
    """
    present = jnp.where(row_mask(is_member(parent), chi), chi, jnp.zeros((), chi.dtype))
    total = jax.ops.segment_sum(present, parent, parent.shape[0])[parent]
    nowhere = total <= 0
    return jnp.where(nowhere, 0.0, present / jnp.where(nowhere, 1.0, total))


class Seen(NamedTuple):
    """Beliefs as other scales see them: in the common frame, and their entropy ``[N, *grid]``."""

    frame: CommonFrame
    entropy: Array


def seen(belief: Gaussian, field: FrameField) -> Seen:
    """Beliefs as other scales see them.

    Args:
        belief: of all rows, as points or as fields ``[N, *grid, ...]``.
        field: their frames.

    >>> from vfejax.agents.pairwise import frame_field
    >>> from vfejax.geometry import irreps
    >>> unit = Gaussian(jnp.zeros((2, 3)), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> rows = seen(unit, frame_field(jnp.zeros((2, 3)), irreps.so3((1,))))
    >>> [round(float(x), 3) for x in rows.entropy]
    [4.257, 4.257]
    """
    return Seen(common_frame(belief, field), entropy(belief))


def terms_between(
    rows: Seen,
    slots: Seen,
    parent: Array,
    place: Place,
    scales: Scales,
    lambda_self: float | Array,
    cross_scale: CrossScale,
) -> CrossScaleTerms:
    """Terms between all rows and what is above them.

    Args:
        rows: all N rows, as members.
        slots: the meta-agents' rows, as those below see them: what is above is always a slot.
        parent: int32 ``[N]``.
        place: where the rows are.
        scales: how the rows are divided.
        lambda_self: weight of priors.
        cross_scale: how scales act on one another.

    Returns:
        Weighted terms, each ``[S + 1]`` by the scale of the agent that pays, in nats.

    >>> from vfejax.agents.hierarchy import initial_hierarchy, located
    >>> from vfejax.agents.pairwise import frame_field
    >>> from vfejax.agents.population import Population
    >>> from vfejax.geometry import irreps
    >>> belief = Gaussian(jnp.eye(2, 3), jnp.tile(jnp.eye(3), (2, 1, 1)))
    >>> start, scales = initial_hierarchy(Population(belief, belief, jnp.zeros((2, 3))), (1,))
    >>> together = start._replace(parent=jnp.full(3, 2, jnp.int32), active=jnp.ones(3, bool))
    >>> rows = seen(start.population.belief, frame_field(jnp.zeros((3, 3)), irreps.so3((1,))))
    >>> above = jax.tree.map(lambda x: x[2:], rows)
    >>> where = located(together)
    >>> terms = terms_between(rows, above, together.parent, where, scales, 1.0, CrossScale())
    >>> terms.self_coupling  # half a nat of each member
    Array([1., 0.], dtype=float32)
    """
    blend, bottom_up, decay, depth = cross_scale
    dtype = place.chi.dtype
    zero = jnp.zeros((scales.num_scales,), dtype)
    if not scales.capacities:
        return CrossScaleTerms(zero, zero, zero)
    own = jnp.arange(scales.num_rows, dtype=parent.dtype)
    generations = ancestors(parent, 1 + max(0, min(depth, scales.num_scales - 2)))
    above_rows = [
        jax.tree.map(lambda x, i=i: x[jnp.maximum(i - scales.num_agents, 0)], slots)
        for i in generations
    ]

    def paid(weight: Array, density: Array, ancestor: Array) -> Array:
        there = row_mask(ancestor != own, density)
        return sum_by_scale(jnp.where(there, weight * density, 0.0), scales)

    coupling, decay = jnp.asarray(lambda_self, dtype), jnp.asarray(decay, dtype)
    above, *towers = [
        paid(place.weight, divergence_between(rows.frame, x.frame), ancestor)
        for x, ancestor in zip(above_rows, generations, strict=True)
    ]
    towers = [decay ** (d + 1) * energy for d, energy in enumerate(towers)]
    observation = zero
    if not (isinstance(bottom_up, int | float) and bottom_up == 0):
        read = divergence_between(above_rows[0].frame, rows.frame) + above_rows[0].entropy
        share = _shares(place.chi, parent) * place.weight[parent]
        members = jnp.asarray(bottom_up, dtype) * paid(share, read, parent)
        observation = jnp.concatenate([zero[:1], members[:-1]])
    return CrossScaleTerms(
        coupling * jnp.asarray(blend, dtype) * above,
        coupling * functools.reduce(jnp.add, towers, zero),
        observation,
    )

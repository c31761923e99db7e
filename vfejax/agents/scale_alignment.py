"""Alignment within each scale of a hierarchy: agents among themselves, and meta-agents of one scale
among themselves.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.agents import alignment, pairwise
from vfejax.agents.alignment import AlignmentFn
from vfejax.agents.edges import Edges, edge_alignment_energy
from vfejax.agents.hierarchy import Place, Scales
from vfejax.agents.pairwise import FrameField, PairFeatures
from vfejax.agents.supports import log_support, neighbours_present
from vfejax.beliefs.gaussian import Gaussian
from vfejax.numerics import matmul
from vfejax.types import Array

__all__ = ["Pairing", "alignment_by_scale"]


class Pairing(NamedTuple):
    """How agents of one scale are compared, the same at every point.

    Attributes:
        alignment_fn: alignment energy of the agents of scale 0.
        meta_alignment_fn: that of meta-agents.
        edges: neighbour list of scale 0; everyone listens to everyone without it.
        block_size: receivers per block of pairs of scale 0.
        temperature: tau of the attention, in nats.
    """

    alignment_fn: AlignmentFn
    meta_alignment_fn: AlignmentFn
    edges: Edges | None
    block_size: int | None
    temperature: float | Array


def _agents_aligned(
    gaussian: Gaussian, field: FrameField, pairs: PairFeatures, place: Place, pairing: Pairing
) -> Array:
    """Alignment energy of scale 0 at one point: streamed, or along a neighbour list."""
    chi, coefficient, everywhere = place
    alignment_fn, _, edges, block_size, temperature = pairing
    log_weight = None
    if not everywhere:
        coefficient = coefficient * neighbours_present(chi, *(edges or (None, None)))
        log_weight = log_support(chi)
    if edges is not None:
        return edge_alignment_energy(
            gaussian,
            field,
            edges,
            temperature,
            coefficient=coefficient,
            log_weight=log_weight,
            alignment_fn=alignment_fn,
        )
    return pairwise.alignment_energy(
        pairs,
        temperature,
        coefficient=coefficient,
        log_weight=log_weight,
        alignment_fn=alignment_fn,
        block_size=block_size,
    )


def _slots_aligned(pairs: PairFeatures, place: Place, scales: Scales, pairing: Pairing) -> Array:
    """Alignment energies of all slots at one point, ``[C]``, all scales in one array of pairs."""
    chi, coefficient, everywhere = place
    of_slots = scales.of_rows[scales.num_agents :]
    neighbours = (of_slots[:, None] == of_slots[None, :]) & ~np.eye(of_slots.size, dtype=bool)
    if everywhere:
        count = jnp.sum(jnp.where(neighbours, chi[None, :], 0.0), axis=1)
        present = jnp.where(count > 0, 1.0, count)
    else:
        ends = [rows.stop - scales.num_agents for rows in scales.slices[:-1]]
        present = jnp.concatenate([neighbours_present(x) for x in jnp.split(chi, ends)[1:]])
    temperature = jnp.asarray(pairing.temperature, chi.dtype)
    log_weight = jnp.where(neighbours, log_support(chi)[None, :], -jnp.inf)
    divergence = matmul(pairs.receiver, pairs.sender.T) / temperature
    # A pair that does not count has divergence 0, whatever it would be: see AlignmentFn.
    divergence = jnp.where(log_weight == -jnp.inf, 0.0, divergence)
    energies = pairing.meta_alignment_fn(divergence, log_weight, alignment.rows())
    return temperature * coefficient * present * energies


def alignment_by_scale(
    gaussian: Gaussian, field: FrameField, place: Place, scales: Scales, pairing: Pairing
) -> Array:
    """Alignment energy of every scale at one point.

    Args:
        gaussian: beliefs or priors of the N rows.
        field: their frames.
        place: where they are, ``[N]``.
        scales: how the rows are divided.
        pairing: how agents of one scale are compared.

    Returns:
        ``[S + 1]``, in nats. Only rows of one scale listen to one another.

    >>> from vfejax.agents.hierarchy import initial_hierarchy, located
    >>> from vfejax.agents.population import Population
    >>> from vfejax.geometry import irreps
    >>> belief = Gaussian(jnp.eye(3), jnp.tile(jnp.eye(3), (3, 1, 1)))
    >>> start, scales = initial_hierarchy(Population(belief, belief, jnp.zeros((3, 3))), (2,))
    >>> field = pairwise.frame_field(start.population.phi, irreps.so3((1,)))
    >>> pairing = Pairing(alignment.weighted, alignment.weighted, None, None, 1.0)
    >>> alignment_by_scale(start.population.belief, field, located(start), scales, pairing).round(4)
    Array([3., 0.], dtype=float32)
    """
    chi, weight, everywhere = place
    features = pairwise.pair_features(gaussian, field, chi)

    def part(start: int, stop: int | None) -> tuple[Gaussian, FrameField, PairFeatures, Place]:
        arrays = (gaussian, field, features, (chi, weight))
        *cut, (here, there) = jax.tree.map(lambda x: x[start:stop], arrays)
        return *cut, Place(here, there, everywhere)

    agents = _agents_aligned(*part(0, scales.num_agents), pairing)[None]
    if not scales.capacities:
        return agents
    _, _, pairs, there = part(scales.num_agents, None)
    energies = _slots_aligned(pairs, there, scales, pairing)
    ends = np.cumsum(scales.capacities)[:-1]
    return jnp.concatenate([agents, jnp.stack([jnp.sum(x) for x in jnp.split(energies, ends)])])

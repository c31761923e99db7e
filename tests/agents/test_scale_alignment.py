"""Alignment within each scale: agents and meta-agents may have energies of their own."""

from functools import partial

import chex
import jax
import numpy as np
from helpers import agents_oracle
from helpers import hierarchy_oracle as oracle

from vfejax.agents import alignment
from vfejax.agents.hierarchy import Hierarchy, Scales, located
from vfejax.agents.pairwise import frame_field
from vfejax.agents.scale_alignment import Pairing, alignment_by_scale

SCALES = Scales(3, (3, 2))
LIMIT = 1.5
SATURATING = partial(alignment.saturating, limit=LIMIT)


@jax.jit
def by_scale(hierarchy):
    belief, _, phi = hierarchy.population
    field = frame_field(phi, oracle.VECTOR)
    pairing = Pairing(alignment.weighted, SATURATING, None, None, 2.0)
    return alignment_by_scale(belief, field, located(hierarchy), SCALES, pairing)


def test_meta_agents_align_by_their_own_energy(rng):
    population = agents_oracle.random_population(rng, 8, oracle.VECTOR)
    active = np.array([True] * 7 + [False])
    hierarchy = Hierarchy(population, np.arange(8, dtype=np.int32), active)
    everyone, weight = 1 - np.eye(3), np.ones(3)

    @jax.jit
    def written_out(belief, phi):
        divergence = agents_oracle.pairwise_kl(belief, phi, oracle.VECTOR)
        return [
            energy_fn(divergence[rows, rows], 2.0, weight, everyone).sum()
            for rows, energy_fn in (
                (slice(3), agents_oracle.weighted),
                (slice(3, 6), partial(agents_oracle.saturating, limit=LIMIT)),
            )
        ]

    agents, metas = written_out(population.belief, population.phi)
    # A lone meta-agent, at the last scale, has nobody to listen to.
    expected = np.array([agents, metas, 0.0])
    assert 0 < metas < 3 * 2.0 * LIMIT
    # A few operations on numbers of order 10.
    chex.assert_trees_all_close(np.asarray(by_scale(hierarchy)), expected, rtol=1e-12, atol=1e-13)

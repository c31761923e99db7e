"""Populations of Gaussian agents: free energy, pairwise alignment, observations."""

from vfejax.agents import (
    alignment,
    clusters,
    edges,
    emergence,
    free_energy,
    hierarchy,
    hierarchy_energy,
    links,
    metric,
    observation,
    order,
    pairwise,
    population,
    pullback,
    sectors,
    supports,
)

__all__ = [
    "alignment",
    "clusters",
    "edges",
    "emergence",
    "free_energy",
    "hierarchy",
    "hierarchy_energy",
    "links",
    "metric",
    "observation",
    "order",
    "pairwise",
    "population",
    "pullback",
    "sectors",
    "supports",
]

"""Populations of Gaussian agents: free energy, pairwise alignment, observations."""

from vfejax.agents import alignment, free_energy, metric, observation, pairwise, population

__all__ = ["alignment", "free_energy", "metric", "observation", "pairwise", "population"]

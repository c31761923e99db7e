"""Populations of Gaussian agents: free energy, pairwise alignment, observations."""

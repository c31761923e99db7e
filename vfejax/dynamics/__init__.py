"""Dynamics on any energy function: gradient, natural-gradient, Hamiltonian and Langevin flows."""

from vfejax.dynamics import gradient_flow, hamiltonian, langevin, natural_gradient, rollout

__all__ = ["gradient_flow", "hamiltonian", "langevin", "natural_gradient", "rollout"]

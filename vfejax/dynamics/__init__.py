"""Dynamics on any energy function: gradient, natural-gradient and Hamiltonian flows."""

from vfejax.dynamics import gradient_flow, hamiltonian, natural_gradient, rollout

__all__ = ["gradient_flow", "hamiltonian", "natural_gradient", "rollout"]

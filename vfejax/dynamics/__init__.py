"""Dynamics on any energy function: gradient, natural-gradient, Hamiltonian and Langevin flows."""

from vfejax.dynamics import (
    fixed_points,
    gradient_flow,
    hamiltonian,
    implicit,
    langevin,
    natural_gradient,
    phase_space,
    reversible,
    rollout,
    runge_kutta,
    separable,
)

__all__ = [
    "fixed_points",
    "gradient_flow",
    "hamiltonian",
    "implicit",
    "langevin",
    "natural_gradient",
    "phase_space",
    "reversible",
    "rollout",
    "runge_kutta",
    "separable",
]

"""Density matrices: states, entropies, channels and unitary evolution with exact adjoints."""

from vfejax.quantum import channels, density, evolution, exponential, hamiltonian, hermitian

__all__ = ["channels", "density", "evolution", "exponential", "hamiltonian", "hermitian"]

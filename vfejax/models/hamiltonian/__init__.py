"""Networks that learn how a mechanical system moves, from derivatives of its states: with a
Hamiltonian of their own, or without.
"""

from vfejax.models.hamiltonian import learning, networks

__all__ = ["learning", "networks"]

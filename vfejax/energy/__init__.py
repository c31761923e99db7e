"""Learning in energy-based systems: relaxation, equilibrium propagation, Hopfield networks."""

from vfejax.energy import equilibrium, hopfield, relaxation

__all__ = ["equilibrium", "hopfield", "relaxation"]

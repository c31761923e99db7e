"""Points of the base manifold at which a simulation is looked at."""

import numpy as np

from vfejax.agents.population import Population
from vfejax.beliefs.gaussian import Gaussian
from vfejax.cli.simulate.problem import Problem
from vfejax.types import Array

__all__ = ["at_point", "most_covered"]


def most_covered(problem: Problem) -> tuple[int, np.ndarray]:
    """The point that most agents cover, as a flat index, and which agents are there, ``[n]``."""
    num_agents = problem.population.phi.shape[0]
    if problem.supports is None:
        return 0, np.ones(num_agents, bool)
    chi = np.asarray(problem.supports).reshape(num_agents, -1)
    index = int(chi.sum(axis=0).argmax())
    return index, chi[:, index] > 0


def at_point(population: Population, index: int) -> tuple[Gaussian, Array]:
    """Beliefs and frames at one point, whose flat index is given."""

    def pick(x: Array, tail: int) -> Array:
        return x.reshape(x.shape[0], -1, *x.shape[x.ndim - tail :])[:, index]

    belief = Gaussian(pick(population.belief.mean, 1), pick(population.belief.chol, 2))
    return belief, pick(population.phi, 1)

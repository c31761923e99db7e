"""Example models, each declared in a few lines and ready for message passing: mixtures, factors,
regression, chains, topics.
"""

from vfejax.inference.worked_models import (
    factors,
    hidden_markov,
    mixture,
    regression,
    state_space,
    topics,
)

__all__ = ["factors", "hidden_markov", "mixture", "regression", "state_space", "topics"]

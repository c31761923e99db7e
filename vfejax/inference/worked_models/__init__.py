"""Models declared in a few lines, each ready for inference: mixtures, factors, regression, chains,
topics.
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

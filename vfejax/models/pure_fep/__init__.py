"""A transformer of Gaussian agents that learns by free energy alone: no optimiser, no gradient
between layers.
"""

from vfejax.models.pure_fep import (
    config,
    energy,
    frames,
    gaussians,
    growth,
    layer,
    learning,
    model,
    nudges,
    parameters,
    prior_bank,
    slow_descent,
    trainer,
)
from vfejax.models.pure_fep.prior_bank import prior_bank_logits

__all__ = [
    "config",
    "energy",
    "frames",
    "gaussians",
    "growth",
    "layer",
    "learning",
    "model",
    "nudges",
    "parameters",
    "prior_bank",
    "prior_bank_logits",
    "slow_descent",
    "trainer",
]

"""A transformer of Gaussian agents that learns by free energy alone: no optimiser, no gradient
between layers.
"""

from vfejax.models.pure_fep import (
    anatomy,
    bank,
    config,
    energy,
    frames,
    gaussians,
    growth,
    layer,
    learning,
    model,
    nudges,
    slow,
    trainer,
)
from vfejax.models.pure_fep.bank import prior_bank_logits

__all__ = [
    "anatomy",
    "bank",
    "config",
    "energy",
    "frames",
    "gaussians",
    "growth",
    "layer",
    "learning",
    "model",
    "nudges",
    "prior_bank_logits",
    "slow",
    "trainer",
]

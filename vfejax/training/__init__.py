"""Training as pure functions: losses, optimisers, steps, evaluation, scores, sharding."""

from vfejax.training import (
    evaluate,
    frozen_weights,
    losses,
    momentum,
    optimizer,
    scores,
    sharding,
    step,
)

__all__ = [
    "evaluate",
    "frozen_weights",
    "losses",
    "momentum",
    "optimizer",
    "scores",
    "sharding",
    "step",
]

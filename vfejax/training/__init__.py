"""Training as pure functions: losses, optimisers, steps, evaluation, scores, sharding."""

from vfejax.training import evaluate, losses, momentum, optimizer, partial, scores, sharding, step

__all__ = ["evaluate", "losses", "momentum", "optimizer", "partial", "scores", "sharding", "step"]

"""Training as pure functions: losses, optimisers, steps, sharding."""

from vfejax.training import losses, optimizer, sharding, step

__all__ = ["losses", "optimizer", "sharding", "step"]

"""Smaller models: weights in few bits, what is left out of them, and learning from a larger one."""
"""Smaller models: weights in few bits, without those that say little, taught by a larger model."""

from vfejax.compression import (
    distill,
    experts,
    low_rank,
    matching,
    merge,
    packing,
    prune,
    quantize,
    rules,
    sparse,
    storage,
)

__all__ = [
    "distill",
    "experts",
    "low_rank",
    "matching",
    "merge",
    "packing",
    "prune",
    "quantize",
    "rules",
    "sparse",
    "storage",
]
"""Smaller models: weights in few bits, and what is left out of them."""

from vfejax.compression import distill, experts, matching, packing, prune, quantize, rules

__all__ = ["distill", "experts", "matching", "packing", "prune", "quantize", "rules"]

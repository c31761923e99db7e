"""Smaller models: quantisation, pruning, and distillation from a larger model."""

from vfejax.compression import (
    calibrate,
    compensation,
    distill,
    experts,
    integer_products,
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
    "calibrate",
    "compensation",
    "distill",
    "experts",
    "integer_products",
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

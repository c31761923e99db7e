"""Smaller models: weights in few bits."""

from vfejax.compression import packing, quantize, rules

__all__ = ["packing", "quantize", "rules"]

"""Smaller models: weights in few bits."""

from vfejax.compression import packing, quantize, rules

__all__ = ["packing", "quantize", "rules"]
"""Smaller models: weights in few bits, and what is left out of them."""

from vfejax.compression import distill, matching

__all__ = ["distill", "matching"]

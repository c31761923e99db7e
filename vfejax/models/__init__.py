"""Sequence models: flax modules that hold weights and call the mathematics of the other folders."""

from vfejax.models import blocks, gpt, quantum, resnet_bk, sampling

__all__ = ["blocks", "gpt", "quantum", "resnet_bk", "sampling"]

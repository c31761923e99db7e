"""Phi models: pretrained checkpoints, and attention on a torus swapped into them."""

from vfejax.models.phi import attention, checkpoint, config, directory, model, swap
from vfejax.models.phi.directory import load, save
from vfejax.models.phi.swap import swap_attention, trainable

__all__ = [
    "attention",
    "checkpoint",
    "config",
    "directory",
    "load",
    "model",
    "save",
    "swap",
    "swap_attention",
    "trainable",
]

"""Phi models: pretrained checkpoints, and attention on a torus swapped into them."""

from vfejax.models.phi import attention, checkpoint, config, directory, model
from vfejax.models.phi.directory import load, save

__all__ = ["attention", "checkpoint", "config", "directory", "load", "model", "save"]

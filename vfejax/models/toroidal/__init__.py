"""A modern GPT whose heads attend on a torus, and the same attention for other flax models."""

from vfejax.models.toroidal import attention, config, function, model, options, torus, weights

__all__ = ["attention", "config", "function", "model", "options", "torus", "weights"]

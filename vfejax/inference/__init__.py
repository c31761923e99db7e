"""Inference: bounds on the evidence, and message passing in models of exponential families."""

from vfejax.inference import elbo, expectations, message_passing, worked_models

__all__ = ["elbo", "expectations", "message_passing", "worked_models"]

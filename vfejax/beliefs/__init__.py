"""Beliefs: probability distributions as pytrees, their divergences and metrics."""

from vfejax.beliefs import coordinates, gaussian

__all__ = ["coordinates", "gaussian"]

"""Beliefs: probability distributions as pytrees, their divergences and metrics."""

from vfejax.beliefs import (
    categorical,
    coordinates,
    exponential_families,
    families,
    gaussian,
    supports,
)

__all__ = [
    "categorical",
    "coordinates",
    "exponential_families",
    "families",
    "gaussian",
    "supports",
]

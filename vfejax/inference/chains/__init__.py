"""Exact inference on chains: linear Gaussian models and hidden Markov models."""

from vfejax.inference.chains import (
    blocks,
    hidden_markov,
    information,
    learning,
    linear_gaussian,
    local_models,
    parallel,
    sampling,
    square_root,
)
from vfejax.inference.chains.linear_gaussian import (
    LinearGaussian,
    kalman_filter,
    kalman_smoother,
)

__all__ = [
    "LinearGaussian",
    "blocks",
    "hidden_markov",
    "information",
    "kalman_filter",
    "kalman_smoother",
    "learning",
    "linear_gaussian",
    "local_models",
    "parallel",
    "sampling",
    "square_root",
]

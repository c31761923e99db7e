"""Exact inference on chains: linear Gaussian models and hidden Markov models."""

from vfejax.inference.chains import (
    blocks,
    coordinates,
    hidden_markov,
    hidden_markov_learning,
    information,
    learning,
    linear_gaussian,
    local_models,
    mesh,
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
    "coordinates",
    "hidden_markov",
    "hidden_markov_learning",
    "information",
    "kalman_filter",
    "kalman_smoother",
    "learning",
    "linear_gaussian",
    "local_models",
    "mesh",
    "parallel",
    "sampling",
    "square_root",
]

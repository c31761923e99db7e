"""Inference: bounds on the evidence, message passing, exact chains and trees, and filtering in
generalised coordinates.
"""

from vfejax.inference import (
    chains,
    dynamic_expectation_maximization,
    elbo,
    expectations,
    gaussian_process,
    gaussian_trees,
    generalized_coordinates,
    generalized_filtering,
    hierarchical_models,
    joint_filtering,
    local_linearization,
    loopy,
    message_passing,
    nonlinear_filters,
    predictive_coding,
    trees,
    worked_models,
)

__all__ = [
    "chains",
    "dynamic_expectation_maximization",
    "elbo",
    "expectations",
    "gaussian_process",
    "gaussian_trees",
    "generalized_coordinates",
    "generalized_filtering",
    "hierarchical_models",
    "joint_filtering",
    "local_linearization",
    "loopy",
    "message_passing",
    "nonlinear_filters",
    "predictive_coding",
    "trees",
    "worked_models",
]

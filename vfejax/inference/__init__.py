"""Inference: bounds on the evidence, message passing, exact chains and trees, and filtering in
generalised coordinates.
"""

from vfejax.inference import (
    dynamic_expectation_maximization,
    elbo,
    expectations,
    gaussian_process,
    generalized_coordinates,
    generalized_filtering,
    hierarchical_models,
    joint_filtering,
    local_linearization,
    message_passing,
    nonlinear_filters,
    predictive_coding,
    worked_models,
)

__all__ = [
    "dynamic_expectation_maximization",
    "elbo",
    "expectations",
    "gaussian_process",
    "generalized_coordinates",
    "generalized_filtering",
    "hierarchical_models",
    "joint_filtering",
    "local_linearization",
    "message_passing",
    "nonlinear_filters",
    "predictive_coding",
    "worked_models",
]

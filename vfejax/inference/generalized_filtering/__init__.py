"""Generalised filtering: dynamic models whose paths are known by their derivatives at one time, and
filters, actions and learning on the free energy of a path.
"""

from vfejax.inference.generalized_filtering import (
    active_filtering,
    dynamic_expectation_maximization,
    embedded_samples,
    filters,
    generalized_coordinates,
    hierarchical_models,
    joint_filtering,
    local_linearization,
    path_beliefs,
    path_energy,
    path_predictions,
    smooth_noise,
)
from vfejax.inference.generalized_filtering.filters import (
    Filter,
    MetricFn,
    damped_metric,
    filter_online,
    filter_series,
    generalized_filter,
    identity_metric,
    natural_metric,
)
from vfejax.inference.generalized_filtering.hierarchical_models import (
    Hyperparameters,
    Level,
    Model,
    Observation,
    Path,
    observation,
    rest,
    zero_hyperparameters,
)
from vfejax.inference.generalized_filtering.smooth_noise import temporal_covariance

__all__ = [
    "Filter",
    "Hyperparameters",
    "Level",
    "MetricFn",
    "Model",
    "Observation",
    "Path",
    "active_filtering",
    "damped_metric",
    "dynamic_expectation_maximization",
    "embedded_samples",
    "filter_online",
    "filter_series",
    "filters",
    "generalized_coordinates",
    "generalized_filter",
    "hierarchical_models",
    "identity_metric",
    "joint_filtering",
    "local_linearization",
    "natural_metric",
    "observation",
    "path_beliefs",
    "path_energy",
    "path_predictions",
    "rest",
    "smooth_noise",
    "temporal_covariance",
    "zero_hyperparameters",
]

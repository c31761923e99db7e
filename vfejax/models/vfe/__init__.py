"""VFE transformer: layers of Gaussian agents that descend a variational free energy."""

from vfejax.models.vfe import (
    beliefs,
    config,
    covariances,
    dynamics,
    energy,
    inference,
    irreps,
    layers,
    maps,
    model,
    options,
    readout,
    statistics,
    variances,
)

__all__ = [
    "beliefs",
    "config",
    "covariances",
    "dynamics",
    "energy",
    "inference",
    "irreps",
    "layers",
    "maps",
    "model",
    "options",
    "readout",
    "statistics",
    "variances",
]

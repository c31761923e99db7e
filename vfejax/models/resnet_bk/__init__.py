"""ResNet-BK: experts and resolvents of tridiagonal operators."""

from vfejax.models.resnet_bk import (
    config,
    experts,
    gates,
    heads,
    mixers,
    model,
    potential,
    readout,
    resolvents,
    tridiagonal,
)

__all__ = [
    "config",
    "experts",
    "gates",
    "heads",
    "mixers",
    "model",
    "potential",
    "readout",
    "resolvents",
    "tridiagonal",
]

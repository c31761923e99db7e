"""ResNet-BK: experts and resolvents of tridiagonal operators."""

from vfejax.models.resnet_bk import config, experts, gates, mixers, model, readout

__all__ = ["config", "experts", "gates", "mixers", "model", "readout"]

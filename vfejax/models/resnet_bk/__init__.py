"""ResNet-BK: experts and resolvents of tridiagonal operators."""

from vfejax.models.resnet_bk import config, experts, mixers, model

__all__ = ["config", "experts", "mixers", "model"]

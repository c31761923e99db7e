"""ResNet-BK: experts and resolvents of tridiagonal operators."""

from vfejax.models.resnet_bk import experts, mixers, model

__all__ = ["experts", "mixers", "model"]

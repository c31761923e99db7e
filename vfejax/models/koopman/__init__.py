"""ResNet-BK, some of whose blocks are linear operators on delay coordinates of the stream."""

from vfejax.models.koopman import config, conversion, model

__all__ = ["config", "conversion", "model"]

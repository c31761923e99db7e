"""ResNet-BK, some of whose blocks are linear operators on delayed streams."""

from vfejax.models.koopman import config, conversion, model

__all__ = ["config", "conversion", "model"]

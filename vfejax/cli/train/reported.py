"""What updates of ``vfejax train`` report, as columns of the metrics."""

from typing import Any

import numpy as np

from vfejax.types import TrainInfo

__all__ = ["columns", "means"]


def columns(infos: TrainInfo) -> dict[str, Any]:
    """What updates report, by column.

    Args:
        infos: of updates.
    """
    found = {"loss": infos.parts.cross_entropy, "gradient_norm": infos.gradient_norm}
    return found | infos.parts.losses | infos.parts.diagnostics


def means(infos: TrainInfo) -> dict[str, float]:
    """Means over a chunk of updates, by column.

    Args:
        infos: of the updates, stacked.
    """
    found = columns(infos)
    return {name: float(np.mean(np.asarray(x, np.float64))) for name, x in found.items()}

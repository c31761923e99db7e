"""What updates of ``vfejax train`` report, as columns of the metrics."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from vfejax.types import TrainInfo

__all__ = ["columns", "means", "units"]

_IN_NAMES = ("nats", "tokens")
_OTHERS = {
    "gradient_norm": "nats per weight",
    # Terms of the loss.
    **dict.fromkeys(("load_balance", "router_z", "observation_term"), "nats"),
    **dict.fromkeys(("free_energy_term", "energy"), "nats"),
}


def units(names: Iterable[str]) -> dict[str, str]:
    """Units of columns by name; a pure number has none.

    Args:
        names: columns of the metrics.

    >>> units(["alignment_nats", "gradient_norm", "learning_rate"])
    {'alignment_nats': 'nats', 'gradient_norm': 'nats per weight'}
    """
    found = {}
    for name in names:
        last = name.rpartition("_")[2]
        unit = last if last in _IN_NAMES else _OTHERS.get(name)
        if unit:
            found[name] = unit
    return found


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

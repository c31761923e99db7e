"""Pure-functional JAX library for free-energy agents and energy-based sequence models.

Every folder but ``cli`` is an attribute: after ``import vfejax``,
``vfejax.beliefs.gaussian.kl_divergence(q, p)`` works. A folder is imported when it is first
used, so flax is loaded with ``models`` and matplotlib with ``figures``, not before.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vfejax import (
        agents,
        attention,
        beliefs,
        compression,
        data,
        dynamics,
        energy,
        errors,
        figures,
        geometry,
        inference,
        koopman,
        models,
        numerics,
        problems,
        quantum,
        routing,
        runs,
        spectral,
        training,
        types,
    )

__version__ = "0.2.0"

__all__ = [
    "agents",
    "attention",
    "beliefs",
    "compression",
    "data",
    "dynamics",
    "energy",
    "errors",
    "figures",
    "geometry",
    "inference",
    "koopman",
    "models",
    "numerics",
    "problems",
    "quantum",
    "routing",
    "runs",
    "spectral",
    "training",
    "types",
]


def __getattr__(name: str) -> Any:
    """Import a folder when it is first asked for."""
    if name in __all__:
        return importlib.import_module(f"vfejax.{name}")
    raise AttributeError(f"module 'vfejax' has no attribute '{name}'; it has {', '.join(__all__)}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Koopman operators: linear maps of lifted observables, fitted to streaming data."""

from vfejax.koopman import (
    delays,
    dictionaries,
    operators,
    spectrum,
    streaming,
    variational,
)

__all__ = [
    "delays",
    "dictionaries",
    "operators",
    "spectrum",
    "streaming",
    "variational",
]

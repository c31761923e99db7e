"""Koopman operators: linear maps of lifted observables, from data that stream by."""

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

"""Koopman operators: linear maps of lifted observables, from data that stream by."""

from vfejax.koopman import operators, streaming

__all__ = ["operators", "streaming"]

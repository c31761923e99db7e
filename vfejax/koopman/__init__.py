"""Koopman operators: linear maps of lifted observables, from data that stream by."""

from vfejax.koopman import dictionaries, operators, spectrum, streaming

__all__ = ["dictionaries", "operators", "spectrum", "streaming"]

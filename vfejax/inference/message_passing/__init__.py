"""Variational message passing: models as data, messages as gradients of one scalar."""

from vfejax.inference.message_passing import (
    chains,
    coordinate_ascent,
    couplings,
    graph,
    nodes,
    non_conjugate,
    streaming,
)

__all__ = [
    "chains",
    "coordinate_ascent",
    "couplings",
    "graph",
    "nodes",
    "non_conjugate",
    "streaming",
]

"""Variational message passing: models as data, messages as gradients of one scalar."""

from vfejax.inference.message_passing import (
    beliefs,
    chains,
    coordinate_ascent,
    couplings,
    graph,
    initial_beliefs,
    nodes,
    non_conjugate,
    rows,
    sharding,
    steps,
    streaming,
)

__all__ = [
    "beliefs",
    "chains",
    "coordinate_ascent",
    "couplings",
    "graph",
    "initial_beliefs",
    "nodes",
    "non_conjugate",
    "rows",
    "sharding",
    "steps",
    "streaming",
]

"""Variational message passing: models as data, messages as gradients of one scalar."""

from vfejax.inference.message_passing import (
    beliefs,
    chains,
    coordinate_ascent,
    couplings,
    graph,
    nodes,
    non_conjugate,
    partition,
    rows,
    starts,
    steps,
    streaming,
)

__all__ = [
    "beliefs",
    "chains",
    "coordinate_ascent",
    "couplings",
    "graph",
    "nodes",
    "non_conjugate",
    "partition",
    "rows",
    "starts",
    "steps",
    "streaming",
]

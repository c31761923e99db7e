"""Sequence models: flax modules that hold weights and call the mathematics of the other folders."""

from vfejax.models import (
    blocks,
    cache,
    gpt,
    gpt_modern,
    hamiltonian,
    koopman,
    phi,
    protocol,
    pure_fep,
    quantum,
    resnet_bk,
    reversible,
    sampling,
    table,
    toroidal,
    vfe,
)

__all__ = [
    "blocks",
    "cache",
    "gpt",
    "gpt_modern",
    "hamiltonian",
    "koopman",
    "phi",
    "protocol",
    "pure_fep",
    "quantum",
    "resnet_bk",
    "reversible",
    "sampling",
    "table",
    "toroidal",
    "vfe",
]

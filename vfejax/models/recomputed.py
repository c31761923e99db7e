"""Rematerialised blocks (gradient checkpointing): gradients recompute blocks, and only the input of
each block is stored.
"""

from typing import Any, TypeVar

from flax import nnx

from vfejax.models.blocks import Stack

__all__ = ["recomputed", "stack_paths"]

_Module = TypeVar("_Module")


def stack_paths(module: Any) -> list[tuple[Any, ...]]:
    """Where the stacks of blocks in a module are: keys of its parameters."""
    return [path for path, node in nnx.iter_graph(module) if isinstance(node, Stack)]


def recomputed(module: _Module) -> _Module:
    """The module with blocks that its gradient computes again; it must not be used as it was any
    more.
    """
    for _, node in nnx.iter_graph(module):
        if isinstance(node, Stack):
            node.recomputed = True
    return module

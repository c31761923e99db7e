"""Gradients that compute blocks again: of each, they keep only what it was given."""

from typing import Any, TypeVar

from flax import nnx

from vfejax.models.blocks import Stack

__all__ = ["recomputed", "stacks"]

_Module = TypeVar("_Module")


def stacks(module: Any) -> list[Stack]:
    """The stacks of blocks in a module."""
    return [node for _, node in nnx.iter_graph(module) if isinstance(node, Stack)]


def recomputed(module: _Module) -> _Module:
    """The module with blocks that its gradient computes again; it must not be used as it was any
    more.
    """
    for stack in stacks(module):
        stack.recomputed = True
    return module

"""Weights with every block on its own, for decoding: a loop over tokens that has the blocks stacked
copies the weights of each out of the stack at every token.
"""

from collections.abc import Callable, Collection
from functools import reduce
from typing import Any

import jax
from flax import nnx

from vfejax.types import PyTree

__all__ = ["merged", "taken_apart"]

Path = tuple[Any, ...]


def taken_apart(params: PyTree, stacks: Collection[Path]) -> PyTree:
    """The weights with those of every stack as a tuple of blocks; what is one already stays.

    Args:
        params: nested dict of arrays.
        stacks: where the stacks are in it.

    >>> taken_apart({"blocks": {"block": {"w": jax.numpy.ones((2, 3))}}}, [("blocks",)])
    {'blocks': {'block': ({'w': Array([1., 1., 1.], dtype=float32)}, \
{'w': Array([1., 1., 1.], dtype=float32)})}}
    """

    def blocks(stacked: PyTree) -> PyTree:
        if isinstance(stacked, tuple):
            return stacked
        count = len(jax.tree.leaves(stacked)[0])
        return tuple(jax.tree.map(lambda x: x[n], stacked) for n in range(count))  # noqa: B023

    for stack in stacks:
        params = _changed(params, (*stack, "block"), blocks)
    return params


def merged(graphdef: Any, stacks: Collection[Path], params: PyTree) -> Any:
    """The module that has these weights, taken apart or not.

    Args:
        graphdef: what flax knows of the module besides its weights.
        stacks: where its stacks are.
        params: nested dict of arrays, or what :func:`taken_apart` made of it.
    """
    found = {stack: reduce(lambda tree, key: tree[key], stack, params)["block"] for stack in stacks}
    apart = {stack: blocks for stack, blocks in found.items() if isinstance(blocks, tuple)}
    for stack in apart:
        # The stacked block gives its structure alone.
        params = _changed(params, (*stack, "block"), lambda blocks: blocks[0])
    module = nnx.merge(graphdef, params)
    for path, node in nnx.iter_graph(module):
        if path in apart:
            node.take(apart[path])
    return module


def _changed(tree: PyTree, path: Path, change: Callable[[PyTree], PyTree]) -> PyTree:
    """The nested dict with what stands at a path changed."""
    if not path:
        return change(tree)
    return {**tree, path[0]: _changed(tree[path[0]], path[1:], change)}

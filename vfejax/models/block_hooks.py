"""Hooks on the blocks of a module, one by one: a function may run each block, change what
it returns, or do something else in its place.

Modules whose blocks hand on a residual stream and nothing else say ``residual = True``. Their stack
is wrapped for one call; the model itself knows nothing of it and computes what it always does.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from vfejax.models.blocks import Stack
from vfejax.types import Array, Batch, Prediction, PyTree, VisitFn

__all__ = ["silent", "visited"]


class _VisitedStack(Stack):
    """A stack whose blocks are run by a function, and which keeps what that says."""

    def __init__(self, stack: Stack, visit_fn: VisitFn, found: list[PyTree]):
        self.num_layers, self.block = stack.num_layers, stack.block
        self.visit_fn, self.keep = visit_fn, found.append

    def scan(
        self, step: Any, carry: Any, inputs: Any = None, span: slice | None = None
    ) -> tuple[Any, Any]:
        def visit(block: Any, hidden: Array, layer: tuple[Array, Any]) -> tuple[Array, Any]:
            number, x = layer
            hidden, output, said = self.visit_fn(number, lambda h: step(block, h, x), hidden)
            return hidden, (output, said)

        numbers = jnp.arange(self.num_layers, dtype=jnp.int32)
        carry, (outputs, said) = super().scan(visit, carry, (numbers, inputs), span)
        self.keep(said)
        return carry, outputs


def visited(
    module: Any, batch: Batch, visit_fn: VisitFn, key: Array | None = None
) -> tuple[Prediction, PyTree]:
    """What a residual module predicts when every block is run by ``visit_fn``.

    Args:
        module: a sequence module whose stack is ``blocks``; it must not be used any more.
        batch: whose padding, if it has any, stands behind the real tokens of each row.
        visit_fn: see :class:`vfejax.types.VisitFn`.
        key: for what is random in training.

    Returns:
        The prediction, and what ``visit_fn`` says of each block, stacked by layer.
    """
    found: list[PyTree] = []
    module.blocks = _VisitedStack(module.blocks, visit_fn, found)
    prediction = module(batch, key)
    return prediction, found[0]


def silent(block_fn: Callable[[Array], tuple[Array, PyTree]], hidden: Array) -> PyTree:
    """Zeros in place of what a block says besides its stream, for one that is not run.

    >>> silent(lambda h: (h, h.sum()), jnp.ones((2, 3))).item()
    0.0
    """
    shapes = jax.eval_shape(block_fn, hidden)[1]
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

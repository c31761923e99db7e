"""Activations of a model: statistics of the inputs of its kernels and norms, by leaf name.

Pruning and low-rank factorisation ask for them, of any module that is made of ``nnx.Linear``, norms
and stacks of blocks. The layers are wrapped for one call; the model itself knows nothing of it and
computes what it always does.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from vfejax.models.blocks import Stack
from vfejax.numerics import at_least_float32, matmul_tn
from vfejax.types import Array, Batch

__all__ = ["activations"]

_NORMS = (nnx.LayerNorm, nnx.RMSNorm)


class _Tape:
    """Where wrapped layers leave their statistics; compared by identity, as flax asks of what is
    not an array.
    """

    def __init__(self) -> None:
        self.found: dict[str, Array] = {}

    @contextmanager
    def section(self) -> Iterator[dict[str, Array]]:
        """What is left here within the context, apart from what was there before."""
        before, self.found = self.found, {}
        try:
            yield self.found
        finally:
            self.found = before


def _flat(x: Array) -> Array:
    return x.reshape(-1, x.shape[-1]).astype(at_least_float32(x.dtype))


def _statistics(layer: Any, name: str, arguments: tuple) -> Mapping[str, Array]:
    if hasattr(layer, "statistics"):
        return {f"{name}/{key}": value for key, value in layer.statistics(*arguments).items()}
    x = _flat(arguments[0])
    if isinstance(layer, nnx.Linear):
        return {f"{name}/kernel": matmul_tn(x, x) / x.shape[0]}
    return {f"{name}/scale": jnp.mean(x * x, axis=0)}


class _Recorded(nnx.Module):
    def __init__(self, layer: Any, name: str, tape: _Tape):
        self.layer, self.name, self.tape = layer, name, tape

    def __call__(self, *arguments: Any) -> Any:
        self.tape.found |= _statistics(self.layer, self.name, arguments)
        return self.layer(*arguments)


class _RecordedStack(Stack):
    """A stack that takes what its blocks leave on the tape out of their scan, stacked by layer."""

    def __init__(self, stack: Stack, name: str, tape: _Tape):
        self.num_layers, self.block, self.name, self.tape = (
            stack.num_layers,
            stack.block,
            name,
            tape,
        )

    def scan(
        self, step: Any, carry: Any, inputs: Any = None, span: slice | None = None
    ) -> tuple[Any, Any]:
        def recorded(block: Any, before: Any, x: Any) -> tuple[Any, Any]:
            with self.tape.section() as found:
                after, output = step(block, before, x)
                found = dict(self.tape.found)
            return after, (output, found | {f"{self.name}/change": _change(before, after)})

        carry, (outputs, found) = super().scan(recorded, carry, inputs, span)
        self.tape.found |= found
        return carry, outputs


def _change(before: Any, after: Any) -> Array:
    """Mean of ``1 - cos`` between what a block is given and what it returns: of the first array of
    the carry, the stream.
    """
    x, y = (_flat(jax.tree.leaves(carry)[0]) for carry in (before, after))
    lengths = jnp.linalg.norm(x, axis=-1) * jnp.linalg.norm(y, axis=-1)
    cosine = jnp.sum(x * y, axis=-1) / jnp.where(lengths <= 0, 1, lengths)
    return jnp.mean(1 - jnp.where(lengths <= 0, 1, cosine))


def _record(module: Any, prefix: str, tape: _Tape) -> None:
    for name, child in list(vars(module).items()):
        if not isinstance(child, nnx.Module):
            continue
        path = f"{prefix}{name}"
        _record(child, f"{path}/", tape)
        if isinstance(child, Stack):
            setattr(module, name, _RecordedStack(child, path, tape))
        elif isinstance(child, (nnx.Linear, *_NORMS)) or hasattr(child, "statistics"):
            setattr(module, name, _Recorded(child, path, tape))


def activations(module: Any, batch: Batch) -> dict[str, Array]:
    """Statistics of what flows through a module that reads a batch.

    Args:
        module: a sequence module; its layers are wrapped, so it must not be used any more.
        batch: all of whose tokens are real.

    Returns:
        By name, each with the layers as first axis where it is that of a block: second moments
        ``[n, n]`` of what a kernel with n inputs reads (``blocks/block/qkv/kernel``); mean squares
        ``[n]`` of the channels that a norm reads (``norm/scale``); the mean change of direction of
        the stream in a block, ``1 - cos`` (``blocks/change``); and what a layer with a method
        ``statistics`` says of itself. At least float32.

    Raises:
        ValueError: for a batch with padding.

    Source: Men et al., ShortGPT (2024), for the change as the importance of a layer.
    """
    if batch.mask is not None:
        raise ValueError("batch must have no padding to gather statistics from, got a mask")
    tape = _Tape()
    _record(module, "", tape)
    module(batch, None)
    return tape.found

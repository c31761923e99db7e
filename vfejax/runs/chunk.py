"""The compiled program of a loop: a chunk of steps, which keeps its state where it is."""

from collections.abc import Callable
from typing import Any

import jax

from vfejax.types import PyTree

__all__ = ["compiled"]


def compiled(
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    state: PyTree,
    jit_fn: Callable[..., Any] = jax.jit,
) -> Callable[[PyTree, PyTree, int], tuple[PyTree, PyTree]]:
    """The steps of a chunk as one program per length of chunk, which leaves every leaf of the state
    on the devices where it is.

    Args:
        step: that of a :class:`vfejax.runs.loop.Program`.
        state: what the first chunk begins with, or its shapes.
        jit_fn: compiles it, as ``jax.jit`` does.

    Returns:
        ``chunk(state, inputs [num_steps, ...], num_steps) -> (state, infos [num_steps, ...])``,
        which takes over the memory of the state. As every function of ``jax.jit`` it has ``lower``,
        for who wants to look at the program: what it computes, moves and needs.

    >>> import jax.numpy as jnp
    >>> state = jax.ShapeDtypeStruct((256,), jnp.float32)
    >>> chunk = compiled(lambda x, _: (x / 2, x.sum()), state)
    >>> chunk.lower(state, None, 10).compile().memory_analysis().argument_size_in_bytes
    1024
    """
    shardings = jax.tree.map(_kept_sharding, state)

    def pinned(state: PyTree, inputs: PyTree) -> tuple[PyTree, PyTree]:
        # Else XLA may keep a part of what is whole from step to step, and gather it at every use.
        state, info = step(jax.tree.map(_pin, state, shardings), inputs)
        return jax.tree.map(_pin, state, shardings), info

    def chunk(state: PyTree, inputs: PyTree, num_steps: int) -> tuple[PyTree, PyTree]:
        return jax.lax.scan(pinned, state, inputs, length=num_steps)

    return jit_fn(chunk, static_argnums=2, donate_argnums=0, out_shardings=(shardings, None))


def _pin(leaf: Any, sharding: jax.sharding.Sharding | None) -> Any:
    return leaf if sharding is None else jax.lax.with_sharding_constraint(leaf, sharding)


def _kept_sharding(leaf: Any) -> jax.sharding.Sharding | None:
    """Where a leaf was put; None when JAX chose the place."""
    return getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None

"""Background work of a command: imports that it needs later, and compilation of its steps while it
prepares the rest.
"""

import contextlib
import importlib
import threading
from collections.abc import Callable
from typing import Any

import jax

from vfejax.cli import executable_cache
from vfejax.runs.chunk import compiled
from vfejax.types import PyTree

__all__ = ["compile_beside", "import_beside"]


def compile_beside(
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    state: PyTree,
    num_steps: int,
    jit_fn: Callable[..., Any],
    inputs: PyTree = None,
    shardings: PyTree = None,
) -> bool:
    """Compile the first steps of a loop in a thread; the loop waits for it.

    Args:
        step: that of its :class:`vfejax.runs.loop.Program`.
        state: shapes of the state that it begins with.
        num_steps: how many steps it compiles into one call.
        jit_fn: compiles them, as the loop is told.
        inputs: what they read; None for nothing.
        shardings: where the leaves of the state will be put; None for where JAX chooses.

    Returns:
        Whether a thread compiles them now.

    >>> compile_beside(lambda x, _: (x / 2, None), jax.ShapeDtypeStruct((), "float32"), 1, jax.jit)
    False
    """
    if shardings is not None:
        state = jax.tree.map(_placed, state, shardings)
    chunk = compiled(step, state, jit_fn)
    begun = executable_cache.begin(chunk, state, inputs, num_steps)
    if begun:
        # When it is lowered: until then two threads would only take turns.
        with contextlib.suppress(Exception):  # which is met again by the loop
            executable_cache.shapes(chunk, state, inputs, num_steps)
    return begun


def _placed(leaf: Any, sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def import_beside(*names: str) -> threading.Thread:
    """Import modules in a thread, one after the other. Who imports one of them meanwhile waits for
    it, and is told when that fails.

    Args:
        names: of the modules.

    >>> import_beside("wave").join()
    >>> import sys
    >>> "wave" in sys.modules
    True
    """

    def load() -> None:
        for name in names:
            with contextlib.suppress(Exception):
                importlib.import_module(name)

    thread = threading.Thread(target=load, daemon=True)
    thread.start()
    return thread

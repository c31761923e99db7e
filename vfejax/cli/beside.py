"""What a command does beside what it computes: imports of what it needs at its end, or when it
writes, and compilation of its steps while it prepares the rest.
"""

import contextlib
import importlib
import threading
from collections.abc import Callable
from typing import Any

from vfejax.cli import kept
from vfejax.runs.chunk import compiled
from vfejax.types import PyTree

__all__ = ["compile_beside", "import_beside"]


def compile_beside(
    step: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]],
    state: PyTree,
    num_steps: int,
    jit_fn: Callable[..., Any],
) -> bool:
    """Compile the first steps of a loop that reads no inputs in a thread; the loop waits for it.

    Args:
        step: that of its :class:`vfejax.runs.loop.Program`.
        state: shapes of the state that it begins with.
        num_steps: how many steps it compiles into one call.
        jit_fn: compiles them, as the loop is told.

    Returns:
        Whether a thread compiles them now.

    >>> import jax
    >>> compile_beside(lambda x, _: (x / 2, None), jax.ShapeDtypeStruct((), "float32"), 1, jax.jit)
    False
    """
    return kept.begin(compiled(step, state, jit_fn), state, None, num_steps)


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

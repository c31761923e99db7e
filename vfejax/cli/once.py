"""Compilation of what runs once, or a few times."""

from collections.abc import Callable
from typing import Any

import jax

__all__ = ["compiled_once"]


def compiled_once(function: Callable[..., Any], out_shardings: Any = None) -> Callable[..., Any]:
    """The function compiled at optimisation level 0, which takes half the time.

    For what a command computes once, or once per row of the metrics: what counts there is how fast
    it compiles.

    Args:
        function: what ``jax.jit`` takes.
        out_shardings: on which devices the results are; those of the arguments by default.

    >>> import jax.numpy as jnp
    >>> compiled_once(jnp.cumsum)(jnp.arange(4)).tolist()
    [0, 1, 3, 6]
    """
    options = {"xla_backend_optimization_level": 0}
    return jax.jit(function, out_shardings=out_shardings, compiler_options=options)

"""Compilation of what runs once, or a few times."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from vfejax.cli import kept

__all__ = ["compiled_once"]

_QUICKLY: dict[str, bool | int | str] = {"xla_backend_optimization_level": 0}
if version("jaxlib").startswith("0.10."):  # later ones have no such option
    _QUICKLY["xla_cpu_use_fusion_emitters"] = False


def compiled_once(function: Callable[..., Any], out_shardings: Any = None) -> Callable[..., Any]:
    """The function compiled with few optimisations, which takes a third of the time.

    For what a command computes once, or once per row of the metrics: what counts there is how fast
    it compiles.

    Args:
        function: what ``jax.jit`` takes.
        out_shardings: on which devices the results are; those of the arguments by default.

    >>> import jax.numpy as jnp
    >>> compiled_once(jnp.cumsum)(jnp.arange(4)).tolist()
    [0, 1, 3, 6]
    """
    return kept.jit(function, out_shardings=out_shardings, compiler_options=_QUICKLY)

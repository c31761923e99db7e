"""Fast compilation, for programs that run only a few times and for small steps."""

from collections.abc import Callable
from importlib.metadata import version
from typing import Any

import jax

from vfejax.cli import executable_cache

__all__ = ["compiled_once", "compiled_plainly"]

_PLAINLY: dict[str, bool | int | str] = {}
if version("jaxlib").startswith("0.10."):  # later ones have no such option
    _PLAINLY["xla_cpu_use_fusion_emitters"] = False
_LEVEL = "xla_backend_optimization_level"
_QUICKLY = _PLAINLY | {_LEVEL: 0}


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
    return executable_cache.jit(function, out_shardings=out_shardings, compiler_options=_QUICKLY)


def compiled_plainly(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
    """The function compiled on CPUs without XLA's emitters of fused loops, and at the first of
    LLVM's three levels of optimisation, which takes half of the time.

    For steps of hundreds of operations on small arrays, which run as fast.

    Args:
        function: what ``jax.jit`` takes.
        options: of ``jax.jit``.

    >>> import jax.numpy as jnp
    >>> compiled_plainly(jnp.cumsum)(jnp.arange(4)).tolist()
    [0, 1, 3, 6]
    """
    chosen = _PLAINLY | ({_LEVEL: 1} if jax.default_backend() == "cpu" else {})
    return executable_cache.jit(function, compiler_options=chosen, **options)

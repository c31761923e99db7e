"""Cost of a function: operations of its matrix products, counted in the traced program."""

import math
from collections.abc import Callable
from typing import Any

import jax

__all__ = ["product_flops"]


def product_flops(function: Callable[..., Any], *arguments: Any) -> int:
    """Multiplications and additions of all matrix products of ``function(*arguments)``, with those
    of its loops; nothing is computed.

    A product of ``[m, k]`` and ``[k, n]`` counts ``2 m k n``, a ragged one the same: each row meets
    one matrix. Elementwise work does not count. Of branches the cheapest counts, of a loop of
    unknown length one round.

    Args:
        function: traceable; its gradient, to count a backward pass.
        arguments: arrays, or their shapes.

    >>> import jax.numpy as jnp
    >>> product_flops(lambda x, y: jnp.tanh(x @ y), jnp.ones((2, 3)), jnp.ones((3, 5)))
    60
    """
    return _total(jax.make_jaxpr(function)(*arguments).jaxpr)


def _total(jaxpr: Any) -> int:
    return sum(_of(equation) for equation in jaxpr.eqns)


def _of(equation: Any) -> int:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        shape = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * math.prod(shape[i] for i in contracted)
    if name == "ragged_dot_general":
        return _ragged(equation)
    if name == "cond":
        return min(_total(branch.jaxpr) for branch in params["branches"])
    times = params["length"] if name == "scan" else 1
    return times * sum(_total(inner) for inner in map(_jaxpr, params.values()) if inner is not None)


def _ragged(equation: Any) -> int:
    """Rows times columns times what is summed, without the axis of the matrices: the smallest of
    what the operands allow.
    """
    left, right = (x.aval for x in equation.invars[:2])
    result = equation.outvars[0].aval
    groups = equation.invars[2].aval.shape[-1]
    if result.ndim > left.ndim:  # the gradient for the matrices: rows are summed
        return 2 * left.size * right.shape[-1]
    return 2 * left.size * right.size // (groups * left.shape[-1])


def _jaxpr(value: Any) -> Any:
    """The body that a parameter holds; None for one that holds none."""
    value = getattr(value, "jaxpr", value)
    return value if hasattr(value, "eqns") else None

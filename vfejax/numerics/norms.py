"""Norms, roots and quotients whose gradients stay finite where the textbook formula divides by
zero.
"""

import jax
import jax.numpy as jnp

from vfejax.numerics.precision import as_floating, common_dtype
from vfejax.types import Array, PyTree

__all__ = [
    "safe_norm",
    "safe_sqrt",
    "sinc_sqrt",
    "tree_dot",
    "tree_norm",
]


def safe_sqrt(x: Array) -> Array:
    """Square root whose gradient at 0 is 0 instead of infinite; NaN below 0 and at NaN.

    >>> float(jax.grad(safe_sqrt)(0.0))
    0.0
    """
    zero = x == 0
    return jnp.where(zero, 0.0, jnp.sqrt(jnp.where(zero, 1.0, x)))


def safe_norm(x: Array, *, axis: int = -1, keepdims: bool = False) -> Array:
    """Euclidean norm whose gradient at ``x = 0`` is 0 instead of NaN.

    Numbers are scaled by the largest one, so that no square overflows or vanishes.

    Args:
        x: real, any shape.
        axis: the axis to sum over.
        keepdims: whether that axis stays, with length 1.

    Returns:
        ``x`` without ``axis``; NaN where a number is.

    >>> round(float(safe_norm(jnp.array([3e30, 4e30])) / 1e30), 4)
    5.0
    >>> jax.grad(safe_norm)(jnp.zeros(2)).tolist()
    [0.0, 0.0]
    """
    x = as_floating(x, "x")
    # The scale is arbitrary, so no gradient flows through its choice.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(x), axis=axis, keepdims=True, initial=0.0))
    scale = jnp.where((scale == 0) | jnp.isinf(scale), 1.0, scale)
    length = scale * safe_sqrt(jnp.sum((x / scale) ** 2, axis=axis, keepdims=True))
    return length if keepdims else jnp.squeeze(length, axis)


def tree_norm(tree: PyTree) -> Array:
    """Euclidean norm of all numbers of a pytree together, in the widest of its dtypes; gradient 0
    at 0.

    >>> float(tree_norm({"a": jnp.array([3.0]), "b": jnp.array(4.0)}))
    5.0
    """
    lengths = [safe_norm(jnp.ravel(leaf)) for leaf in jax.tree.leaves(tree)]
    return safe_norm(_stack(lengths))


def tree_dot(left: PyTree, right: PyTree) -> Array:
    """Sum over all leaves of ``sum(left * right)``, in the widest of their dtypes.

    >>> float(tree_dot((jnp.ones(2), jnp.ones(1)), (jnp.ones(2), jnp.full(1, 3.0))))
    5.0
    """
    return jnp.sum(_stack(jax.tree.leaves(jax.tree.map(lambda x, y: jnp.sum(x * y), left, right))))


def _stack(numbers: list[Array]) -> Array:
    if not numbers:
        return jnp.zeros((0,))
    dtype = common_dtype(*numbers)
    return jnp.stack([x.astype(dtype) for x in numbers])


def sinc_sqrt(s: Array) -> Array:
    """``sin(sqrt s) / sqrt s`` for ``s >= 0``: analytic in s, so derivatives are right at 0.

    Rotations depend on the angle only through its square; written in the square, nothing divides by
    an angle. Below ``s = 0.1`` this is the Taylor series to ``s^6``, exact to float64 rounding (the
    next term is 8e-20 there); its derivatives are right up to the sixth.

    >>> round(float(sinc_sqrt(jnp.array(jnp.pi**2 / 4))), 4)  # 2 / pi
    0.6366
    """
    small = s < 0.1
    root = jnp.sqrt(jnp.where(small, 1.0, s))
    series = jnp.ones_like(s)
    for n in (13, 11, 9, 7, 5, 3):
        series = 1.0 - s / (n * (n - 1)) * series
    return jnp.where(small, series, jnp.sin(root) / root)

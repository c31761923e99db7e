"""Iterations over pytrees in one compiled loop, until they change by less than a tolerance."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics.precision import common_dtype
from vfejax.types import Array, PyTree

__all__ = ["Iterated", "default_tolerance", "iterate", "relative_size"]


class Iterated(NamedTuple):
    """Where an iteration ended.

    Attributes:
        value: the last iterate.
        iterations: how many times it was improved, an integer.
        residual: of the iterate before it, a real scalar; NaN where a number is.
        converged: whether the residual is at most the tolerance; False where it is NaN.
    """

    value: PyTree
    iterations: Array
    residual: Array
    converged: Array


def relative_size(change: PyTree, value: PyTree) -> Array:
    """``max |d| / (1 + max |z|)`` of each leaf, and the largest of them.

    It is absolute for small numbers and relative for large ones. Leaf by leaf, momenta of 10^4 do
    not hide a change of positions of order 1.

    Args:
        change: d, real or complex.
        value: z, of the same shapes.

    Returns:
        A scalar in the widest dtype of the leaves; NaN where a number is.

    >>> value = {"x": jnp.ones(2), "p": jnp.array(99.0)}
    >>> round(float(relative_size({"x": jnp.zeros(2), "p": jnp.array(1.0)}, value)), 4)
    0.01
    """

    def leaf(d: Array, z: Array) -> Array:
        return jnp.max(jnp.abs(d), initial=0.0) / (1.0 + jnp.max(jnp.abs(z), initial=0.0))

    found = jax.tree.leaves(jax.tree.map(leaf, change, value))
    if not found:
        return jnp.zeros(())
    dtype = common_dtype(*found)
    return jnp.max(jnp.stack([x.astype(dtype) for x in found]))


def default_tolerance(tree: PyTree) -> float:
    """``eps^(3/4)`` of the least precise leaf; 0 for a tree without leaves.

    >>> round(1e6 * default_tolerance(jnp.ones(2, jnp.float32)), 1)
    6.4
    """
    dtypes = map(_floating, jax.tree.leaves(tree))
    return max((float(jnp.finfo(dtype).eps) for dtype in dtypes), default=0.0) ** 0.75


def _floating(x: jax.typing.ArrayLike) -> jnp.dtype:
    """The dtype in which a number is improved: integers, and Python's own, have the default one."""
    return jnp.result_type(x, 0.0)


def iterate(
    improve: Callable[[PyTree], tuple[PyTree, Array]],
    start: PyTree,
    tolerance: float,
    max_iterations: int,
) -> Iterated:
    """Improve a tree until its residual is small, is NaN, or the iterations are used up.

    Args:
        improve: ``z -> (better z, residual of z)``, the residual as :func:`relative_size` has it.
        start: first z; integers become floating.
        tolerance: largest residual that is small.
        max_iterations: how often it is improved at most.

    >>> found = iterate(lambda z: (z / 2, jnp.abs(z)), jnp.array(1.0), 0.1, 9)
    >>> float(found.value), int(found.iterations), bool(found.converged)
    (0.03125, 5, True)
    """

    def unfinished(found: Iterated) -> Array:
        # False for a NaN, which no further iteration removes.
        return (found.residual > tolerance) & (found.iterations < max_iterations)

    def improved(found: Iterated) -> Iterated:
        value, size = improve(found.value)
        return Iterated(value, found.iterations + 1, size, size <= tolerance)

    start = jax.tree.map(lambda x: jnp.asarray(x, _floating(x)), start)
    unknown = jnp.full_like(relative_size(start, start), jnp.inf)
    first = Iterated(start, jnp.zeros((), jnp.int32), unknown, jnp.zeros((), bool))
    return jax.lax.while_loop(unfinished, improved, first)

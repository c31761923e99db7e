"""Products of stacks of small matrices, written out as one loop over the stack on a CPU.

XLA compiles a batched ``dot_general`` for a CPU into one call of a matrix product per item unless a
library takes the whole stack, and which shapes it takes is hard to foresee. For 4096 products of
matrices of size k in float32, jaxlib 0.10.2 and 0.12.0 need (processor time in ms)::

    k                         3      5      9     16
    left right              0.1    2.9    0.7    0.8
    left^T right            0.1    3.0    3.3    4.1
    written out, either     0.1    0.3    0.8    0.9

and every gradient has a product of the second kind. Written out means the sum of k outer products,
in one elementwise loop over the stack. A few small matrices are multiplied entry by entry and
summed at once: in a scan over time XLA can then compile the whole step into one function. On other
devices, and for a few larger matrices, the batched product stays. A stack that lies behind its
matrices, ``[64, 9, 9, 64]``, takes half the time again (see :mod:`vfejax.lanes`).

The derivative of the written-out sum would be sums over other axes, which are slow again. So the
product is a primitive of its own, bilinear, whose derivatives to every order are such products.
"""

import functools
import math

import jax
import jax.numpy as jnp
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir

from vfejax.types import Array

__all__ = ["batched_product", "fits", "stack_product"]

# The written-out sum has a term for every row of the right factor.
_MAX_SIZE = 16
# Fewer products than this take less time than the written-out sum takes to compile.
_MIN_STACK = 32
# Fewer products, of no more entries [k, m, n] in all than this, are one sum. A dot_general keeps
# XLA from compiling the loop around it into one function, and takes 5 us for 24 matrices of size 4.
# A sum of 4096 entries and more is kept out of the loop too.
_MAX_ENTRIES = 4000
# From this size on, XLA's own product of the whole stack is as fast, unless it transposes the left.
_MIN_WHOLE = 8


def fits(left: Array, right: Array, lanes: int = 0) -> bool:
    """Whether :func:`stack_product` takes these factors: small matrices in stacks of one shape, of
    float32 or float64.

    Args:
        left: ``[*stack, m, k]``, with the last ``lanes`` axes of the stack behind the matrix.
        right: ``[*stack, k, l]``, likewise.
        lanes: axes of the stack that stand behind the matrices, 0 or 1.

    >>> fits(jnp.ones((50, 3, 3)), jnp.ones((50, 3, 1))), fits(jnp.ones((50, 3)), jnp.ones((3, 3)))
    (True, False)
    """
    if not left.ndim == right.ndim >= 2 + lanes:
        return False
    stacks, sizes = zip(*(_stack_and_sizes(x, lanes) for x in (left, right)), strict=True)
    return (
        stacks[0] == stacks[1]
        and all(1 <= size <= _MAX_SIZE for size in (*sizes[0], *sizes[1]))
        and left.dtype == right.dtype
        and left.dtype in (jnp.float32, jnp.float64)
    )


def _stack_and_sizes(x: Array, lanes: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    start, stop = x.ndim - 2 - lanes, x.ndim - lanes
    return x.shape[:start] + x.shape[stop:], x.shape[start:stop]


def stack_product(
    left: Array, right: Array, left_axis: int = -1, right_axis: int = -2, lanes: int = 0
) -> Array:
    """Products of two stacks of matrices, summed over one axis of each, at full precision on every
    device.

    Differentiable in forward and reverse mode, to every order.

    Args:
        left: real floating ``[..., m, k]``, or ``[..., k, m]`` where ``left_axis`` is -2.
        right: ``[..., k, n]``, or ``[..., n, k]`` where ``right_axis`` is -1, with the stack and
            the dtype of ``left``.
        left_axis: the axis of the left matrices that is summed over, -1 or -2.
        right_axis: the axis of the right matrices that is summed over, -1 or -2.
        lanes: how many axes of the stack, 0 or 1, come behind those of the matrices. With 1 the
            factors are ``[..., m, k, s]`` and ``[..., k, n, s]``.

    Returns:
        ``[..., m, n]``, with the axes of the stack where they were.

    >>> left = jnp.full((50, 2, 3), 2.0)
    >>> stack_product(left, jnp.ones((50, 3, 1)))[0].tolist()
    [[6.0], [6.0]]
    >>> stack_product(jnp.ones((2, 3, 50)), jnp.ones((3, 1, 50)), lanes=1).shape
    (2, 1, 50)
    """
    return _stack_product_p.bind(
        left, right, left_axis=left_axis, right_axis=right_axis, lanes=lanes
    )


def batched_product(
    left: Array, right: Array, left_axis: int, right_axis: int, lanes: int
) -> Array:
    """The same for matrices of any size and dtype, by one ``dot_general``.

    Args:
        left, right, left_axis, right_axis, lanes: as :func:`stack_product` takes them.

    >>> batched_product(jnp.ones((5, 2, 3)), jnp.ones((5, 3, 1)), -1, -2, 0).shape
    (5, 2, 1)
    """
    ahead, end = left.ndim - 2 - lanes, left.ndim - lanes
    stack = (*range(ahead), *range(end, left.ndim))
    summed = (end + left_axis,), (end + right_axis,)
    product = jax.lax.dot_general(
        left, right, (summed, (stack, stack)), precision=jax.lax.Precision.HIGHEST
    )
    return jnp.moveaxis(product, range(ahead, ahead + lanes), range(-lanes, 0))


def _sum_of_outer_products(
    left: Array, right: Array, left_axis: int, right_axis: int, lanes: int
) -> Array:
    # Operations of lax throughout: those of jnp take twice as long to trace, k times a product.
    end = left.ndim - lanes
    shape = list(left.shape)
    shape[end - 2] = left.shape[end - 3 - left_axis]
    shape[end - 1] = right.shape[end - 3 - right_axis]

    def spread(x: Array, i: int, summed: int, new: int) -> Array:
        line = jax.lax.index_in_dim(x, i, end + summed, keepdims=False)
        axes = [axis for axis in range(x.ndim) if axis != end + new]
        return jax.lax.broadcast_in_dim(line, shape, axes)

    def outer_product(i: int) -> Array:
        return jax.lax.mul(spread(left, i, left_axis, -1), spread(right, i, right_axis, -2))

    return functools.reduce(jax.lax.add, map(outer_product, range(left.shape[end + left_axis])))


def _sum_of_entries(
    left: Array, right: Array, left_axis: int, right_axis: int, lanes: int
) -> Array:
    """Products of entries ``[..., k, m, n]``, and one sum over k."""
    end = left.ndim - lanes
    shape = list(right.shape)
    shape[end - 2] = left.shape[end + left_axis]
    shape[end - 1 : end] = left.shape[end - 3 - left_axis], right.shape[end - 3 - right_axis]

    def spread(x: Array, summed: int, kept: int) -> Array:
        axes = [*range(end), *range(end + 1, len(shape))]
        axes[end + summed], axes[end - 3 - summed] = end - 2, kept
        return jax.lax.broadcast_in_dim(x, shape, axes)

    entries = jax.lax.mul(spread(left, left_axis, end - 1), spread(right, right_axis, end))
    return jax.lax.reduce_sum(entries, (end - 2,))


def _written_out(left: Array, right: Array, left_axis: int, right_axis: int, lanes: int) -> Array:
    batched, summed, written_out = (
        functools.partial(fn, left_axis=left_axis, right_axis=right_axis, lanes=lanes)
        for fn in (batched_product, _sum_of_entries, _sum_of_outer_products)
    )
    (stack, left_sizes), (_, right_sizes) = (_stack_and_sizes(x, lanes) for x in (left, right))
    known = all(isinstance(size, int) for size in stack)
    few = not known or math.prod(stack) < _MIN_STACK
    whole = lanes == 0 and left_axis == -1 and min(*left_sizes, *right_sizes) >= _MIN_WHOLE
    if few or whole:
        entries = math.prod(left.shape) * right_sizes[-3 - right_axis] if known else math.inf
        return (summed if entries <= _MAX_ENTRIES else batched)(left, right)
    product = _result(left, right, left_axis, right_axis, lanes)
    first = (0,) * left.ndim
    # XLA fuses nothing into or out of a branch, so what makes the factors is computed once, and not
    # again for each of the k outer products it enters. No number is above infinity, so the other
    # branch is never taken. It varies over devices as the product does.
    return jax.lax.cond(
        left[first] > jnp.inf,
        lambda left, right: jnp.broadcast_to(left[first] * right[first], product.shape),
        written_out,
        left,
        right,
    )


def _left_slope(
    slope: Array, left: Array, right: Array, left_axis: int, right_axis: int, lanes: int
) -> Array:
    kept = -3 - right_axis
    if left_axis == -1:
        return stack_product(slope, right, -1, kept, lanes)
    return stack_product(right, slope, kept, -1, lanes)


def _right_slope(
    slope: Array, left: Array, right: Array, left_axis: int, right_axis: int, lanes: int
) -> Array:
    kept = -3 - left_axis
    if right_axis == -2:
        return stack_product(left, slope, kept, -2, lanes)
    return stack_product(slope, left, -2, kept, lanes)


def _batch(
    args: tuple[Array, Array], axes: tuple[int | None, int | None], **params: int
) -> tuple[Array, int]:
    """``vmap`` only makes the stack larger."""
    size = next(x.shape[axis] for x, axis in zip(args, axes, strict=True) if axis is not None)
    left, right = (
        batching.bdim_at_front(x, axis, size) for x, axis in zip(args, axes, strict=True)
    )
    return stack_product(left, right, **params), 0


def _result(
    left: Array, right: Array, left_axis: int, right_axis: int, lanes: int
) -> jax.core.ShapedArray:
    """Shape and dtype of the batched product; also how it varies over devices."""
    batched = functools.partial(
        batched_product, left_axis=left_axis, right_axis=right_axis, lanes=lanes
    )
    return jax.make_jaxpr(batched)(left, right).out_avals[0]


_stack_product_p = Primitive("stack_product")
_compiled = jax.jit(_stack_product_p.bind, static_argnames=("left_axis", "right_axis", "lanes"))


@_stack_product_p.def_impl
def _product_of_values(left: Array, right: Array, **params: int) -> Array:
    with jax.disable_jit(False):  # else what is compiled would call this again
        return _compiled(left, right, **params)


_stack_product_p.def_abstract_eval(_result)
ad.defbilinear(_stack_product_p, _left_slope, _right_slope)
batching.primitive_batchers[_stack_product_p] = _batch
for _platform, _rule in ((None, batched_product), ("cpu", _written_out)):
    mlir.register_lowering(
        _stack_product_p, mlir.lower_fun(_rule, multiple_results=False), platform=_platform
    )

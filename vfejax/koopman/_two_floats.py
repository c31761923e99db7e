"""Numbers as unevaluated sums of two float32: some 45 bits without float64.

    x = high + low,    |low| <= ulp(high) / 2

Sums follow Knuth. Products split their factors into halves of 12 bits, so that each product that
is formed is exact, and a compiler that contracts it with a sum changes nothing. A mask splits:
compilers may simplify Dekker's product with 4097. Shapes broadcast.

Source: Dekker, A floating-point technique for extending the available precision (1971); Knuth, The
Art of Computer Programming, volume 2 (1997), section 4.2.2.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.types import Array

__all__ = [
    "TwoFloats",
    "add",
    "divide",
    "item",
    "multiply",
    "square_root",
    "subtract",
    "total",
    "where",
    "widen",
]


class TwoFloats(NamedTuple):
    """``high + low``, both float32 and of one shape."""

    high: Array
    low: Array


def widen(x: Array) -> TwoFloats:
    """``x`` itself.

    >>> float(widen(jnp.float32(2.0)).low)
    0.0
    """
    return TwoFloats(x, jnp.zeros_like(x))


def item(x: TwoFloats, index: ArrayLike) -> TwoFloats:
    """``x[index]``.

    >>> item(widen(jnp.array([1.0, 2.0])), 1).high.tolist()
    2.0
    """
    return TwoFloats(*(jax.lax.dynamic_index_in_dim(a, index, 0, False) for a in x))


def where(condition: Array, x: TwoFloats, y: TwoFloats) -> TwoFloats:
    """x where the condition holds, else y.

    Args:
        condition: of any shape that broadcasts, as those of x and y do.
        x: chosen where it is true.
        y: chosen where it is false.

    >>> where(jnp.array([True, False]), widen(jnp.ones(2)), widen(jnp.zeros(2))).high.tolist()
    [1.0, 0.0]
    """
    return TwoFloats(jnp.where(condition, x.high, y.high), jnp.where(condition, x.low, y.low))


def _exact_sum(x: Array, y: Array) -> TwoFloats:
    high = x + y
    part = high - x
    return TwoFloats(high, (x - (high - part)) + (y - part))


def _normalise(high: Array, low: Array) -> TwoFloats:
    """For ``|low| <= |high|``."""
    both = high + low
    return TwoFloats(both, low - (both - high))


def _halves(x: Array) -> tuple[Array, Array]:
    """The upper 12 bits of the significand and the lower 12."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32) & jnp.uint32(0xFFFFF000)
    upper = jax.lax.bitcast_convert_type(bits, jnp.float32)
    return upper, x - upper


def add(x: TwoFloats, y: TwoFloats) -> TwoFloats:
    """``x + y``, to 2^-46 of the larger one.

    >>> add(widen(jnp.float32(1.0)), widen(jnp.float32(2**-40))).low.item() * 2**40
    1.0
    """
    high, lost = _exact_sum(x.high, y.high)
    return _normalise(high, lost + (x.low + y.low))


def subtract(x: TwoFloats, y: TwoFloats) -> TwoFloats:
    """``x - y``, to 2^-46 of the larger one.

    >>> float(subtract(widen(jnp.float32(3.0)), widen(jnp.float32(1.0))).high)
    2.0
    """
    return add(x, TwoFloats(-y.high, -y.low))


def multiply(x: TwoFloats, y: TwoFloats) -> TwoFloats:
    """``x y``, to 2^-45.

    >>> square = multiply(*[widen(jnp.float32(1 + 2**-12))] * 2)
    >>> float(square.high) - 1 - 2**-11, float(square.low) * 2**24
    (0.0, 1.0)
    """
    x_upper, x_lower = _halves(x.high)
    y_upper, y_lower = _halves(y.high)
    middle = _exact_sum(x_upper * y_lower, x_lower * y_upper)
    high, lost = _normalise(x_upper * y_upper, middle.high)
    small = x_lower * y_lower + (x.high * y.low + x.low * y.high)
    return _normalise(high, lost + (middle.low + small))


def divide(x: TwoFloats, y: TwoFloats) -> TwoFloats:
    """``x / y``, to 2^-45.

    >>> third = divide(widen(jnp.float32(1.0)), widen(jnp.float32(3.0)))
    >>> round(float(third.high) + float(third.low), 13)
    0.3333333333333
    """
    quotient = x.high / y.high
    left = subtract(x, multiply(widen(quotient), y))
    return _normalise(quotient, left.high / y.high)


def square_root(x: TwoFloats) -> TwoFloats:
    """The root of ``x > 0``, to 2^-45.

    >>> root = square_root(widen(jnp.float32(2.0)))
    >>> round(float(root.high) + float(root.low), 13)
    1.4142135623731
    """
    root = jnp.sqrt(x.high)
    left = subtract(x, multiply(widen(root), widen(root)))
    return _normalise(root, 0.5 * left.high / root)


def total(x: TwoFloats) -> TwoFloats:
    """The sum over the first axis, of a power of two, whose halves are added until one is left.

    >>> float(total(widen(jnp.arange(4.0))).high)
    6.0
    """
    high, low = x
    while len(high) > 1:
        half = len(high) // 2
        high, lost = _exact_sum(high[:half], high[half:])
        low = lost + (low[:half] + low[half:])
    return _normalise(high[0], low[0])

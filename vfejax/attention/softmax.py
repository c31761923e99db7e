"""Softmax over masked rows: the one place that knows about maxima, empty rows and blocks.

Conventions of this module. A mask is True where a row may attend. A logit of ``-inf`` counts as
masked. A row without any entry has weights, averages and gradients that are exactly 0. A NaN among
the entries that count makes its row NaN; a NaN behind the mask does nothing. Sums of half-precision
logits are kept in float32.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = [
    "Average",
    "Exponentials",
    "Reduction",
    "combine",
    "exponentials",
    "finish",
    "log_sum_exp",
    "over_axis",
    "over_segments",
    "partial_average",
    "softmax",
    "total_variation_bound",
]


class Reduction(NamedTuple):
    """How to reduce over the entries of each row, and how to give a row's number to its entries.

    Attributes:
        sum: sum over the entries of each row.
        max: largest entry of each row, ``-inf`` for a row without entries.
        spread: from one number per row to an array that broadcasts against the entries.
    """

    sum: Callable[[Array], Array]
    max: Callable[[Array], Array]
    spread: Callable[[Array], Array]


class Exponentials(NamedTuple):
    """Exponentials ``factors = exp(logits - top)`` of each row, their ``total`` and the shift
    ``top``.

    In an empty row the factors are 0, the total is 1 and the shift is 0.
    """

    factors: Array
    total: Array
    top: Array


class Average(NamedTuple):
    """Softmax average over the keys read so far, before it is divided by its total.

    Attributes:
        top: largest logit of each row ``[..., n]``; ``-inf`` where nothing has been read.
        total: ``sum_j exp(l_j - top)``, ``[..., n]``.
        values: ``sum_j exp(l_j - top) v_j``, ``[..., n, c]``.
    """

    top: Array
    total: Array
    values: Array


def over_axis(axis: int = -1) -> Reduction:
    """Rows along one axis of an array.

    >>> import jax.numpy as jnp
    >>> over_axis().sum(jnp.ones((2, 3)))
    Array([3., 3.], dtype=float32)
    """
    return Reduction(
        sum=lambda x: jnp.sum(x, axis=axis),
        max=lambda x: jnp.max(x, axis=axis, initial=-jnp.inf),
        spread=lambda x: jnp.expand_dims(x, axis),
    )


def over_segments(segments: Array, num_segments: int) -> Reduction:
    """Rows scattered through a flat array: entry e belongs to row ``segments[e]``.

    Args:
        segments: integers ``[e]`` in [0, num_segments), in any order.
        num_segments: number of rows.

    Returns:
        The reduction over each row.

    >>> import jax.numpy as jnp
    >>> over_segments(jnp.array([0, 2, 2]), 3).sum(jnp.array([1.0, 2.0, 3.0]))
    Array([1., 0., 5.], dtype=float32)
    """
    return Reduction(
        sum=lambda x: jax.ops.segment_sum(x, segments, num_segments),
        max=lambda x: jax.ops.segment_max(x, segments, num_segments),
        spread=lambda x: x[segments],
    )


def exponentials(logits: Array, over: Reduction, empty: Array | None = None) -> Exponentials:
    """Exponentials of the logits, shifted by the largest one of each row.

    Args:
        logits: floating; ``-inf`` where an entry does not count.
        over: the rows, such as :func:`over_axis`.
        empty: True for a row that has no entry that counts; by default a row whose logits are all
            ``-inf``. Pass it where ``-inf`` can also come from an overflow: such a row is then NaN.

    Returns:
        Factors with the shape of ``logits``, and one total and shift per row.

    >>> import jax.numpy as jnp
    >>> factors, total, top = exponentials(jnp.array([[1000.0, 1000.0]]), over_axis())
    >>> factors, total, top
    (Array([[1., 1.]], dtype=float32), Array([2.], dtype=float32), Array([1000.], dtype=float32))
    """
    top = over.max(jax.lax.stop_gradient(logits))
    # A comparison with -inf, not a test for finite numbers: a NaN must stay a NaN.
    empty = top == -jnp.inf if empty is None else empty
    top = jnp.where(empty, 0.0, top)
    factors = jnp.exp(logits - over.spread(top))
    return Exponentials(factors, jnp.where(empty, 1.0, over.sum(factors)), top)


def log_sum_exp(logits: Array, over: Reduction) -> Array:
    """``log sum_j exp(l_j)`` of each row; ``-inf`` with zero gradient for an empty row.

    Args:
        logits: floating; ``-inf`` where an entry does not count.
        over: the rows, such as :func:`over_axis`.

    Returns:
        One number per row.

    >>> import jax.numpy as jnp
    >>> log_sum_exp(jnp.array([[0.0, 0.0], [-jnp.inf, -jnp.inf]]), over_axis()).round(3)
    Array([0.693,  -inf], dtype=float32)
    """
    _, total, top = exponentials(logits, over)
    empty = over.max(jax.lax.stop_gradient(logits)) == -jnp.inf
    return jnp.where(empty, -jnp.inf, jnp.log(total) + top)


@jax.custom_jvp
def _row_softmax(logits: Array) -> Array:
    over = over_axis(-1)
    factors, total, _ = exponentials(logits, over)
    return factors / over.spread(total)


@_row_softmax.defjvp
def _row_softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # From the weights alone, so that a gradient keeps one array of the size of the logits, not two.
    weights = _row_softmax(primals[0])
    change = weights * tangents[0]
    return weights, change - weights * jnp.sum(change, axis=-1, keepdims=True)


def _masked(logits: Array, mask: Array | None) -> Array:
    """Logits in at least float32, ``-inf`` behind the mask."""
    if not jnp.issubdtype(logits.dtype, jnp.floating):
        raise ValueError(f"logits must be floating, got {logits.dtype}")
    logits = logits.astype(at_least_float32(logits.dtype))
    if mask is None:
        return logits
    if mask.dtype != bool or mask.ndim != logits.ndim:
        raise ValueError(
            f"mask must be bool with {logits.ndim} axes that broadcast to the logits' shape "
            f"{logits.shape}, got {mask.dtype} {mask.shape}"
        )
    return jnp.where(mask, logits, -jnp.inf)


def softmax(logits: Array, mask: Array | None = None) -> Array:
    """Weights ``exp(l_j) / sum_l exp(l_l)`` along the last axis, over the entries that count.

    Args:
        logits: ``[..., m]``, floating.
        mask: bool, with as many axes as ``logits`` and broadcasting to their shape; True where the
            row may attend. Everything counts by default.

    Returns:
        ``[..., m]`` in float32 for half precision, else in the logits' dtype. Rows sum to 1, or to
        0 where nothing counts.

    Raises:
        ValueError: for logits that are not floating, and for a mask that is not bool or has another
            number of axes.

    >>> import jax.numpy as jnp
    >>> mask = jnp.array([[True, True, False], [False, False, False]])
    >>> softmax(jnp.zeros((2, 3)), mask)
    Array([[0.5, 0.5, 0. ],
           [0. , 0. , 0. ]], dtype=float32)
    """
    return _row_softmax(_masked(logits, mask))


def partial_average(
    logits: Array,
    values: Array,
    mask: Array | None = None,
    *,
    precision: jax.lax.PrecisionLike = None,
) -> Average:
    """Softmax average over one block of keys, to be joined with others by :func:`combine`.

    Args:
        logits: ``[..., n, m]``, floating.
        values: ``[..., m, c]``; finite also at keys that no query attends to.
        mask: bool, with as many axes as ``logits``; True where row i may attend to key j.
        precision: of the product with the values (see ``jax.lax.Precision``).

    Returns:
        The average over this block, undivided.

    Raises:
        ValueError: as :func:`softmax` does.

    >>> import jax.numpy as jnp
    >>> logits, values = jnp.array([[0.0, 1.0, 2.0, 3.0]]), jnp.eye(4)
    >>> blocks = [partial_average(logits[:, s], values[s]) for s in (slice(0, 2), slice(2, 4))]
    >>> joined = finish(combine(*blocks))
    >>> bool(jnp.allclose(joined, softmax(logits)))
    True
    """
    logits = _masked(logits, mask)
    over = over_axis(-1)
    factors = exponentials(logits, over).factors
    top = over.max(jax.lax.stop_gradient(logits))
    weighted = jnp.matmul(
        factors.astype(values.dtype),
        values,
        precision=precision,
        preferred_element_type=at_least_float32(values.dtype),
    )
    return Average(top, over.sum(factors), weighted)


def combine(left: Average, right: Average) -> Average:
    """Average over the keys of both; associative, so blocks may be joined in any order.

    >>> import jax.numpy as jnp
    >>> nothing = Average(jnp.array([-jnp.inf]), jnp.zeros(1), jnp.zeros((1, 2)))
    >>> one = Average(jnp.zeros(1), jnp.ones(1), jnp.ones((1, 2)))
    >>> finish(combine(nothing, one)), finish(combine(nothing, nothing))
    (Array([[1., 1.]], dtype=float32), Array([[0., 0.]], dtype=float32))
    """
    top = jnp.maximum(left.top, right.top)
    shift = jnp.where(top == -jnp.inf, 0.0, top)
    here, there = jnp.exp(left.top - shift), jnp.exp(right.top - shift)
    total = here * left.total + there * right.total
    return Average(top, total, here[..., None] * left.values + there[..., None] * right.values)


def finish(average: Average) -> Array:
    """The average itself, ``[..., n, c]``; 0 in a row that has read nothing.

    >>> import jax.numpy as jnp
    >>> finish(Average(jnp.zeros(1), jnp.full(1, 2.0), jnp.ones((1, 1))))
    Array([[0.5]], dtype=float32)
    """
    total = jnp.where(average.top == -jnp.inf, 1.0, average.total)
    return average.values / total[..., None]


def total_variation_bound(logit_change: Array) -> Array:
    """``tanh(eps / 2)``: how far the weights of a softmax move if no logit moves by more than eps.

    *Theorem.* Let ``p = softmax(l)`` and ``p' = softmax(l + d)`` with ``|d_j| <= eps`` for all j.
    Then ``TV(p, p') = 1/2 sum_j |p'_j - p_j| <= tanh(eps / 2)``, and no smaller bound holds for all
    logits.

    *Proof.* TV is the largest ``p'(S) - p(S)`` over sets S of entries. Let ``x = p(S)``. The
    factors ``exp(d_j)`` are at most ``e^eps`` within S and at least ``e^-eps`` outside, so the odds
    of S grow at most by ``e^(2 eps)``: with ``x = 1 / (1 + e^-y)``, ``p'(S) <= 1 / (1 + e^-(y + 2
    eps))``. The difference of the two is largest for ``y = -eps``, where it is ``1 / (1 + e^-eps) -
    1 / (1 + e^eps) = tanh(eps / 2)``. Two logits ``l = (-eps / 2, eps / 2)`` with ``d = (eps,
    -eps)`` reach it.

    Args:
        logit_change: eps, not negative, any shape.

    Source: Cohen and Fausti, Hyperbolic contractivity and the Hilbert metric on probability
    measures (2023): ``TV <= tanh(H / 4)`` in Hilbert's metric ``H = max d - min d <= 2 eps``.

    >>> round(float(total_variation_bound(jnp.array(1.0))), 4)
    0.4621
    """
    return jnp.tanh(0.5 * logit_change)

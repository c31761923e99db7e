"""The algorithms that run the two recurrences of tridiagonal systems: one step after the other, or
as a tree.

A :class:`Scans` names one algorithm for both recurrences. ``SEQUENTIAL`` is one ``lax.scan``
vectorised over everything but the sequence: n steps and the least work. It wins on a CPU.
``ASSOCIATIVE`` composes maps in a tree: O(log n) steps and two to four times the work, for
accelerators. ``PLATFORM`` takes the first on a CPU and the second elsewhere. It is the default
everywhere.

Nothing here is differentiated: :mod:`vfejax.spectral.recurrence` gives the derivatives. Unrolling
the scans was tried and made them slower to compile and to run.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from vfejax.types import Array, PyTree

__all__ = [
    "ASSOCIATIVE",
    "PLATFORM",
    "SEQUENTIAL",
    "Scans",
    "infinite_at_poles",
    "pad_back",
    "pad_front",
    "pivot_reciprocal",
    "reciprocal",
    "scaled",
    "vanishing",
]


class Scans(NamedTuple):
    """One algorithm for both recurrences, along the leading axis.

    Attributes:
        linear: ``linear(gates, inputs, reverse)`` of equal rank and equal length.
        moebius: ``moebius(diagonal, coupling)`` of equal shape; ``coupling[0]`` is 0 and its dtype
            may be the real one. It takes reciprocals by :func:`pivot_reciprocal`.
        choose: ``choose(sequential, tree, *arguments)``: the result of the one of two functions
            that is written for it.
    """

    linear: Callable[[Array, Array, bool], Array]
    moebius: Callable[[Array, Array], Array]
    choose: Callable[..., Any]


def reciprocal(w: Array) -> Array:
    """``1 / w``, for complex w by ``conj(w) / |w|^2``.

    This is a third cheaper in a scan than XLA's guarded division. The squares limit ``|w|`` to
    3e-16 ... 9e18 in complex64 and to 1e-146 ... 6e153 in complex128. Above, the result is 0.
    Below, it loses digits. At 0 it is NaN.

    >>> print(reciprocal(jnp.array([2.0, 4.0])))
    [0.5  0.25]
    """
    if not jnp.iscomplexobj(w):
        return 1.0 / w
    scale = 1.0 / (w.real * w.real + w.imag * w.imag)
    return jax.lax.complex(w.real * scale, -w.imag * scale)


def vanishing(dtype: jnp.dtype) -> float:
    """The modulus below which a pivot counts as zero: below rounding, and far from underflow.

    >>> vanishing(jnp.dtype("float32")) == 2.0**-40
    True
    """
    return 2.0**-40 if jnp.finfo(dtype).dtype == jnp.float32 else 2.0**-100


def _square(w: Array) -> Array:
    return jnp.real(w) ** 2 + jnp.imag(w) ** 2


def pivot_reciprocal(w: Array) -> Array:
    """``1 / w``, where a modulus below ``2^-40`` (single precision; ``2^-100`` in double) counts as
    that number.

    A continued fraction passes a pole in this way. The pivot after a vanishing one is large, its
    reciprocal is small, and the product of the two reciprocals is right to rounding. What comes out
    is the exact result for a diagonal entry changed by the number above. NaN stays NaN.

    >>> print(pivot_reciprocal(jnp.array([0.5, 0.0])) == jnp.array([2.0, 2.0**40]))
    [ True  True]
    """
    limit = vanishing(w.dtype)
    if not jnp.iscomplexobj(w):
        return 1.0 / jnp.where(jnp.abs(w) < limit, limit, w)
    square = w.real * w.real + w.imag * w.imag
    vanishes, scale = square < limit * limit, 1.0 / square
    # Selected after the division: on a CPU the comparison then runs beside it, at no cost.
    return jax.lax.complex(
        jnp.where(vanishes, 1.0 / limit, w.real * scale),
        jnp.where(vanishes, 0.0, -w.imag * scale),
    )


def scaled(k: Array, g: Array) -> Array:
    """``k g`` with k real or of the dtype of g, without the products by its imaginary part of 0.

    >>> print(scaled(jnp.asarray(2.0), jnp.asarray(1j)))
    2j
    """
    return k * g if k.dtype == g.dtype else jax.lax.complex(k * g.real, k * g.imag)


def infinite_at_poles(g: Array) -> Array:
    """``g``, with infinity where :func:`pivot_reciprocal` put a large number in its place.

    No derivative flows through an infinite entry.

    >>> print(infinite_at_poles(pivot_reciprocal(jnp.array([0.5, 0.0]))))
    [ 2. inf]
    """
    pole = (jnp.real(g) >= 1.0 / vanishing(g.dtype)) & (jnp.imag(g) == 0)
    return jnp.where(pole, jnp.full_like(g, jnp.inf), g)


def pad_front(x: Array) -> Array:
    """A zero put before the first entry of the leading axis: ``[n - 1, ...]`` to ``[n, ...]``.

    >>> print(pad_front(jnp.array([1.0, 2.0])))
    [0. 1. 2.]
    """
    return jnp.concatenate([jnp.zeros((1, *x.shape[1:]), x.dtype), x])


def pad_back(x: Array) -> Array:
    """A zero put after the last entry of the leading axis: ``[n - 1, ...]`` to ``[n, ...]``.

    >>> print(pad_back(jnp.array([1.0, 2.0])))
    [1. 2. 0.]
    """
    return jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])


def _linear_sequential(gates: Array, inputs: Array, reverse: bool) -> Array:
    def step(y: Array, gate_and_input: tuple[Array, Array]) -> tuple[Array, Array]:
        gate, x = gate_and_input
        y = gate * y + x
        return y, y

    return jax.lax.scan(step, jnp.zeros_like(inputs[0]), (gates, inputs), reverse=reverse)[1]


def _moebius_sequential(diagonal: Array, coupling: Array) -> Array:
    def step(g: Array, row: tuple[Array, Array]) -> tuple[Array, Array]:
        d, k = row
        g = pivot_reciprocal(d - scaled(k, g))
        return g, g

    return jax.lax.scan(step, jnp.zeros_like(diagonal[0]), (diagonal, coupling))[1]


def _linear_associative(gates: Array, inputs: Array, reverse: bool) -> Array:
    def compose(first: tuple[Array, Array], second: tuple[Array, Array]) -> tuple[Array, Array]:
        return second[0] * first[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(compose, (gates, inputs), reverse=reverse)[1]


def _normalized(matrix: Array, otherwise: Array) -> Array:
    """The same Moebius map with entries of size 1: products of a million matrices neither overflow
    nor underflow. ``otherwise`` stands for a product that vanishes.
    """
    parts = jnp.maximum(jnp.abs(jnp.real(matrix)), jnp.abs(jnp.imag(matrix)))
    size = jnp.max(parts, axis=(-2, -1), keepdims=True)
    # Twice its root, since the reciprocal of the largest numbers counts as 0.
    root = jax.lax.rsqrt(size).astype(matrix.dtype)
    return jnp.where(size == 0.0, otherwise, matrix * root * root)


def _moebius_associative(diagonal: Array, coupling: Array) -> Array:
    """Prefix products of ``[[0, 1], [-k, d]]``, which maps ``g`` to ``1 / (d - k g)``, applied to
    ``g = 0``.

    One stacked array: eight real leaves take three times as long to compile on a CPU, four complex
    ones ten times.
    """

    def compose(first: Array, second: Array) -> Array:
        product = jnp.sum(second[..., :, :, None] * first[..., None, :, :], axis=-2)
        # It vanishes where a coupling of 0 follows a pole: what came before is not felt.
        return _normalized(product, second)

    k = coupling.astype(diagonal.dtype)
    upper = jnp.stack([jnp.zeros_like(diagonal), jnp.ones_like(diagonal)], axis=-1)
    maps = jnp.stack([upper, jnp.stack([-k, diagonal], axis=-1)], axis=-2)
    products = jax.lax.associative_scan(compose, _normalized(maps, maps))
    above, below = products[..., 0, 1], products[..., 1, 1]
    limit = vanishing(diagonal.dtype)
    pole = _square(below) < limit**2 * _square(above)
    g = jnp.where(pole, 1.0 / limit, above * reciprocal(jnp.where(pole, 1.0, below)))
    # Near a pole g has a large rounding error. The next entry is taken from this very g: their
    # product, near -1 / k, would be lost if both came from the tree.
    before = pad_front(g[:-1])
    near_a_pole = _square(before) * jnp.abs(k) > 1.0
    return jnp.where(near_a_pole, pivot_reciprocal(diagonal - k * before), g)


def _choose_by_platform(sequential: Callable, tree: Callable, *arguments: PyTree) -> Any:
    return jax.lax.platform_dependent(*arguments, cpu=sequential, default=tree)


def _linear_platform(gates: Array, inputs: Array, reverse: bool) -> Array:
    forms = (partial(fn, reverse=reverse) for fn in (_linear_sequential, _linear_associative))
    return _choose_by_platform(*forms, gates, inputs)


SEQUENTIAL = Scans(
    _linear_sequential,
    _moebius_sequential,
    lambda sequential, tree, *arguments: sequential(*arguments),
)
ASSOCIATIVE = Scans(
    _linear_associative,
    _moebius_associative,
    lambda sequential, tree, *arguments: tree(*arguments),
)
PLATFORM = Scans(
    _linear_platform,
    partial(_choose_by_platform, _moebius_sequential, _moebius_associative),
    _choose_by_platform,
)

"""The two recurrences of tridiagonal systems, linear and continued fraction, with derivatives of
every order.

Each costs O(n) in time and memory, forward and backward, by any of the algorithms of
:mod:`vfejax.spectral.scans`, whose names are also found here. A derivative, in forward or in
reverse mode, is one more linear recurrence. The steps of a scan are never differentiated.
"""

from functools import partial

import jax
import jax.numpy as jnp

from vfejax.spectral._arguments import check_arrays
from vfejax.spectral._fraction import Factors, felt, one_by_one, tree
from vfejax.spectral.scans import (
    ASSOCIATIVE,
    PLATFORM,
    SEQUENTIAL,
    Scans,
    pad_back,
    pad_front,
    pivot_reciprocal,
    reciprocal,
    scaled,
)
from vfejax.types import Array

__all__ = [
    "ASSOCIATIVE",
    "PLATFORM",
    "SEQUENTIAL",
    "Scans",
    "linear_recurrence",
    "linear_scan",
    "moebius_recurrence",
    "moebius_scan",
    "pad_back",
    "pad_front",
    "pivot_reciprocal",
    "reciprocal",
]


def linear_scan(links: Array, inputs: Array, reverse: bool, scans: Scans) -> Array:
    """The linear recurrence along the leading axis, with nothing checked: ``y_i = l_{i-1} y_{i-1} +
    x_i``, or ``y_i = l_i y_{i+1} + x_i`` in reverse.

    It is the solution of linear equations, ``y_i - l_{i-1} y_{i-1} = x_i``, and its derivatives
    follow from these: ``dy`` solves them for ``dx_i + y_{i-1} dl_{i-1}``, and the adjoint is the
    recurrence run the other way, ``lam_i = w_i + l_i lam_{i+1}``, with ``dF/dx_i = lam_i`` and
    ``dF/dl_{i-1} = lam_i y_{i-1}``.

    Args:
        links: l, between neighbours, ``[n - 1, ...]``; axes after the first may have size 1.
        inputs: x, ``[n, ...]`` of the same rank and dtype, n >= 1.
        reverse: from the last entry to the first.
        scans: the algorithm.

    Returns:
        Shape and dtype of ``inputs``.

    >>> print(linear_scan(jnp.full(2, 0.5), jnp.ones(3), False, PLATFORM))
    [1.   1.5  1.75]
    """

    def equations(y: Array) -> Array:
        return y - (pad_back(links * y[1:]) if reverse else pad_front(links * y[:-1]))

    def run(x: Array, reverse: bool) -> Array:
        return scans.linear(pad_back(links) if reverse else pad_front(links), x, reverse)

    return jax.lax.custom_linear_solve(
        equations,
        inputs,
        solve=lambda _, x: run(x, reverse),
        transpose_solve=lambda _, x: run(x, not reverse),
    )


def linear_recurrence(
    gates: Array,
    inputs: Array,
    initial: Array | None = None,
    reverse: bool = False,
    *,
    axis: int = -1,
    scans: Scans = PLATFORM,
) -> Array:
    """``y_i = g_i y_{i-1} + x_i`` along one axis, starting from ``y_{-1} = initial``.

    The associative algorithm forms products of consecutive gates. They must stay in range, as they
    do for ``|g| <= 1``: where a product overflows the result is NaN or infinite, even if the
    sequential algorithm gives a finite number.

    Args:
        gates: real or complex, of the rank of ``inputs``; axes other than ``axis`` may have size 1
            and are then shared. A vector per site is ``inputs [..., n, c]`` with ``gates [..., n,
            1]`` and ``axis=-2``.
        inputs: same dtype.
        initial: the shape of ``inputs`` without ``axis``, same dtype; 0 when absent.
        reverse: from the last site to the first, ``y_i = g_i y_{i+1} + x_i``.
        axis: the sequence axis of both.
        scans: the algorithm.

    Returns:
        Shape and dtype of ``inputs``. Derivatives of every order, forward and reverse.

    Raises:
        ValueError: when shapes or dtypes do not fit.

    >>> print(linear_recurrence(jnp.full(3, 0.5), jnp.ones(3), jnp.array(4.0)))
    [3.   2.5  2.25]
    """
    _check_recurrence(gates, inputs, initial, axis)
    gates, inputs = jnp.moveaxis(gates, axis, 0), jnp.moveaxis(inputs, axis, 0)
    if not inputs.shape[0]:
        return jnp.moveaxis(inputs, 0, axis)
    if initial is not None:
        first = -1 if reverse else 0
        inputs = inputs.at[first].add(gates[first] * initial)
    links = gates[:-1] if reverse else gates[1:]
    return jnp.moveaxis(linear_scan(links, inputs, reverse, scans), 0, axis)


def _check_recurrence(gates: Array, inputs: Array, initial: Array | None, axis: int) -> None:
    """Refuse what does not fit, naming it."""
    check_arrays(gates=gates, inputs=inputs, **({} if initial is None else {"initial": initial}))
    if gates.ndim != inputs.ndim or inputs.ndim == 0 or gates.shape[axis] != inputs.shape[axis]:
        raise ValueError(
            f"gates must have the rank of inputs {inputs.shape} and its length, got {gates.shape}"
        )
    if any(size not in (1, full) for size, full in zip(gates.shape, inputs.shape, strict=True)):
        raise ValueError(f"gates must broadcast to inputs {inputs.shape}, got {gates.shape}")
    for name, x in (("gates", gates), ("initial", initial)):
        if x is not None and x.dtype != inputs.dtype:
            raise ValueError(f"{name} must have the dtype of inputs {inputs.dtype}, got {x.dtype}")
    without = list(inputs.shape)
    del without[axis]
    if initial is not None and initial.shape != tuple(without):
        raise ValueError(
            f"initial must be inputs without the sequence axis {tuple(without)}, "
            f"got {initial.shape}"
        )


@partial(jax.custom_jvp, nondiff_argnums=(2,))
def moebius_scan(diagonal: Array, coupling: Array, scans: Scans) -> Array:
    """:func:`moebius_recurrence` along the leading axis, with nothing checked.

    A vanishing denominator counts as a tiny number
    (:func:`vfejax.spectral.scans.pivot_reciprocal`), so the entry is large but finite, and those
    after it and their derivatives are right.

    Args:
        diagonal: d, ``[n, ...]``.
        coupling: k, ``[n - 1, ...]``; its dtype may be the real one.
        scans: the algorithm.

    Returns:
        Shape and dtype of ``diagonal``.

    >>> print(moebius_scan(jnp.array([0.0, 0.0, 2.0]), jnp.ones(2), PLATFORM).round(3)[1:])
    [-0.   0.5]
    """
    return scans.moebius(diagonal, pad_front(coupling))


@moebius_scan.defjvp
def _moebius_scan_jvp(
    scans: Scans, primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """``dg_i = k_{i-1} g_i^2 dg_{i-1} + g_i^2 (g_{i-1} dk_{i-1} - dd_i)``."""
    (diagonal, coupling), (d_change, k_change) = primals, tangents
    g = moebius_scan(diagonal, coupling, scans)
    square = g * g
    links = coupling.astype(g.dtype) * g[1:] ** 2
    k_part = pad_front(k_change.astype(g.dtype) * g[:-1])
    return g, linear_scan(links, square * (k_part - d_change), False, scans)


@partial(jax.custom_jvp, nondiff_argnums=(3,))
def fraction_scan(diagonal: Array, factors: Factors, initial: Array, scans: Scans) -> Array:
    """``g_i = 1 / (d_i - k_i g_{i-1})`` along the leading axis, in any unit of energy, with nothing
    checked.

    Derivatives are those of logarithms, which have no unit: with ``l_i = dg_i / g_i``

        l_i = k_i g_i g_{i-1} l_{i-1} + g_i (g_{i-1} dk_i - dd_i).

    Args:
        diagonal: d, ``[n, ...]``.
        factors: ``(k,)``, or ``(b, c)`` for ``k = b c``: each ``[n, ...]``, of the dtype of d or
            its real one; the first entries couple to ``initial``.
        initial: g before the first site, ``[...]``, of the dtype of d.
        scans: the algorithm.

    Returns:
        Shape and dtype of ``diagonal``. Entry i depends on sites 0..i alone, bit for bit.

    >>> tiny = jnp.full(3, 1e-30)
    >>> g = fraction_scan(2 * tiny, (tiny, tiny), jnp.zeros(()), PLATFORM)
    >>> [round(x, 3) for x in (g * tiny).tolist()]
    [0.5, 0.667, 0.75]
    """
    return scans.choose(one_by_one, tree, diagonal, factors, initial)


@fraction_scan.defjvp
def _fraction_scan_jvp(
    scans: Scans, primals: tuple[Array, Factors, Array], tangents: tuple[Array, Factors, Array]
) -> tuple[Array, Array]:
    (diagonal, factors, initial), (d_change, changes, initial_change) = primals, tangents
    g = fraction_scan(diagonal, factors, initial, scans)
    before = jnp.concatenate([initial[None], g[:-1]])
    inner = felt(factors[1:], before)
    links = scaled(factors[0][1:], g[1:]) * inner[1:]
    felt_change = scaled(changes[0], inner)
    if len(factors) == 2:
        felt_change += scaled(factors[0], scaled(changes[1], before))
    first = felt(tuple(factor[0] for factor in factors), initial_change)
    felt_change = jnp.concatenate([felt_change[:1] + first[None], felt_change[1:]])
    return g, g * linear_scan(links, g * (felt_change - d_change), False, scans)


def moebius_recurrence(
    diagonal: Array, coupling: Array, *, axis: int = -1, scans: Scans = PLATFORM
) -> Array:
    """Continued fraction ``g_i = 1 / (d_i - k_{i-1} g_{i-1})`` along one axis, ``g_0 = 1 / d_0``.

    ``dg_i / dg_{i-1} = k_{i-1} g_i^2``: off the spectrum these products decay, so rounding does not
    pile up. The adjoint is ``lam_i = w_i + k_i g_{i+1}^2 lam_{i+1}``, with ``dF/dd_i = -g_i^2
    lam_i`` and ``dF/dk_{i-1} = g_i^2 g_{i-1} lam_i``.

    Units: any in which the entries can be written, also of sites of very different sizes in one
    sequence. A denominator counts as zero by its size beside d_i and ``k_{i-1} g_{i-1}``.

    Args:
        diagonal: d, real or complex, n >= 1 along ``axis``.
        coupling: k, of the same shape but n - 1 along ``axis``; the dtype of ``diagonal`` or, to
            save memory, its real one.
        axis: the sequence axis of both.
        scans: the algorithm. The associative one multiplies 2 x 2 matrices, normalised at every
            step.

    Returns:
        Shape and dtype of ``diagonal``. Entry i depends on sites 0..i alone, bit for bit. One whose
        denominator vanishes is large in place of infinite: ``2^40`` (``2^100`` in double precision)
        over a power of two of the size of that site, over 1 at a first site of 0. The entries after
        it are right. Derivatives of every order, forward and reverse.

    Raises:
        ValueError: when shapes or dtypes do not fit.

    >>> golden = moebius_recurrence(jnp.full(30, 1.0), jnp.full(29, -1.0))[-1]
    >>> f"{golden:.4f}"
    '0.6180'
    """
    check_arrays(diagonal=diagonal, coupling=coupling)
    d, k = jnp.moveaxis(diagonal, axis, 0), jnp.moveaxis(coupling, axis, 0)
    if not d.shape[0] or k.shape != (d.shape[0] - 1, *d.shape[1:]):
        raise ValueError(
            f"coupling must be diagonal {diagonal.shape} less one along axis {axis}, n >= 1: "
            f"got {coupling.shape}"
        )
    if k.dtype not in (d.dtype, jnp.finfo(d.dtype).dtype):
        raise ValueError(
            f"coupling must have the dtype of diagonal {d.dtype} or its real one, got {k.dtype}"
        )
    g = fraction_scan(d, (pad_front(k),), jnp.zeros_like(d[0]), scans)
    return jnp.moveaxis(g, 0, axis)

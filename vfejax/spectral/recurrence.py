"""The two recurrences of tridiagonal systems, linear and continued fraction, each as a sequential
and as an associative scan.

A :class:`Scans` names one algorithm for both. ``SEQUENTIAL`` is one ``lax.scan`` vectorised over
everything but the sequence: n steps, the least work, the winner on a CPU. ``ASSOCIATIVE`` composes
maps in a tree: O(log n) steps, about twice to four times the work, for accelerators. ``PLATFORM``
takes the first on a CPU and the second elsewhere, and is the default everywhere.

Both recurrences have an exact O(n) adjoint, itself a linear recurrence against the direction of the
first. Unrolling the scans was tried and made them slower to compile and to run.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.types import Array

__all__ = [
    "ASSOCIATIVE",
    "PLATFORM",
    "SEQUENTIAL",
    "Scans",
    "linear_recurrence",
    "moebius_recurrence",
    "pad_back",
    "pad_front",
    "real_like",
    "reciprocal",
]


class Scans(NamedTuple):
    """One algorithm for both recurrences, along the leading axis.

    Attributes:
        linear: ``linear(gates, inputs, reverse)`` of equal rank and equal length.
        moebius: ``moebius(diagonal, coupling)`` of equal shape; ``coupling[0]`` is 0 and its dtype
            may be the real one.
    """

    linear: Callable[[Array, Array, bool], Array]
    moebius: Callable[[Array, Array], Array]


def reciprocal(w: Array) -> Array:
    """``1 / w``; for complex w by ``conj(w) / |w|^2``, a third cheaper in a scan than XLA's guarded
    division.

    The squares limit ``|w|`` to 3e-16 ... 1e19 in complex64 and to 1e-146 ... 1e154 in complex128;
    outside it loses digits or overflows.
    """
    if not jnp.iscomplexobj(w):
        return 1.0 / w
    scale = 1.0 / (w.real * w.real + w.imag * w.imag)
    return jax.lax.complex(w.real * scale, -w.imag * scale)


def pad_front(x: Array) -> Array:
    """A zero put before the first entry of the leading axis: ``[n - 1, ...]`` to ``[n, ...]``."""
    return jnp.concatenate([jnp.zeros((1, *x.shape[1:]), x.dtype), x])


def pad_back(x: Array) -> Array:
    """A zero put after the last entry of the leading axis."""
    return jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]), x.dtype)])


def real_like(cotangent: Array, primal: Array) -> Array:
    """``cotangent``, or its real part where ``primal`` is real: what JAX expects as the cotangent
    of a real argument.
    """
    return cotangent if jnp.iscomplexobj(primal) else cotangent.real


def _linear_sequential(gates: Array, inputs: Array, reverse: bool) -> Array:
    def step(y, gate_and_input):
        gate, x = gate_and_input
        y = gate * y + x
        return y, y

    return jax.lax.scan(step, jnp.zeros_like(inputs[0]), (gates, inputs), reverse=reverse)[1]


def _moebius_sequential(diagonal: Array, coupling: Array) -> Array:
    def step(g, row):
        d, k = row
        g = reciprocal(d - k.astype(d.dtype) * g)
        return g, g

    return jax.lax.scan(step, jnp.zeros_like(diagonal[0]), (diagonal, coupling))[1]


def _linear_associative(gates: Array, inputs: Array, reverse: bool) -> Array:
    def compose(first, second):
        return second[0] * first[0], second[0] * first[1] + second[1]

    return jax.lax.associative_scan(compose, (gates, inputs), reverse=reverse)[1]


def _normalized(matrix: Array) -> Array:
    """The same Moebius map with entries of size 1: products of a million matrices neither overflow
    nor underflow.
    """
    size = jnp.max(jnp.abs(matrix.real) + jnp.abs(matrix.imag), axis=(-2, -1), keepdims=True)
    return matrix * (1.0 / size).astype(matrix.dtype)


def _moebius_associative(diagonal: Array, coupling: Array) -> Array:
    """Prefix products of ``[[0, 1], [-k, d]]``, which maps ``g`` to ``1 / (d - k g)``, applied to
    ``g = 0``.

    One stacked array: eight real leaves take three times as long to compile on a CPU, four complex
    ones ten times.
    """

    def compose(first, second):
        return _normalized(jnp.sum(second[..., :, :, None] * first[..., None, :, :], axis=-2))

    top = jnp.stack([jnp.zeros_like(diagonal), jnp.ones_like(diagonal)], axis=-1)
    maps = jnp.stack(
        [top, jnp.stack([-coupling.astype(diagonal.dtype), diagonal], axis=-1)], axis=-2
    )
    products = jax.lax.associative_scan(compose, _normalized(maps))
    return products[..., 0, 1] * reciprocal(products[..., 1, 1])


def _linear_platform(gates: Array, inputs: Array, reverse: bool) -> Array:
    return jax.lax.platform_dependent(
        gates,
        inputs,
        cpu=partial(_linear_sequential, reverse=reverse),
        default=partial(_linear_associative, reverse=reverse),
    )


def _moebius_platform(diagonal: Array, coupling: Array) -> Array:
    return jax.lax.platform_dependent(
        diagonal, coupling, cpu=_moebius_sequential, default=_moebius_associative
    )


SEQUENTIAL = Scans(_linear_sequential, _moebius_sequential)
ASSOCIATIVE = Scans(_linear_associative, _moebius_associative)
PLATFORM = Scans(_linear_platform, _moebius_platform)


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _linear(gates, inputs, reverse, scans):
    return scans.linear(gates, inputs, reverse)


def _linear_forward(gates, inputs, reverse, scans):
    y = scans.linear(gates, inputs, reverse)
    return y, (gates, y)


def _linear_backward(reverse, scans, residuals, cotangent):
    gates, y = residuals
    next_gates = pad_front(gates[:-1]) if reverse else pad_back(gates[1:])
    previous = pad_back(y[1:]) if reverse else pad_front(y[:-1])
    adjoint = _linear(next_gates, cotangent, not reverse, scans)
    shared = tuple(i for i, size in enumerate(gates.shape) if size != y.shape[i])
    return jnp.sum(adjoint * previous, axis=shared, keepdims=True), adjoint


_linear.defvjp(_linear_forward, _linear_backward)


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

    The adjoint is the recurrence run the other way: ``lam_i = w_i + g_{i+1} lam_{i+1}``, ``dF/dx_i
    = lam_i``, ``dF/dg_i = lam_i y_{i-1}``. Time and memory O(n), forward and backward.

    Args:
        gates: real or complex, of the rank of ``inputs``; axes other than ``axis`` may have size 1
            and are then shared. A vector per site
            is ``inputs [..., n, c]`` with ``gates [..., n, 1]`` and ``axis=-2``.
        inputs: same dtype.
        initial: the shape of ``inputs`` without ``axis``; 0 when absent.
        reverse: from the last site to the first, ``y_i = g_i y_{i+1} + x_i``.
        axis: the sequence axis of both.
        scans: the algorithm.

    Returns:
        Shape and dtype of ``inputs``.

    Raises:
        ValueError: when shapes or dtypes do not fit.
    """
    if gates.ndim != inputs.ndim or inputs.ndim == 0 or gates.shape[axis] != inputs.shape[axis]:
        raise ValueError(
            f"gates must have the rank of inputs {inputs.shape} and its length, got {gates.shape}"
        )
    if any(size not in (1, full) for size, full in zip(gates.shape, inputs.shape, strict=True)):
        raise ValueError(f"gates must broadcast to inputs {inputs.shape}, got {gates.shape}")
    if gates.dtype != inputs.dtype:
        raise ValueError(f"gates must have the dtype of inputs {inputs.dtype}, got {gates.dtype}")
    gates, inputs = jnp.moveaxis(gates, axis, 0), jnp.moveaxis(inputs, axis, 0)
    if initial is not None:
        if initial.shape != inputs.shape[1:]:
            raise ValueError(
                f"initial must be inputs without the sequence axis {inputs.shape[1:]}, got {initial.shape}"
            )
        first = -1 if reverse else 0
        inputs = inputs.at[first].add(gates[first] * initial)
    return jnp.moveaxis(_linear(gates, inputs, reverse, scans), 0, axis)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _moebius(diagonal, coupling, scans):
    return scans.moebius(diagonal, pad_front(coupling))


def _moebius_forward(diagonal, coupling, scans):
    g = _moebius(diagonal, coupling, scans)
    return g, (coupling, g)


def _moebius_backward(scans, residuals, cotangent):
    coupling, g = residuals
    adjoint = _linear(pad_back(coupling.astype(g.dtype) * g[1:] ** 2), cotangent, True, scans)
    slope = g * g * adjoint
    return -slope, real_like(slope[1:] * g[:-1], coupling)


_moebius.defvjp(_moebius_forward, _moebius_backward)


def moebius_recurrence(
    diagonal: Array, coupling: Array, *, axis: int = -1, scans: Scans = PLATFORM
) -> Array:
    """Continued fraction ``g_i = 1 / (d_i - k_{i-1} g_{i-1})`` along one axis, ``g_0 = 1 / d_0``.

    ``dg_i / dg_{i-1} = k_{i-1} g_i^2``: off the spectrum these products decay, so rounding does not
    pile up. The adjoint is ``lam_i = w_i + k_i g_{i+1}^2 lam_{i+1}``, ``dF/dd_i = -g_i^2 lam_i``,
    ``dF/dk_{i-1} = g_i^2 g_{i-1} lam_i``.

    Args:
        diagonal: d, real or complex, n along ``axis``.
        coupling: k, of the same shape but n - 1 along ``axis``; the dtype of ``diagonal`` or, to
            save memory, its real one.
        axis: the sequence axis of both.
        scans: the algorithm. The associative one multiplies 2 x 2 matrices, normalised at every
            step.

    Returns:
        Shape and dtype of ``diagonal``. Infinite or NaN where a denominator vanishes.

    Raises:
        ValueError: when shapes or dtypes do not fit.
    """
    d, k = jnp.moveaxis(diagonal, axis, 0), jnp.moveaxis(coupling, axis, 0)
    if not d.shape[0] or k.shape != (d.shape[0] - 1, *d.shape[1:]):
        raise ValueError(
            f"coupling must be diagonal {diagonal.shape} less one along axis {axis}, n >= 1: got {coupling.shape}"
        )
    if k.dtype not in (d.dtype, jnp.finfo(d.dtype).dtype):
        raise ValueError(
            f"coupling must have the dtype of diagonal {d.dtype} or its real one, got {k.dtype}"
        )
    return jnp.moveaxis(_moebius(d, k, scans), 0, axis)

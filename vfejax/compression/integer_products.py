"""Products of integers: activations and weights in eight bits, sums in 32."""

import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.compression.quantize import Quantized, Scheme, check_quantized
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["activation_codes", "int8_matmul"]

_TOP = 127


def activation_codes(x: Array, step: Array) -> Array:
    """``round(x / step)`` as int8, cut off at ``+-127``; 0 where the step is 0.

    Args:
        x: real floating.
        step: distance of two levels, not negative, to broadcast with ``x``: a limit of
            :mod:`vfejax.compression.calibrate` by 127.

    Returns:
        int8 of the shape of ``x``. There is no code for NaN, which becomes 0: its step should say
        it.

    >>> activation_codes(jnp.asarray([0.26, -9.0]), jnp.asarray(0.05)).tolist()
    [5, -127]
    """
    codes = jnp.clip(jnp.round(x / jnp.where(step == 0, jnp.ones_like(step), step)), -_TOP, _TOP)
    return jnp.where(jnp.isnan(codes), jnp.zeros_like(codes), codes).astype(jnp.int8)


def int8_matmul(
    x: Array, quantized: Quantized, scheme: Scheme, step: ArrayLike | None = None
) -> Array:
    """``x W ~ step scale_j sum_i code_i (code_ij - zero)``: a quantised kernel times activations in
    eight bits, the sum in int32, where it is exact.

    For kernels whose columns have one scale each. It does not pay at every size: a CPU gains from
    some hundreds of rows and columns on, and loses below.

    Steps of single channels do not leave the sum. Multiply the rows of W by them before it is
    quantised, and pass ``x / steps`` with a step of 1.

    Args:
        x: real floating ``[..., n]``, n up to ``2^17``.
        quantized: W, codes ``[n, m]`` and scales ``[1, m]``.
        scheme: its scheme, symmetric and of group 0.
        step: that of the codes of ``x``, to broadcast with ``[..., 1]``. None for the largest
            magnitude of each row by 127.

    Returns:
        ``[..., m]`` of the dtype of ``x``; NaN where a row holds a NaN or an infinity.

    Raises:
        ValueError: for another scheme, and when shapes do not fit.

    >>> from vfejax.compression.quantize import quantize
    >>> scheme = Scheme(bits=8, group=0)
    >>> kernel = quantize(jnp.asarray([[1.0, 0.5], [-1.0, 0.25]]), scheme)
    >>> [round(v, 2) for v in int8_matmul(jnp.asarray([1.0, 0.5]), kernel, scheme).tolist()]
    [0.5, 0.63]
    """
    if scheme.group or not scheme.symmetric:
        raise ValueError(f"scheme must be symmetric and of group 0, got {scheme}")
    check_quantized(quantized, scheme, -2)
    codes, scale, _ = quantized
    if codes.ndim != 2 or x.shape[-1:] != codes.shape[:1]:
        raise ValueError(f"x must be [..., n] to fit codes [n, m], got {x.shape} and {codes.shape}")
    dtype = x.dtype
    x = x.astype(at_least_float32(dtype))  # float16 does not hold the sums
    reach = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    step = reach / _TOP if step is None else jnp.asarray(step, x.dtype)
    # An infinity of codes is cut off, but its row is NaN.
    step = jnp.where(jnp.isfinite(reach), step, jnp.nan)
    weights = (codes.astype(jnp.int32) - 2 ** (scheme.bits - 1)).astype(jnp.int8)
    sums = jnp.matmul(activation_codes(x, step), weights, preferred_element_type=jnp.int32)
    columns = scale.reshape(*(1,) * (x.ndim - 1), -1).astype(x.dtype)
    return (sums.astype(x.dtype) * step * columns).astype(dtype)

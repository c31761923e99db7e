"""The causal recursions one site at a time: a model decodes in memory that does not grow with the
text.

The state of a chain is its last reciprocal pivot and its last output, 1 + c complex numbers. Steps
equal :func:`vfejax.spectral.resolvent.left_resolvent_diagonal` and
:func:`vfejax.spectral.tridiagonal.causal_sweep` up to rounding.
"""

from typing import NamedTuple

import jax.numpy as jnp

from vfejax.numerics import broadcast_named
from vfejax.spectral._arguments import check_arrays, complex_dtype
from vfejax.spectral._fraction import felt, pivot_reciprocal_in_unit
from vfejax.types import Array

__all__ = ["StreamingState", "streaming_init", "streaming_step"]


class StreamingState(NamedTuple):
    """What a chain remembers of the sites so far.

    Attributes:
        left: gL of the last site, complex ``[...]``. Where it has a pole, large, 2^40 (2^100 in
            double precision) over a power of two of the size of that site, so that the stream can
            go on; over 1 at a first site of 0, which has none.
        output: causal sweep y of the last site, complex ``[..., c]``.
    """

    left: Array
    output: Array


def streaming_init(
    batch_shape: tuple[int, ...], channels: int, dtype: jnp.dtype = jnp.complex64
) -> StreamingState:
    """State before the first site.

    Args:
        batch_shape: leading axes of the state.
        channels: c; 0 when only gL is wanted.
        dtype: complex64 or complex128.

    Returns:
        A state of zeros.

    Raises:
        ValueError: for another dtype.

    >>> streaming_init((2,), 3).output.shape
    (2, 3)
    """
    if jnp.dtype(dtype) not in (jnp.complex64, jnp.complex128):
        raise ValueError(f"dtype must be complex64 or complex128, got {jnp.dtype(dtype)}")
    return StreamingState(jnp.zeros(batch_shape, dtype), jnp.zeros((*batch_shape, channels), dtype))


def streaming_step(
    state: StreamingState,
    diagonal: Array | complex,
    superdiagonal: Array | complex,
    subdiagonal: Array | complex,
    z: Array | complex,
    x: Array,
) -> StreamingState:
    """Append site i: ``gL_i = 1 / (a_i - z - b_{i-1} c_{i-1} gL_{i-1})``, ``y_i = gL_i (x_i -
    c_{i-1} y_{i-1})``.

    Args:
        state: after site i - 1.
        diagonal: a_i, a number or ``[...]``.
        superdiagonal: b_{i-1}, which couples the new site to the last, ``[...]``; without effect at
            the first site.
        subdiagonal: c_{i-1}, likewise.
        z: spectral parameter, a number or ``[...]``.
        x: x_i, ``[..., c]``.

    Returns:
        The state after site i, in its shape and dtype. Leading axes of the arguments broadcast to
        the state's.

    Raises:
        ValueError: when shapes do not fit or precisions differ.

    >>> state = streaming_init((), 1)
    >>> for i in range(2):
    ...     state = streaming_step(state, 0.0, 1.0, 1.0, 1j, jnp.ones(1))
    >>> print(state.left, state.output)
    0.5j [0.5+0.5j]
    """
    batch, dtype = state.left.shape, state.left.dtype
    check_arrays(x=x)
    site = {
        "diagonal": diagonal,
        "superdiagonal": superdiagonal,
        "subdiagonal": subdiagonal,
        "z": z,
    }
    complex_dtype(state=state.left, x=x, **site)
    if x.shape[-1:] != state.output.shape[-1:]:
        raise ValueError(f"x must be [..., {state.output.shape[-1]}], got {x.shape}")
    shapes = {name: jnp.shape(value) for name, value in site.items()} | {"x": x.shape[:-1]}
    if broadcast_named(state=batch, **shapes) != batch:
        raise ValueError(f"leading axes must broadcast to the state's {batch}, got {shapes}")
    a, b, c, z = (jnp.broadcast_to(jnp.asarray(value, dtype), batch) for value in site.values())
    left = pivot_reciprocal_in_unit(a - z, felt((b, c), state.left))
    x = jnp.broadcast_to(x, state.output.shape).astype(dtype)
    return StreamingState(left, left[..., None] * (x - c[..., None] * state.output))

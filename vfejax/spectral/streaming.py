"""The causal recursions one site at a time: a model decodes in memory that does not grow with the
text.

The state of a chain is its last reciprocal pivot and its last output, 1 + c complex numbers. Steps
equal :func:`vfejax.spectral.resolvent.left_resolvent_diagonal` and
:func:`vfejax.spectral.tridiagonal.causal_sweep` up to rounding.
"""

from typing import NamedTuple

import jax.numpy as jnp

from vfejax.spectral.recurrence import reciprocal
from vfejax.spectral.resolvent import complex_dtype
from vfejax.types import Array

__all__ = ["StreamingState", "streaming_init", "streaming_step"]


class StreamingState(NamedTuple):
    """``left [...]``: gL of the last site; ``output [..., c]``: its causal sweep y. Both
    complex.
    """

    left: Array
    output: Array


def streaming_init(
    batch_shape: tuple[int, ...], channels: int, dtype: jnp.dtype = jnp.complex64
) -> StreamingState:
    """State before the first site; 0 channels when only gL is wanted."""
    return StreamingState(jnp.zeros(batch_shape, dtype), jnp.zeros((*batch_shape, channels), dtype))


def streaming_step(
    state: StreamingState,
    diagonal: Array,
    superdiagonal: Array,
    subdiagonal: Array,
    z: Array | complex,
    x: Array,
) -> StreamingState:
    """Append site i: ``gL_i = 1 / (a_i - z - b_{i-1} c_{i-1} gL_{i-1})``, ``y_i = gL_i (x_i -
    c_{i-1} y_{i-1})``.

    Args:
        state: after site i - 1.
        diagonal: a_i, ``[...]``.
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
    """
    batch, dtype = state.left.shape, state.left.dtype
    complex_dtype(
        state=state.left,
        diagonal=diagonal,
        superdiagonal=superdiagonal,
        subdiagonal=subdiagonal,
        z=z,
        x=x,
    )
    if x.shape[-1:] != state.output.shape[-1:]:
        raise ValueError(f"x must be [..., {state.output.shape[-1]}], got {x.shape}")
    a, b, c, z = (
        jnp.broadcast_to(jnp.asarray(value, dtype), batch)
        for value in (diagonal, superdiagonal, subdiagonal, z)
    )
    left = reciprocal(a - z - b * c * state.left)
    x = jnp.broadcast_to(x, state.output.shape).astype(dtype)
    return StreamingState(left, left[..., None] * (x - c[..., None] * state.output))

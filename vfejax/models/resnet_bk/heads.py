"""The inputs of the heads of a mixer, and their initial scales, which differ from head to head."""

import jax.numpy as jnp
from flax import nnx

from vfejax.models.blocks import normal
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["heads_first", "inverse_softplus", "levels", "spread"]


def levels(dim: int, heads: int, *, dtype: jnp.dtype, rngs: nnx.Rngs) -> nnx.Linear:
    """Token states ``[..., dim]`` to two real numbers for every head, ``[..., 2 heads]``.

    In float32, or float64 where that is the dtype of the model: a phase over many tokens has no
    room for half precision.

    Args:
        dim: width of the states.
        heads: number of heads.
        dtype: that of the model.
        rngs: where first weights come from.
    """
    real = at_least_float32(dtype)
    return nnx.Linear(
        dim, 2 * heads, kernel_init=normal(0.02), dtype=real, param_dtype=real, rngs=rngs
    )


def spread(heads: int, dtype: jnp.dtype) -> Array:
    """A place in [0, 1) for every head: evenly over all heads, neighbours far apart.

    >>> [round(place, 2) for place in spread(3, jnp.float32).tolist()]
    [0.0, 0.62, 0.24]
    """
    # The golden ratio's multiples modulo 1 are spread as evenly as any.
    return (jnp.arange(heads, dtype=dtype) * ((5.0**0.5 - 1.0) / 2.0)) % 1.0


def inverse_softplus(x: Array) -> Array:
    """The argument at which a softplus is ``x > 0``."""
    return jnp.log(jnp.expm1(x))


def heads_first(x: Array) -> Array:
    """``[b, n, heads, ...]`` to ``[b, heads, n, ...]``, and back."""
    return jnp.swapaxes(x, 1, 2)

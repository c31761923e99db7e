"""Attention through ``jax.nn.dot_product_attention``, where that computes the same numbers.

It does for attention without a distance bias that leaves no query without keys, in float32 and half
precision. Everything else is refused with the reason: its softmax is taken in float32 for float64
too, a query behind an empty mask gets the mean of all values in place of 0, and its causal mask
counts tokens and not places.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from vfejax.attention.pattern import Pattern
from vfejax.types import Array

__all__ = ["dot_product"]


def dot_product(
    query: Array,
    key: Array,
    value: Array,
    pattern: Pattern,
    *,
    implementation: Literal["xla", "cudnn"] | None = None,
) -> Array:
    """Softmax attention by JAX's own function, for patterns without bias, window and mask.

    Args:
        query: ``[b, g, m, c]``, float32, bfloat16 or float16. Compiled programs of JAX's function
            have no float16 on a CPU.
        key: ``[b, g, m, c]``.
        value: ``[b, g, m, c]``.
        pattern: who may attend to whom.
        implementation: who computes it: XLA, or cuDNN on a GPU, which takes half precision alone.
            By default JAX's choice.

    Returns:
        ``[b, g, m, c]``, in the dtype of the values.

    Raises:
        ValueError: for a pattern, a dtype or shapes that it does not compute exactly; the message
            says why, and what does.

    >>> from vfejax.attention.toroidal import axial_attention
    >>> query, key, value = jax.random.normal(jax.random.key(0), (3, 1, 6, 4, 2))
    >>> options = dict(depth=2, slope=None, circumference=6, causal=True)
    >>> expected = axial_attention(query, key, value, **options)
    >>> ours = axial_attention(query, key, value, **options, method=dot_product)
    >>> bool(jnp.allclose(ours, expected, atol=1e-6))
    True
    """
    reason = _inexact(query, key, value, pattern)
    if reason is not None:
        raise ValueError(
            f"dot_product computes this attention only approximately: {reason}; take the method "
            "dense or blockwise()"
        )
    heads_last = (jnp.moveaxis(x, 1, 2) for x in (query, key, value))
    answer = jax.nn.dot_product_attention(
        *heads_last, is_causal=pattern.causal, implementation=implementation
    )
    return jnp.moveaxis(answer, 2, 1)


def _inexact(query: Array, key: Array, value: Array, pattern: Pattern) -> str | None:
    """Why the numbers would differ from the definition, or None."""
    reasons = {
        "its softmax is taken in float32, got a query of float64": query.dtype == jnp.float64,
        "it has no distance bias, got a slope (None is the slope without one)": pattern.slope
        is not None,
        f"it has no window round the ring, got window {pattern.window}": pattern.window is not None,
        "a query that its mask leaves without keys gets the mean of all values and not 0, got a "
        "mask": pattern.mask is not None,
        "its causal mask counts tokens 0, 1, 2, ..., got positions": pattern.causal
        and not pattern.is_counted,
        f"its causal mask would hide later platters of one place, got depth {pattern.depth}": (
            pattern.causal and pattern.depth > 1
        ),
        f"keys and values must have one shape, got {key.shape} and {value.shape}": key.shape
        != value.shape,
    }
    return next((reason for reason, holds in reasons.items() if holds), None)

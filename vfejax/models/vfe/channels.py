"""Between the residual stream of a VFE transformer and the channels of its heads."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from vfejax.models.gpt_modern.block import EPSILON
from vfejax.models.vfe.config import VFEConfig
from vfejax.models.vfe.inference import Rule
from vfejax.numerics import at_least_float32
from vfejax.types import Array

__all__ = ["frame_of", "joined", "make_norm", "per_head", "split"]


def make_norm(config: VFEConfig, dtype: jnp.dtype, rngs: nnx.Rngs) -> Any:
    """The norm that the options ask for, a function of ``[..., dim]``; None for none.

    Args:
        config: the model's options.
        dtype: that of the stream.
        rngs: where first weights come from.
    """
    if config.norm == "none":
        return None
    return nnx.RMSNorm(
        config.dim,
        epsilon=EPSILON,
        dtype=dtype,
        param_dtype=at_least_float32(dtype),
        rngs=rngs,
    )


def split(x: Array, rule: Rule) -> Array:
    """A stream ``[..., dim]`` as channels ``[..., heads, K, copies]``, at least float32.

    >>> from vfejax.models.vfe.options import rule_of
    >>> rule = rule_of(VFEConfig(dim=32, heads=2, spins=(0, 1)))
    >>> split(jnp.ones((5, 32)), rule).shape, per_head(jnp.ones((5, 6)), rule).shape
    ((5, 2, 4, 4), (5, 2, 3))
    """
    layout = rule.layout
    shape = (layout.heads, layout.components, layout.copies)
    return x.astype(at_least_float32(x.dtype)).reshape(*x.shape[:-1], *shape)


def joined(x: Array, dtype: jnp.dtype) -> Array:
    """The inverse of :func:`split`, in the dtype of the stream."""
    return x.reshape(*x.shape[:-3], -1).astype(dtype)


def per_head(x: Array, rule: Rule) -> Array:
    """``[..., heads m]`` as ``[..., heads, m]``, at least float32."""
    wide = x.astype(at_least_float32(x.dtype))
    return wide.reshape(*x.shape[:-1], rule.layout.heads, -1)


def frame_of(phi: Array, rule: Rule) -> Array:
    """``exp(phi . J)`` of each head, ``[..., heads a]`` to ``[..., heads, K, K]``."""
    group = rule.layout.group
    return group.exponential(per_head(phi, rule), group.generators)

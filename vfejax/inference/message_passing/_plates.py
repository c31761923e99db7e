"""Members of plates and their weights: a member of weight 0 does not count, whatever its value."""

import jax.numpy as jnp

from vfejax.beliefs.exponential_families import Statistics
from vfejax.numerics import expand_leading
from vfejax.types import Array

__all__ = ["present", "weighted_sum"]


def present(statistics: Statistics, weights: Array, plates: int) -> Statistics:
    """Statistics whose members of weight 0 are 0, whatever they were.

    Args:
        statistics: ``[*plates, *event]``.
        weights: broadcastable to plates.
        plates: number of their axes.

    >>> present((jnp.array([jnp.nan, 2.0]),), jnp.array([0.0, 3.0]), 1)[0].tolist()
    [0.0, 2.0]
    """
    absent = expand_leading(jnp.asarray(weights) == 0, plates)

    def kept(t: Array) -> Array:
        mask = jnp.reshape(absent, (*absent.shape, *(1,) * (t.ndim - plates)))
        return jnp.where(mask, 0.0, t)

    return tuple(kept(t) for t in statistics)


def weighted_sum(terms: Array, weights: Array | None, plates: tuple[int, ...]) -> Array:
    """``sum_n w_n terms_n`` over plates; a term of weight 0 does not count, whatever it is.

    Args:
        terms: broadcastable to ``plates``.
        weights: broadcastable to ``plates``; None for 1.
        plates: the full shape.

    >>> float(weighted_sum(jnp.array([jnp.nan, 2.0]), jnp.array([0.0, 3.0]), (2,)))
    6.0
    """
    full = jnp.broadcast_to(expand_leading(terms, len(plates)), plates)
    if weights is None:
        return jnp.sum(full)
    weights = jnp.broadcast_to(expand_leading(weights, len(plates)), plates)
    return jnp.sum(jnp.where(weights == 0, 0.0, weights * full))

"""The family of covariances that are constant on irreps: one variance for each copy of each irrep.

Every rotation keeps it, so a transported belief is of the family again. A spread is the log
variances, ``[..., heads, irreps, copies]``. Against senders of this family ``<P, S + m m^T>`` needs
no more of a receiver than the trace of each block,

    <P, S + m m^T> = sum_r (tr_r S + |m_r|^2) / s_r,

and ``tr_r(V S V^T) = sum_q |V_rq|^2 s_q`` with a link.
"""

import jax.numpy as jnp

from vfejax.models.vfe.beliefs import (
    Belief,
    Family,
    Transport,
    content,
    flat,
    linked,
    offset,
    row,
    total,
)
from vfejax.models.vfe.irreps import Layout, over_irreps, turn_back, widen
from vfejax.numerics import expand_leading
from vfejax.types import Array, PyTree

__all__ = ["CONSTANT", "added"]


def _sizes(layout: Layout, like: Array) -> Array:
    """Components of each irrep, against ``[..., irreps, copies]``."""
    sizes = jnp.asarray(layout.sizes, like.dtype)[:, None]
    return expand_leading(sizes, like.ndim - 2, core=2)


def _spread(raw: Array, layout: Layout) -> Array:
    return raw.reshape(*raw.shape[:-1], len(layout.sizes), layout.copies)


def _divergence(q: Belief, p: Belief, layout: Layout) -> Array:
    change = q.spread - p.spread
    # In the difference itself: at q = p the gradient is exactly 0.
    of_spread = _sizes(layout, change) * (jnp.expm1(change) - change)
    square = over_irreps((q.mean - p.mean) ** 2, layout.sizes) * jnp.exp(-p.spread)
    return 0.5 * total(of_spread + square)


def _receivers(q: Belief, transport: Transport, layout: Layout) -> Array:
    mean = linked(content(q), transport.link)
    sizes, variance = _sizes(layout, q.spread), jnp.exp(q.spread)
    if transport.link is None:
        trace = sizes * variance
    else:
        trace = linked(variance, _link_traces(transport.link, layout))
    moment = over_irreps(mean * mean, layout.sizes) + trace
    own = offset(total(sizes * q.spread), transport, layout)
    return row(moment, turn_back(mean, layout, transport.turn), jnp.ones_like(own), own)


def _link_traces(link: Array, layout: Layout) -> Array:
    """``|V_rq|^2`` of all pairs of irreps, ``[heads, irreps copies, irreps copies]``."""
    heads, components, copies = layout.rates.shape
    square = (link * link).reshape(heads, -1, components, copies)
    by_column = flat(over_irreps(square, layout.sizes))
    num = by_column.shape[-1]
    rows = over_irreps(by_column.reshape(heads, components, copies * num), layout.sizes)
    return rows.reshape(heads, num, num)


def _senders(q: Belief, transport: Transport, layout: Layout) -> Array:
    mean = turn_back(content(q), layout, transport.turn)
    precision = jnp.exp(-q.spread)
    square = over_irreps(mean * mean, layout.sizes) * precision
    constant = 0.5 * total(square + _sizes(layout, q.spread) * q.spread)
    pulled = -widen(precision, layout.sizes) * mean
    return row(0.5 * precision, pulled, constant, jnp.ones_like(constant))


def _times(spread: Array, x: Array, layout: Layout) -> Array:
    return widen(jnp.exp(spread), layout.sizes) * x


def _natural(spread: Array, gradient: Array, layout: Layout) -> Array:
    return 2.0 / _sizes(layout, gradient) * gradient


def added(spread: Array, direction: Array, longest: float, layout: Layout) -> Array:
    """Log variances after a step: a straight line, which is the geodesic.

    Args:
        spread: log variances.
        direction: their change.
        longest, layout: not read.

    >>> from vfejax.models.vfe.irreps import so3
    >>> added(jnp.zeros(2), jnp.ones(2), 1.0, so3((0,), heads=1, copies=2)).tolist()
    [1.0, 1.0]
    """
    return spread + direction


def _square(spread: Array, change: Array, direction: PyTree, layout: Layout) -> Array:
    square = total(over_irreps(change * change, layout.sizes) * jnp.exp(-spread))
    if direction is None:
        return square
    return square + 0.5 * total(_sizes(layout, direction) * direction**2)


CONSTANT = Family(
    num_raw=lambda layout: len(layout.sizes) * layout.copies,
    spread=_spread,
    raw=lambda log_variances, layout: log_variances.ravel(),
    divergence=_divergence,
    receivers=_receivers,
    senders=_senders,
    times=_times,
    natural=_natural,
    moved=added,
    square=_square,
)
"""One variance for each copy of each irrep."""

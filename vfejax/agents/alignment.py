"""Alignment energies: what an agent pays for its divergences from its neighbours.

An alignment energy maps the divergences of one receiver (or many) to one energy per receiver.
Divergences come, and energies go, in units of the temperature tau: both energies below are
homogeneous, ``E(KL, tau) = tau E(KL / tau, 1)``, so tau enters once, outside. They are written with
the three reductions of a :class:`Neighbourhood`, hence serve dense rows and edge lists alike.
"""

from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from vfejax.types import Array

__all__ = ["AlignmentFn", "Neighbourhood", "attention", "entropic", "rows", "segments", "weighted"]


class Neighbourhood(NamedTuple):
    """How to reduce over the neighbours of each receiver, and to spread a receiver's number back
    over them.
    """

    sum: Callable[[Array], Array]
    max: Callable[[Array], Array]
    spread: Callable[[Array], Array]


class AlignmentFn(Protocol):
    """``(divergence / tau, log weight, neighbourhood) -> energy / tau`` with one energy per
    receiver.
    """

    def __call__(self, divergence: Array, log_weight: Array, over: Neighbourhood, /) -> Array: ...


def rows() -> Neighbourhood:
    """Dense layout: ``[receivers, senders]``, neighbours along the last axis."""
    return Neighbourhood(
        sum=lambda x: jnp.sum(x, axis=-1),
        max=lambda x: jnp.max(x, axis=-1),
        spread=lambda x: x[..., None],
    )


def segments(receivers: Array, num_receivers: int) -> Neighbourhood:
    """Sparse layout: one number per edge, neighbours of i are the edges with ``receivers == i``."""
    return Neighbourhood(
        sum=lambda x: jax.ops.segment_sum(x, receivers, num_receivers),
        max=lambda x: jax.ops.segment_max(x, receivers, num_receivers),
        spread=lambda x: x[receivers],
    )


def _unnormalised(
    divergence: Array, log_weight: Array, over: Neighbourhood
) -> tuple[Array, Array, Array]:
    """Shifted Boltzmann factors, their sum (1 where there is no neighbour) and the shift (0
    there).
    """
    logits = log_weight - divergence
    top = over.max(jax.lax.stop_gradient(logits))
    top = jnp.where(jnp.isfinite(top), top, 0.0)
    factors = jnp.exp(logits - over.spread(top))
    total = over.sum(factors)
    return factors, jnp.where(total > 0, total, 1.0), top


def attention(divergence: Array, log_weight: Array, over: Neighbourhood) -> Array:
    """Attention ``beta_ij = w_j exp(-KL_ij / tau) / sum_l w_l exp(-KL_il / tau)``; all 0 for an
    agent without neighbours.
    """
    factors, total, _ = _unnormalised(divergence, log_weight, over)
    return factors / over.spread(total)


def weighted(divergence: Array, log_weight: Array, over: Neighbourhood) -> Array:
    """Attention-weighted divergence ``sum_j beta_ij KL_ij``, differentiated through beta.

    Its slope is ``beta_ij (1 - (KL_ij - <KL>_i) / tau)``: pairs far above the mean repel. An agent
    without neighbours pays 0.
    """
    factors, total, _ = _unnormalised(divergence, log_weight, over)
    return over.sum(factors * divergence) / total


def entropic(divergence: Array, log_weight: Array, over: Neighbourhood) -> Array:
    """Soft minimum ``-tau log sum_j w_j exp(-KL_ij / tau) / sum_j w_j = sum beta KL + tau KL(beta
    || w)``.

    By the envelope theorem its slope is exactly ``beta_ij``: only attraction. An agent without
    neighbours pays 0.
    """
    _, total, top = _unnormalised(divergence, log_weight, over)
    mass = over.sum(jnp.exp(log_weight))
    return jnp.log(jnp.where(mass > 0, mass, 1.0)) - jnp.log(total) - top

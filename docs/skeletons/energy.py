"""Skeleton of an alignment energy: every neighbour counts alike, without attention."""

import jax.numpy as jnp

from vfejax.agents.alignment import Neighbourhood
from vfejax.types import Array


def uniform(divergence: Array, log_weight: Array, over: Neighbourhood) -> Array:
    """Mean divergence ``sum_j w_j KL_ij / sum_j w_j`` of the neighbours present.

    Its gradient in ``KL_ij`` is the same for all neighbours.

    Args:
        divergence: ``KL_ij / tau``, one number per pair.
        log_weight: ``log w_j``, the logarithm of how far the neighbour is present. A pair that does
            not count, such as an agent with itself, arrives as ``-inf``.
        over: how to sum over the neighbours of each agent.

    Returns:
        Energy of each agent in units of tau; 0 for an agent without neighbours.
    """
    weight = jnp.exp(log_weight)
    # Not `weight * divergence` alone: a pair that does not count may have an infinite divergence.
    paid = jnp.where(weight <= 0, 0.0, weight * divergence)
    total = over.sum(weight)
    return over.sum(paid) / jnp.where(total <= 0, 1.0, total)

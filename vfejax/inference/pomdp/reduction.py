"""Bayesian model reduction: the evidence of simpler models, from the counts of a full one.

A column has prior counts a and, after the data, posterior counts b. Under another prior a' of the
same likelihood the posterior is ``b + a' - a``, and its evidence differs by

    log p(data | a') - log p(data | a) = ln B(b + a' - a) - ln B(a') + ln B(a) - ln B(b)

with B the multivariate beta function, so that the data need not be seen again. A model grows the
other way: a state more is worth having when the evidence of the data with it is larger.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
from jax.scipy.special import gammaln

from vfejax.types import Array

__all__ = ["Reduction", "log_beta", "prune", "reduced_evidence"]


def log_beta(counts: Array) -> Array:
    """``ln B(a) = sum ln Gamma(a_k) - ln Gamma(sum a_k)`` over the first axis; zeros do not count.

    >>> round(float(log_beta(jnp.array([2.0, 1.0]))), 4)  # log(1 / 2)
    -0.6931
    """
    possible = counts != 0
    parts = jnp.where(possible, gammaln(jnp.where(possible, counts, 1.0)), 0.0)
    return jnp.sum(parts, axis=0) - gammaln(jnp.sum(counts, axis=0))


def reduced_evidence(prior: Array, posterior: Array, reduced: Array) -> Array:
    """``log p(data | reduced) - log p(data | prior)`` of each column, in nats.

    Args:
        prior: counts before the data, ``[k, ...]``.
        posterior: counts after it.
        reduced: counts of another prior; an entry of 0 cannot happen.

    Returns:
        ``[...]``; -inf where the reduced model excludes what was counted.

    Source: Friston, Parr and Zeidman, Bayesian model reduction (2018), for Dirichlet beliefs.

    >>> round(float(reduced_evidence(jnp.ones(2), jnp.array([6.0, 1.0]), jnp.array([1.0, 0.0]))), 4)
    1.7918
    """
    after = posterior + reduced - prior
    excluded = (reduced == 0) & (posterior > prior)
    after = jnp.where(reduced == 0, 0.0, after)
    value = log_beta(after) - log_beta(reduced) + log_beta(prior) - log_beta(posterior)
    return jnp.where(jnp.any(excluded, axis=0), -jnp.inf, value)


class Reduction(NamedTuple):
    """What a reduction did.

    Attributes:
        prior: counts of the chosen priors.
        posterior: counts after the data under them.
        gain: how much the log evidence of each column rose, ``[...]``, at least 0.
    """

    prior: Array
    posterior: Array
    gain: Array


def prune(prior: Array, posterior: Array, candidates: Sequence[Array]) -> Reduction:
    """Take for each column the prior with the largest evidence, the full one included.

    Args:
        prior: counts before the data, ``[k, ...]``.
        posterior: counts after it.
        candidates: priors of simpler models, each of the same shape.

    Returns:
        The chosen priors and their posteriors; a gain that is NaN stays.

    Raises:
        ValueError: when there are no candidates or shapes differ.

    >>> flat = jnp.ones((2, 2))
    >>> only = [jnp.array([[1.0, 1.0], [0.0, 0.0]]), jnp.array([[0.0, 0.0], [1.0, 1.0]])]
    >>> prune(flat, jnp.array([[6.0, 3.0], [1.0, 3.0]]), only).prior.tolist()
    [[1.0, 1.0], [0.0, 1.0]]
    """
    if not candidates:
        raise ValueError("candidates must have at least one prior")
    for i, candidate in enumerate(candidates):
        if candidate.shape != prior.shape:
            raise ValueError(
                f"candidates[{i}] must have shape {list(prior.shape)}, got {list(candidate.shape)}"
            )
    chosen, best = prior, jnp.zeros(prior.shape[1:], prior.dtype)
    for candidate in candidates:
        gain = reduced_evidence(prior, posterior, candidate)
        better = (gain > best) | jnp.isnan(gain)
        chosen = jnp.where(jnp.broadcast_to(better, prior.shape), candidate, chosen)
        best = jnp.where(better, gain, best)
    after = jnp.where(chosen == 0, 0.0, posterior + chosen - prior)
    return Reduction(chosen, after, best)

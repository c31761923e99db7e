"""Parameters of hidden Markov chains from observations, by expectation maximisation.

A step is ``maximize_hidden_markov(model, expect_hidden_markov(...))``, in closed form. Expected
counts of several series add up, and the log evidence of all of them never falls.

Source: Rabiner (1989).
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference.chains.hidden_markov import (
    HiddenMarkov,
    HiddenMarkovSmoothed,
    two_slice_sum,
)
from vfejax.types import Array

__all__ = ["HiddenMarkovStatistics", "expect_hidden_markov", "maximize_hidden_markov"]


class HiddenMarkovStatistics(NamedTuple):
    """Expected counts of a hidden Markov chain; those of several series add up leaf by leaf:
    of first states ``[k]``, transitions ``[k, k]``, discrete observations ``[o, k]``, and the log
    evidence.
    """

    initial: Array
    transition: Array
    emission: Array
    log_evidence: Array


def expect_hidden_markov(
    model: HiddenMarkov,
    smoothed: HiddenMarkovSmoothed,
    observations: Array,
    mask: Array | None = None,
) -> HiddenMarkovStatistics:
    """Expected counts of one series of discrete observations.

    Args:
        model: the one that was smoothed.
        smoothed: what :func:`vfejax.inference.chains.hidden_markov.hidden_markov_smoother`
            returned.
        observations: integers ``[t]``.
        mask: booleans ``[t]``, True where there is an observation.

    Returns:
        The counts.

    >>> from vfejax.inference.chains.hidden_markov import hidden_markov_smoother
    >>> model = HiddenMarkov(jnp.ones(1), jnp.eye(1), jnp.ones((2, 1)) / 2)
    >>> smoothed = hidden_markov_smoother(model, jnp.zeros((3, 1)))
    >>> expect_hidden_markov(model, smoothed, jnp.array([0, 1, 1])).emission.tolist()
    [[1.0], [2.0]]
    """
    if model.emission is None:
        raise ValueError("expect_hidden_markov needs a model with an emission; it has None")
    weights = smoothed.probabilities
    if mask is not None:
        weights = jnp.where(jnp.broadcast_to(mask[:, None], weights.shape), weights, 0.0)
        observations = jnp.where(mask, observations, 0)
    counts = jax.ops.segment_sum(weights, observations, model.emission.shape[0])
    return HiddenMarkovStatistics(
        smoothed.probabilities[0], two_slice_sum(model, smoothed), counts, smoothed.log_evidence
    )


def maximize_hidden_markov(model: HiddenMarkov, statistics: HiddenMarkovStatistics) -> HiddenMarkov:
    """The model under which these counts are most probable. A state that was never left, or never
    seen, gives a column of NaN: add prior counts to the statistics to avoid it.

    Args:
        model: a transition that changes with time is known, and stays.
        statistics: of :func:`expect_hidden_markov`, of one series or summed over several.

    >>> model = HiddenMarkov(jnp.ones(1), jnp.eye(1), jnp.ones((2, 1)) / 2)
    >>> counts = HiddenMarkovStatistics(jnp.ones(1), jnp.full((1, 1), 3.0), jnp.ones((2, 1)), 0.0)
    >>> maximize_hidden_markov(model, counts).emission.tolist()
    [[0.5], [0.5]]
    """
    learned = HiddenMarkov(*(x / jnp.sum(x, axis=0, keepdims=True) for x in statistics[:3]))
    varies = jnp.ndim(model.transition) == 3
    return learned._replace(transition=model.transition) if varies else learned

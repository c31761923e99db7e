"""The belief about where to look, from scores of patches.

It maximises, over probabilities pi of patches with prior p,

    ELBO(pi) = E_pi[score] - T KL(pi || p),    so pi = p exp(score / T) / Z,  max = T log Z.

Scores are natural parameters of pi over the prior's. Iterations that move the parameters a part of
the way, ``theta <- theta + rate (theta* - theta)``, raise the ELBO each time: what is missing,
``T KL(pi || pi*)``, falls along a straight line of natural parameters.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference.allocation import messages as of_patches
from vfejax.inference.allocation.messages import Messages
from vfejax.numerics import as_floating, cast_like
from vfejax.types import Array

__all__ = ["Combined", "combine", "elbo", "iterate", "optimum", "posterior"]


def posterior(
    score: Array, temperature: Array | float = 1.0, log_prior: Array | None = None
) -> Array:
    """``log pi`` of the belief ``pi = p exp(score / T) / Z`` that maximises the ELBO.

    Args:
        score: ``[p]``, in nats.
        temperature: T, positive: small ones look at few patches.
        log_prior: log p, ``[p]``, -inf for patches that do not count; None for an even one.

    Returns:
        ``[p]``, whose exponentials sum to 1.

    Raises:
        ValueError: when the shapes differ, or there is no patch.

    >>> jnp.exp(posterior(jnp.log(jnp.array([1.0, 3.0])))).tolist()
    [0.25, 0.75]
    """
    score, prior = _both(score, log_prior)
    return jax.nn.log_softmax(score / cast_like(temperature, score) + prior)


def elbo(
    log_pi: Array,
    score: Array,
    temperature: Array | float = 1.0,
    log_prior: Array | None = None,
) -> Array:
    """``E_pi[score] - T KL(pi || p)``, a scalar in nats; -inf where pi looks and p does not.

    Args:
        log_pi: log probabilities, ``[p]``.
        score: ``[p]``, in nats.
        temperature: T, positive.
        log_prior: log p, ``[p]``; None for an even one.

    Raises:
        ValueError: when the shapes differ, or there is no patch.

    >>> even = jnp.log(jnp.array([0.5, 0.5]))
    >>> round(float(elbo(even, jnp.array([1.0, 3.0]))), 4)
    2.0
    """
    score, prior = _both(score, log_prior)
    if log_pi.shape != score.shape:
        raise ValueError(f"log_pi must have shape {list(score.shape)}, got {list(log_pi.shape)}")
    pi = jnp.exp(log_pi)
    nowhere = pi == 0
    gap = jnp.where(nowhere, 0.0, log_pi) - jnp.where(nowhere, 0.0, prior)
    return jnp.sum(jnp.where(nowhere, 0.0 * score, pi * score)) - cast_like(
        temperature, score
    ) * jnp.sum(pi * gap)


def optimum(
    score: Array, temperature: Array | float = 1.0, log_prior: Array | None = None
) -> Array:
    """``T log sum p exp(score / T)``: the ELBO of the posterior, which no belief exceeds.

    Args:
        score: ``[p]``, in nats.
        temperature: T, positive.
        log_prior: log p, ``[p]``; None for an even one.

    Returns:
        A scalar in nats.

    Raises:
        ValueError: when the shapes differ, or there is no patch.

    >>> round(float(optimum(jnp.array([2.0, 2.0]))), 4)
    2.0
    """
    score, prior = _both(score, log_prior)
    temperature = cast_like(temperature, score)
    return temperature * jax.nn.logsumexp(prior + score / temperature)


def iterate(
    added: Array, score: Array, temperature: Array | float = 1.0, rate: Array | float = 0.5
) -> Array:
    """One iteration on what messages add to the log prior: ``added + rate (score / T - added)``.

    Args:
        added: natural parameters so far, ``[p]``, from 0 on.
        score: ``[p]``, in nats.
        temperature: T, positive.
        rate: above 0 and at most 1; not checked when it is traced.

    Returns:
        ``[p]``; ``log_softmax(log_prior + added)`` is the belief.

    Raises:
        ValueError: when the rate is out of its limits.

    >>> iterate(jnp.zeros(2), jnp.array([1.0, 2.0])).tolist()
    [0.5, 1.0]
    """
    if not isinstance(rate, jax.core.Tracer) and not 0 < rate <= 1:
        raise ValueError(f"rate must be above 0 and at most 1, got {rate}")
    return added + cast_like(rate, score) * (score / cast_like(temperature, score) - added)


class Combined(NamedTuple):
    """Beliefs after iterations of message combination.

    Attributes:
        log_pi: ``[p]``.
        elbo: before each iteration and after the last, ``[iterations + 1]``, in nats; never falls.
        optimum: ``T log sum p exp(score / T)``, which no belief exceeds.
    """

    log_pi: Array
    elbo: Array
    optimum: Array


def combine(
    messages: Messages,
    weights: Array,
    *,
    temperature: Array | float = 1.0,
    log_prior: Array | None = None,
    rate: Array | float = 0.5,
    num_iterations: int = 8,
) -> Combined:
    """Iterations of message combination from the prior: each adds a part of what is missing.

    Args:
        messages: the messages, ``[p]`` each.
        weights: one for each message, ``[3]``.
        temperature: T, positive.
        log_prior: log p, ``[p]``; None for an even one.
        rate: the part, above 0 and at most 1, where one iteration is enough; not checked when it is
            traced.
        num_iterations: how many.

    Raises:
        ValueError: when shapes do not fit, or the rate is out of its limits.

    >>> found = combine(Messages(*(jnp.arange(3.0) for _ in range(3))), jnp.ones(3))
    >>> bool(jnp.all(jnp.diff(found.elbo) >= 0)), bool(found.elbo[-1] <= found.optimum)
    (True, True)
    """
    value, prior = _both(of_patches.score(messages, weights), log_prior)
    temperature = cast_like(temperature, value)

    def bound(added: Array) -> Array:
        return elbo(jax.nn.log_softmax(prior + added), value, temperature, prior)

    def move(added: Array, _: None) -> tuple[Array, Array]:
        after = iterate(added, value, temperature, rate)
        return after, bound(after)

    start = jnp.zeros_like(value)
    added, later = jax.lax.scan(move, start, None, length=num_iterations)
    every = jnp.concatenate([bound(start)[None], later])
    best = optimum(value, temperature, prior)
    return Combined(jax.nn.log_softmax(prior + added), every, best)


def _both(score: Array, log_prior: Array | None) -> tuple[Array, Array]:
    """Score and normalised log prior."""
    score = as_floating(score, "score")
    if score.ndim != 1 or score.size == 0:
        raise ValueError(f"score must have shape [p], not empty, got {list(score.shape)}")
    prior = jnp.zeros_like(score) if log_prior is None else cast_like(log_prior, score)
    if prior.shape != score.shape:
        raise ValueError(f"log_prior must have shape {list(score.shape)}, got {list(prior.shape)}")
    return score, jax.nn.log_softmax(prior)

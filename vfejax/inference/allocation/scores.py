"""Scores of patches: messages that add as natural parameters, and the beliefs that they make.

Three messages say how much a patch deserves to be read, all in nats:

- *propositional*: the entropy of its texture, what there is to tell;
- *perspectival*: precision times salience, how surely it stands out from its surroundings;
- *participatory*: the information about what was asked, a mutual information.

A score is their weighted sum. The belief pi about where to look is what maximises

    ELBO(pi) = E_pi[score] - T KL(pi || p),    so pi = p exp(score / T) / Z,  max = T log Z.

A message is a natural parameter of pi, and messages add. Iterations that move the parameters a part
of the way, ``theta <- theta + rate (theta* - theta)``, raise the ELBO each time: what is missing is
``T KL(pi || pi*)``, which falls along a straight line of natural parameters. An image's scores
depend on that image alone: nothing is normalised over a batch.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.numerics import as_floating, cast_like
from vfejax.types import Array

__all__ = [
    "Combined",
    "Messages",
    "combine",
    "elbo",
    "iterate",
    "messages",
    "perspectival",
    "posterior",
    "score",
]

# CIELAB distance: contrasts below it drown in the noise of colours.
_NOISE = 10.0


class Messages(NamedTuple):
    """What speaks for each patch, ``[p]`` each, in nats: see the module."""

    propositional: Array
    perspectival: Array
    participatory: Array


def _neighbours(x: Array) -> tuple[Array, np.ndarray]:
    """Sums over the up to eight neighbours of ``[r, c, k]``, and how many there are, ``[r, c,
    1]``.
    """
    rows, columns = x.shape[:2]

    def around(y: Array) -> Array:
        wide = jnp.pad(y, ((1, 1), (1, 1), (0, 0)))
        three = wide[:-2] + wide[1:-1] + wide[2:]
        return three[:, :-2] + three[:, 1:-1] + three[:, 2:] - y

    down = np.minimum(np.arange(rows), 1) + np.minimum(np.arange(rows)[::-1], 1) + 1
    across = np.minimum(np.arange(columns), 1) + np.minimum(np.arange(columns)[::-1], 1) + 1
    return around(x), (np.outer(down, across) - 1)[..., None]


def perspectival(textures: Array) -> Array:
    """Precision times salience of each patch.

    Salience is what a Gaussian channel with noise of 10 CIELAB units tells about the contrast d of
    a patch with the mean colour of its neighbours, ``1/2 log(1 + d^2 / 10^2)`` nats. The precision
    of that mean, ``1 / (1 + v / 10^2)`` in units of the noise's, falls with the variance v of the
    neighbours: among clutter nothing stands out.

    Args:
        textures: of :func:`vfejax.inference.allocation.textures.patch_textures`, ``[r, c, 13]``.

    Returns:
        ``[r, c]`` in nats; 0 for a patch without neighbours.

    Raises:
        ValueError: for another shape.

    >>> textures = jnp.zeros((3, 3, 13)).at[1, 1, 3].set(50.0)  # one light patch
    >>> perspectival(textures).argmax().item()
    4
    """
    textures = _textures(textures)
    colour = textures[..., 3:6]
    sums, count = _neighbours(colour)
    mean = sums / jnp.asarray(np.maximum(count, 1), colour.dtype)
    squares, _ = _neighbours(colour * colour)
    # Rounding may leave less than nothing of a variance.
    spread = squares / jnp.asarray(np.maximum(count, 1), colour.dtype) - mean * mean
    variance = jnp.sum(jnp.where(spread < 0, 0.0, spread), axis=-1)
    contrast = jnp.sum((colour - mean) ** 2, axis=-1)
    salience = 0.5 * jnp.log1p(contrast / _NOISE**2)
    alone = jnp.asarray(count[..., 0] == 0)
    return jnp.where(alone, 0.0 * salience, salience / (1 + variance / _NOISE**2))


def messages(textures: Array, information: Array | None = None) -> Messages:
    """The three messages of the patches of a picture, in rows.

    Args:
        textures: of :func:`vfejax.inference.allocation.textures.patch_textures`, ``[r, c, 13]``.
        information: about what was asked, ``[r, c]`` in nats, as of
            :mod:`vfejax.inference.allocation.queries`; None when nothing was asked.

    Returns:
        ``[r c]`` each.

    Raises:
        ValueError: when the shapes do not fit.

    >>> messages(jnp.zeros((2, 3, 13))).propositional.shape
    (6,)
    """
    textures = _textures(textures)
    told = jnp.zeros_like(textures[..., 0]) if information is None else information
    if told.shape != textures.shape[:2]:
        raise ValueError(
            f"information must have shape {list(textures.shape[:2])}, got {list(told.shape)}"
        )
    found = (textures[..., 12], perspectival(textures), told)
    return Messages(*(x.reshape(-1) for x in found))


def score(messages: Messages, weights: Array) -> Array:
    """The weighted sum of the messages, ``[p]`` in nats.

    Args:
        messages: the messages, ``[p]`` each.
        weights: one for each message, ``[3]``; what is learned.

    Raises:
        ValueError: for another number of weights.

    >>> score(Messages(jnp.ones(1), jnp.zeros(1), jnp.ones(1)), jnp.array([1.0, 5.0, 2.0])).tolist()
    [3.0]
    """
    if weights.shape != (3,):
        raise ValueError(f"weights must have shape [3], got {list(weights.shape)}")
    return sum(
        (cast_like(w, x) * x for w, x in zip(weights, messages, strict=True)),
        jnp.zeros_like(messages.propositional),
    )


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


def iterate(
    added: Array, score: Array, temperature: Array | float = 1.0, rate: float = 0.5
) -> Array:
    """One iteration on what messages add to the log prior: ``added + rate (score / T - added)``.

    Args:
        added: natural parameters so far, ``[p]``, from 0 on.
        score: ``[p]``, in nats.
        temperature: T, positive.
        rate: above 0 and at most 1.

    Returns:
        ``[p]``; ``log_softmax(log_prior + added)`` is the belief.

    Raises:
        ValueError: when the rate is out of its limits.

    >>> iterate(jnp.zeros(2), jnp.array([1.0, 2.0])).tolist()
    [0.5, 1.0]
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must be above 0 and at most 1, got {rate}")
    return added + rate * (score / cast_like(temperature, score) - added)


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
    rate: float = 0.5,
    num_iterations: int = 8,
) -> Combined:
    """Iterations of message combination from the prior: each adds a part of what is missing.

    Args:
        messages: the messages, ``[p]`` each.
        weights: one for each message, ``[3]``.
        temperature: T, positive.
        log_prior: log p, ``[p]``; None for an even one.
        rate: the part, above 0 and at most 1, where one iteration is enough.
        num_iterations: how many.

    Raises:
        ValueError: when shapes do not fit, or the rate is out of its limits.

    >>> found = combine(Messages(*(jnp.arange(3.0) for _ in range(3))), jnp.ones(3))
    >>> bool(jnp.all(jnp.diff(found.elbo) >= 0)), bool(found.elbo[-1] <= found.optimum)
    (True, True)
    """
    value, prior = _both(score(messages, weights), log_prior)
    temperature = cast_like(temperature, value)

    def bound(added: Array) -> Array:
        return elbo(jax.nn.log_softmax(prior + added), value, temperature, prior)

    def move(added: Array, _: None) -> tuple[Array, Array]:
        after = iterate(added, value, temperature, rate)
        return after, bound(after)

    start = jnp.zeros_like(value)
    added, later = jax.lax.scan(move, start, None, length=num_iterations)
    optimum = temperature * jax.nn.logsumexp(prior + value / temperature)
    every = jnp.concatenate([bound(start)[None], later])
    return Combined(jax.nn.log_softmax(prior + added), every, optimum)


def _textures(textures: Array) -> Array:
    textures = as_floating(textures, "textures")
    if textures.ndim != 3 or textures.shape[-1] != 13 or 0 in textures.shape:
        raise ValueError(f"textures must have shape [r, c, 13], got {list(textures.shape)}")
    return textures


def _both(score: Array, log_prior: Array | None) -> tuple[Array, Array]:
    """Score and normalised log prior."""
    score = as_floating(score, "score")
    if score.ndim != 1 or score.size == 0:
        raise ValueError(f"score must have shape [p], not empty, got {list(score.shape)}")
    prior = jnp.zeros_like(score) if log_prior is None else cast_like(log_prior, score)
    if prior.shape != score.shape:
        raise ValueError(f"log_prior must have shape {list(score.shape)}, got {list(prior.shape)}")
    return score, jax.nn.log_softmax(prior)

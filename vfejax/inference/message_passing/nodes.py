"""Conjugate nodes: the conditional distributions that models are declared from.

Every function returns a :class:`~vfejax.inference.message_passing.graph.Node`. A parent is the name
of a node or a constant; plates are leading axes, and those of a parent broadcast to those of its
children from the right, as NumPy broadcasts.
"""

import math

import jax.numpy as jnp
import numpy as np

from vfejax.beliefs.exponential_families import Family, Natural, Statistics
from vfejax.beliefs.families import (
    BERNOULLI,
    BETA,
    CATEGORICAL,
    DIRICHLET,
    GAMMA,
    GAUSSIAN,
    MULTIVARIATE_GAUSSIAN,
    POISSON,
    WISHART,
)
from vfejax.beliefs.families import multinomial as multinomial_family
from vfejax.beliefs.supports import POSITIVE, POSITIVE_DEFINITE, Support, above, nan_outside
from vfejax.inference.message_passing.graph import Node, Parent
from vfejax.numerics import expand_leading, matvec
from vfejax.types import Array

__all__ = [
    "bernoulli",
    "beta",
    "categorical",
    "dirichlet",
    "gamma",
    "gaussian",
    "multinomial",
    "multivariate_gaussian",
    "poisson",
    "relevance",
    "wishart",
]

LOG_2_PI = math.log(2 * math.pi)
Message = tuple[Natural, Array]


def _broadcast(*arrays: Array) -> tuple[Array, ...]:
    """Arrays of one rank, whose axes broadcast from the right."""
    rank = max(x.ndim for x in arrays)
    return tuple(expand_leading(x, rank) for x in arrays)


def gaussian(mean: Parent, precision: Parent, plates: tuple[int, ...] | None = None) -> Node:
    """Real numbers ``x ~ N(mean, 1 / precision)``.

    Args:
        mean: a Gaussian node or numbers.
        precision: a gamma node or positive numbers.
        plates: leading shape.

    >>> gaussian("mean", 2.0).family.name
    'gaussian'
    """

    def natural(mean: Statistics, precision: Statistics) -> Message:
        first, second, log, value = _broadcast(*mean, *precision)
        normaliser = 0.5 * (value * second - log + LOG_2_PI)
        return (value * first, -0.5 * value), normaliser

    slots = (("mean", (GAUSSIAN,)), ("precision", (GAMMA,)))
    return Node(GAUSSIAN, (mean, precision), slots, natural, plates)


def multivariate_gaussian(
    mean: Parent, precision: Parent, plates: tuple[int, ...] | None = None
) -> Node:
    """Vectors ``x ~ N(mean, precision^{-1})``.

    Args:
        mean: a multivariate Gaussian node or vectors ``[..., k]``.
        precision: a Wishart node or matrices ``[..., k, k]``.
        plates: leading shape.

    >>> multivariate_gaussian(jnp.zeros(2), jnp.eye(2), plates=(10,)).plates
    (10,)
    """

    def natural(mean: Statistics, precision: Statistics) -> Message:
        (first, second), (log_det, value) = mean, precision
        plates = max(first.ndim - 1, value.ndim - 2)
        first, second = expand_leading(first, plates, 1), expand_leading(second, plates, 2)
        log_det, value = expand_leading(log_det, plates), expand_leading(value, plates, 2)
        square = jnp.sum(value * second, axis=(-2, -1))
        normaliser = 0.5 * (square - log_det + first.shape[-1] * LOG_2_PI)
        return (matvec(value, first), -0.5 * value), normaliser

    slots = (("mean", (MULTIVARIATE_GAUSSIAN,)), ("precision", (WISHART,)))
    return Node(MULTIVARIATE_GAUSSIAN, (mean, precision), slots, natural, plates)


def relevance(precisions: Parent, plates: tuple[int, ...] | None = None) -> Node:
    """Vectors ``x ~ N(0, diag(precisions)^{-1})``: automatic relevance determination.

    Args:
        precisions: a gamma node with plates ``[..., k]``, or positive numbers; the last axis is
            that of the vectors.
        plates: leading shape.

    >>> relevance("alpha", plates=(20,)).family.name
    'multivariate gaussian'
    """

    def natural(precisions: Statistics) -> Message:
        log, value = precisions
        eye = jnp.eye(value.shape[-1], dtype=value.dtype)
        matrix = value[..., None] * expand_leading(eye, value.ndim - 1, 2)
        normaliser = 0.5 * jnp.sum(LOG_2_PI - log, axis=-1)
        return (jnp.zeros_like(value), -0.5 * matrix), normaliser

    slots = (("precisions", (GAMMA,)),)
    return Node(MULTIVARIATE_GAUSSIAN, (precisions,), slots, natural, plates)


def _constant(
    family: Family, plates: tuple[int, ...] | None, **standard: tuple[Parent, Support]
) -> Node:
    """A node with constant parameters, each with its support."""
    parents = tuple(value for value, _ in standard.values())
    if any(isinstance(parameter, str) for parameter in parents):
        raise ValueError(f"the parameters of a {family.name} node are constants, got {parents}")

    def natural(*parents: Statistics) -> Message:
        plates = max(x.ndim - rank for (x,), rank in zip(parents, family.ranks, strict=True))
        eta = family.natural(
            *(
                expand_leading(x, plates, rank)
                for (x,), rank in zip(parents, family.ranks, strict=True)
            )
        )
        return eta, family.log_partition(eta)

    slots = tuple((name, (_value(support),)) for name, (_, support) in standard.items())
    return Node(family, parents, slots, natural, plates)


def _value(support: Support) -> Family:
    """Constants as they are."""
    return Family(
        "constant",
        (0,),
        lambda x: (nan_outside(x, support),),
        lambda natural: natural[0],
        lambda natural: natural,
        lambda x: (x,),
        lambda natural: natural,
        support=support,
    )


def gamma(shape: Parent, rate: Parent, plates: tuple[int, ...] | None = None) -> Node:
    """Positive numbers with constant ``shape`` and ``rate``.

    Args:
        shape: positive numbers.
        rate: positive numbers.
        plates: leading shape.

    >>> gamma(1e-3, 1e-3, plates=(5,)).family.name
    'gamma'
    """
    return _constant(GAMMA, plates, shape=(shape, POSITIVE), rate=(rate, POSITIVE))


def wishart(dof: Parent, rate: Parent, plates: tuple[int, ...] | None = None) -> Node:
    """Positive definite matrices with mean ``dof rate^{-1}``.

    Args:
        dof: degrees of freedom, above k - 1.
        rate: ``[..., k, k]``, the inverse of the scale matrix.
        plates: leading shape.

    >>> wishart(2.0, jnp.eye(2)).family.name
    'wishart'
    """
    enough = above(np.shape(rate)[-1] - 1) if np.ndim(rate) else POSITIVE
    return _constant(WISHART, plates, dof=(dof, enough), rate=(rate, POSITIVE_DEFINITE))


def dirichlet(concentration: Parent, plates: tuple[int, ...] | None = None) -> Node:
    """Probabilities with constant ``concentration [..., k]``.

    >>> dirichlet(jnp.ones(3)).family.name
    'dirichlet'
    """
    return _constant(DIRICHLET, plates, concentration=(concentration, POSITIVE))


def beta(a: Parent, b: Parent, plates: tuple[int, ...] | None = None) -> Node:
    """Probabilities of success with constant ``a`` and ``b``.

    Args:
        a: positive numbers: one more than the successes seen before.
        b: positive numbers, likewise for failures.
        plates: leading shape.

    >>> beta(1.0, 1.0).family.name
    'beta'
    """
    return _constant(BETA, plates, a=(a, POSITIVE), b=(b, POSITIVE))


def categorical(probabilities: Parent, plates: tuple[int, ...] | None = None) -> Node:
    """States ``x ~ probabilities [..., k]``; observed ones are one-hot rows.

    Args:
        probabilities: a Dirichlet node or rows that sum to 1.
        plates: leading shape.

    >>> categorical("weights", plates=(100,)).family.name
    'categorical'
    """
    slots = (("probabilities", (DIRICHLET,)),)
    return Node(CATEGORICAL, (probabilities,), slots, _given_logs, plates)


def _given_logs(logs: Statistics) -> Message:
    return (logs[0],), jnp.zeros_like(logs[0][..., 0])


def multinomial(
    num_trials: float, probabilities: Parent, plates: tuple[int, ...] | None = None
) -> Node:
    """Counts ``[..., k]`` of ``num_trials`` draws, observed.

    Args:
        num_trials: how many.
        probabilities: a Dirichlet node or rows that sum to 1.
        plates: leading shape.

    >>> multinomial(4.0, "weights").family.name
    'multinomial'
    """
    slots = (("probabilities", (DIRICHLET,)),)
    family = multinomial_family(num_trials)
    return Node(family, (probabilities,), slots, _given_logs, plates)


def bernoulli(probability: Parent, plates: tuple[int, ...] | None = None) -> Node:
    """0 or 1 with a ``probability`` of 1.

    Args:
        probability: a beta node or numbers between 0 and 1.
        plates: leading shape.

    >>> bernoulli("rate", plates=(50,)).family.name
    'bernoulli'
    """

    def natural(probability: Statistics) -> Message:
        return (probability[0] - probability[1],), -probability[1]

    return Node(BERNOULLI, (probability,), (("probability", (BETA,)),), natural, plates)


def poisson(rate: Parent, plates: tuple[int, ...] | None = None) -> Node:
    """Counts with expectation ``rate``, observed.

    Args:
        rate: a gamma node or positive numbers.
        plates: leading shape.

    >>> poisson("rate", plates=(50,)).family.name
    'poisson'
    """

    def natural(rate: Statistics) -> Message:
        return (rate[0],), rate[1]

    return Node(POISSON, (rate,), (("rate", (GAMMA,)),), natural, plates)

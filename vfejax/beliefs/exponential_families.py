"""Exponential families in natural parameters: ``log p(x) = <eta, t(x)> - A(eta) + log h(x)``.

A family is a record of pure functions. Natural parameters eta and sufficient statistics t are
tuples of arrays of the same shapes: leading axes (the plates of a model) and the axes of one event.
Independent evidence about x adds in eta. The expected statistics are the gradient of the log
partition function A; :func:`entropy` and :func:`kl_divergence` follow from both:

    H = A(eta) - <eta, m> - E log h,      KL(q || p) = <eta_q - eta_p, m_q> - A(eta_q) + A(eta_p).

The families themselves are in :mod:`vfejax.beliefs.families`.

Source: Wainwright and Jordan, Foundations and Trends in Machine Learning 1 (2008) 1, chapter 3.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.beliefs.supports import Support
from vfejax.numerics import expand_leading
from vfejax.types import Array

__all__ = ["Family", "Natural", "Statistics", "entropy", "inner", "kl_divergence", "moments"]

Natural = tuple[Array, ...]
Statistics = tuple[Array, ...]


class Family(NamedTuple):
    """An exponential family as pure functions.

    Attributes:
        name: what errors call it.
        ranks: number of axes of one event in each natural parameter.
        statistics: ``statistics(x) -> t(x)``.
        log_partition: ``log_partition(eta) -> A(eta)``, ``[...]``.
        mean: ``mean(eta) -> E t(x)``, the gradient of A, in closed form.
        natural: ``natural(*standard) -> eta``.
        standard: ``standard(eta) -> standard``, its inverse.
        log_base: ``log_base(x) -> log h(x)``, ``[...]``; None where h is 1.
        both: ``both(eta) -> (E t(x), A(eta))`` where the two share work; None where they do not.
        support: which values there can be; None where all are.
    """

    name: str
    ranks: tuple[int, ...]
    statistics: Callable[[Array], Statistics]
    log_partition: Callable[[Natural], Array]
    mean: Callable[[Natural], Statistics]
    natural: Callable[..., Natural]
    standard: Callable[[Natural], tuple[Array, ...]]
    log_base: Callable[[Array], Array] | None = None
    both: Callable[[Natural], tuple[Statistics, Array]] | None = None
    support: Support | None = None


def inner(family: Family, natural: Natural, statistics: Statistics) -> Array:
    """``<eta, t>``, summed over the axes of an event; plates broadcast from the right.

    A statistic of 0 times an infinite parameter is 0, as for a state of probability 0.

    Args:
        family: the family of both.
        natural: eta, arrays ``[..., *event]``.
        statistics: t, or its expectation.

    Returns:
        ``[...]``.

    >>> from vfejax.beliefs.families import GAUSSIAN
    >>> eta = GAUSSIAN.natural(jnp.ones(3), jnp.ones(3))
    >>> inner(GAUSSIAN, eta, GAUSSIAN.statistics(jnp.ones(3))).tolist()
    [0.5, 0.5, 0.5]
    """
    plates = max(
        x.ndim - rank
        for rank, pair in zip(family.ranks, zip(natural, statistics, strict=True), strict=True)
        for x in pair
    )
    terms = [
        jnp.sum(
            _times(expand_leading(eta, plates, rank), expand_leading(t, plates, rank)),
            axis=tuple(range(-rank, 0)),
        )
        for rank, eta, t in zip(family.ranks, natural, statistics, strict=True)
    ]
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


@jax.custom_jvp
def _times(eta: Array, t: Array) -> Array:
    return jnp.where((t == 0) & jnp.isinf(eta), 0.0, eta * t)


@_times.defjvp
def _times_jvp(primals: tuple[Array, Array], tangents: tuple[Array, Array]) -> tuple[Array, Array]:
    # The slope in t is eta also where that is infinite: it is what a message says of the state.
    (eta, t), (eta_change, t_change) = primals, tangents
    return _times(eta, t), eta * t_change + t * eta_change


def moments(family: Family, natural: Natural) -> tuple[Statistics, Array]:
    """Expected statistics and log partition function, with the work that they share done once.

    >>> from vfejax.beliefs.families import GAUSSIAN
    >>> (first, second), log_partition = moments(GAUSSIAN, (jnp.array(0.0), jnp.array(-0.5)))
    >>> float(second), round(float(log_partition), 4)
    (1.0, 0.9189)
    """
    if family.both is not None:
        return family.both(natural)
    return family.mean(natural), family.log_partition(natural)


def entropy(family: Family, natural: Natural) -> Array:
    """``H = A(eta) - <eta, E t(x)>``, in nats, ``[...]``, of a family whose base measure is 1.

    Raises:
        ValueError: for a family with another base measure, whose entropy has no closed form.

    >>> from vfejax.beliefs.families import GAUSSIAN
    >>> round(float(entropy(GAUSSIAN, GAUSSIAN.natural(jnp.array(0.0), jnp.array(1.0)))), 4)
    1.4189
    """
    if family.log_base is not None:
        raise ValueError(f"the entropy of the {family.name} family has no closed form")
    return family.log_partition(natural) - inner(family, natural, family.mean(natural))


def kl_divergence(family: Family, q: Natural, p: Natural) -> Array:
    """``KL(q || p)`` of two members of a family, in nats, ``[...]``.

    Args:
        family: the family of both.
        q: natural parameters.
        p: natural parameters of the same shapes.

    Returns:
        ``[...]``, at least 0 up to rounding.

    >>> from vfejax.beliefs.families import GAUSSIAN
    >>> q, p = (GAUSSIAN.natural(jnp.array(m), jnp.array(1.0)) for m in (1.0, 0.0))
    >>> float(kl_divergence(GAUSSIAN, q, p))
    0.5
    """
    difference = tuple(map(_difference, q, p))
    divergence = inner(family, difference, family.mean(q))
    return divergence - family.log_partition(q) + family.log_partition(p)


def _difference(x: Array, y: Array) -> Array:
    """``x - y``; 0 where both are the same infinity, of a state that neither thinks possible."""
    same = jnp.isinf(x) & (x == y)
    return jnp.where(same, 0.0, x - jnp.where(same, 0.0, y))

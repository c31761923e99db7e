"""Alignment energies: functions of the divergences of an agent from its neighbours.

An alignment energy maps the divergences of one receiver (or many) to one energy per receiver.
Divergences come, and energies go, in units of the temperature tau: the energies below are
homogeneous, ``E(KL, tau) = tau E(KL / tau, 1)``, so tau enters once, outside. They are written with
the three reductions of a :class:`Neighbourhood`, hence serve dense rows and edge lists alike.

``ALIGNMENTS`` is the table of energies that commands and tests read. A new energy is one function
that keeps to the contract of :class:`AlignmentFn`, and one line in the table.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.attention.softmax import (
    Reduction,
    exponentials,
    log_sum_exp,
    over_axis,
    over_segments,
)
from vfejax.types import Array

__all__ = [
    "ALIGNMENTS",
    "AlignmentFn",
    "Neighbourhood",
    "Summary",
    "attention",
    "check_temperatures",
    "entropic",
    "of_summary",
    "rows",
    "saturating",
    "segments",
    "weighted",
]

SATURATION = 20.0  # in units of tau

# The neighbours of a receiver are the entries of a row.
Neighbourhood = Reduction
"""How to reduce over the neighbours of each agent; :func:`rows` and :func:`segments` make one."""


def check_temperatures(**temperatures: Array | float | None) -> None:
    """Refuse a temperature of 0 or less by its name. One that is traced is not known, and NaN stays
    NaN.

    >>> check_temperatures(temperature=1.0, prior_temperature=None)
    """
    for name, tau in temperatures.items():
        known = tau is not None and not isinstance(tau, jax.core.Tracer)
        if known and np.any(np.asarray(tau) <= 0):
            raise ValueError(f"{name} must be above 0, in nats, got {tau}")


class AlignmentFn(Protocol):
    """``(divergence / tau, log weight, neighbourhood) -> energy / tau``, one energy per receiver.

    The contract:

    - ``divergence`` and ``log_weight`` have one entry per pair, ``[receivers, senders]`` for all
      pairs and ``[edges]`` for a neighbour list. ``over`` reduces over the senders of each
      receiver: ``over.sum``, ``over.max``, and ``over.spread`` back to the pairs. Do not reduce by
      axis.
    - A pair that does not count arrives with ``log_weight = -inf`` and divergence 0. Each agent's
      pair with itself is one of them. So weigh every pair by ``exp(log_weight)``: a mean that
      divides by the length of a row counts the agent itself.
    - A receiver all of whose pairs have ``-inf`` has no neighbours. It pays 0, with zero gradient.
    - Receivers are independent: an energy depends on its own row alone.

    An energy of one's own, the mean divergence of the neighbours present:

    >>> def mean_divergence(divergence, log_weight, over):
    ...     weight = jnp.exp(log_weight)
    ...     total = over.sum(weight)
    ...     return over.sum(weight * divergence) / jnp.where(total == 0, 1.0, total)
    >>> divergence = jnp.array([[0.0, 2.0, 4.0], [2.0, 0.0, 6.0], [4.0, 6.0, 0.0]])
    >>> log_weight = jnp.where(jnp.eye(3, dtype=bool), -jnp.inf, 0.0)
    >>> mean_divergence(divergence, log_weight, rows())
    Array([3., 4., 5.], dtype=float32)
    """

    def __call__(self, divergence: Array, log_weight: Array, over: Neighbourhood, /) -> Array:
        """Energies of the receivers.

        Args:
            divergence: of each pair in units of tau, ``[receivers, senders]`` or ``[edges]``; 0
                where the pair does not count.
            log_weight: log of each pair's weight, of the same shape; -inf where the pair does not
                count.
            over: how to reduce over the senders of each receiver.

        Returns:
            ``[receivers]``, in units of tau.
        """
        ...


def rows() -> Neighbourhood:
    """All pairs: ``[receivers, senders]``, neighbours along the last axis.

    >>> rows().sum(jnp.ones((2, 3)))
    Array([3., 3.], dtype=float32)
    """
    return over_axis(-1)


def segments(receivers: Array, num_receivers: int) -> Neighbourhood:
    """Neighbour list: one number per edge, neighbours of i are the edges with ``receivers == i``.

    >>> segments(jnp.array([0, 0, 2]), 3).sum(jnp.ones(3))
    Array([2., 0., 1.], dtype=float32)
    """
    return over_segments(receivers, num_receivers)


def attention(divergence: Array, log_weight: Array, over: Neighbourhood) -> Array:
    """Attention ``beta_ij = w_j exp(-KL_ij / tau) / sum_l w_l exp(-KL_il / tau)``.

    Args:
        divergence: ``KL_ij / tau``, one number per pair.
        log_weight: ``log w_j`` with the same shape; ``-inf`` where a pair does not count.
        over: the neighbours of each receiver, :func:`rows` or :func:`segments`.

    Returns:
        One number per pair; a receiver's sum to 1, or are all 0 without neighbours.

    >>> attention(jnp.array([[0.0, 0.0, 0.0]]), jnp.array([[-jnp.inf, 0.0, 0.0]]), rows())
    Array([[0. , 0.5, 0.5]], dtype=float32)
    """
    # Emptiness is read off the weights, so that a receiver whose divergences have all overflowed is
    # NaN and not an agent without neighbours.
    empty = over.max(jax.lax.stop_gradient(log_weight)) == -jnp.inf
    factors, total, _ = exponentials(log_weight - divergence, over, empty)
    return factors / over.spread(total)


def weighted(divergence: Array, log_weight: Array, over: Neighbourhood) -> Array:
    """Attention-weighted divergence ``sum_j beta_ij KL_ij``, differentiated through beta.

    Its slope is ``beta_ij (1 - (KL_ij - <KL>_i) / tau)``: pairs far above the mean repel. An agent
    without neighbours pays 0.

    Args:
        divergence: ``KL_ij / tau``, one number per pair.
        log_weight: ``log w_j`` with the same shape; ``-inf`` where a pair does not count.
        over: the neighbours of each receiver, :func:`rows` or :func:`segments`.

    Returns:
        One energy per receiver, in units of tau.

    >>> weighted(jnp.array([[0.0, 2.0, 2.0]]), jnp.array([[-jnp.inf, 0.0, 0.0]]), rows())
    Array([2.], dtype=float32)
    """
    factors, total, _ = exponentials(log_weight - divergence, over)
    return over.sum(factors * divergence) / total


def entropic(divergence: Array, log_weight: Array, over: Neighbourhood) -> Array:
    """Soft minimum ``-tau log (sum_j w_j exp(-KL_ij / tau) / sum_j w_j)``, which is ``sum beta KL +
    tau KL(beta || w)``.

    By the envelope theorem its slope is exactly ``beta_ij``: only attraction. An agent without
    neighbours pays 0.

    Args:
        divergence: ``KL_ij / tau``, one number per pair.
        log_weight: ``log w_j`` with the same shape; ``-inf`` where a pair does not count.
        over: the neighbours of each receiver, :func:`rows` or :func:`segments`.

    Returns:
        One energy per receiver, in units of tau; infinite where all its divergences are.

    >>> entropic(jnp.array([[0.0, 2.0, 2.0]]), jnp.array([[-jnp.inf, 0.0, 0.0]]), rows())
    Array([2.], dtype=float32)
    """
    mass = log_sum_exp(log_weight, over)
    energy = mass - log_sum_exp(log_weight - divergence, over)
    return jnp.where(mass == -jnp.inf, 0.0, energy)


def saturating(
    divergence: Array,
    log_weight: Array,
    over: Neighbourhood,
    limit: float | Array = SATURATION,
) -> Array:
    """Soft minimum that nobody can pull far: attention that may also listen to nobody.

        E = -log ((1 - epsilon) exp(-S) + epsilon),    epsilon = exp(-limit),

    with the :func:`entropic` energy S of the neighbours. Listening to nobody costs nothing and has
    the share epsilon of the weight, so E is the least of ``sum_j b_j KL_ij / tau + KL(b || ((1 -
    epsilon) w, epsilon))`` over all attention b to the neighbours and to nobody. By the envelope
    theorem its slope is the part of that attention that a neighbour gets,

        dE / dKL_ij = beta_ij (1 - epsilon) exp(-S) / ((1 - epsilon) exp(-S) + epsilon),

    with the attention beta_ij among neighbours: only attraction, and almost none to neighbours that
    are further away than the limit. E rises with S, from 0 at S = 0 to the limit. With an infinite
    limit it is S. An agent without neighbours pays 0.

    Args:
        divergence: ``KL_ij / tau``, one number per pair.
        log_weight: ``log w_j`` with the same shape; ``-inf`` where a pair does not count.
        over: the neighbours of each receiver, :func:`rows` or :func:`segments`.
        limit: the most that an agent pays, in units of tau, positive. For another than the default
            pass ``functools.partial(saturating, limit=...)`` as the alignment energy.

    Returns:
        One energy per receiver, in units of tau; the limit where all its divergences are infinite.

    >>> log_weight = jnp.array([[-jnp.inf, 0.0, 0.0]])
    >>> for far in (2.0, 50.0):
    ...     divergence = jnp.array([[0.0, far, far]])
    ...     float(saturating(divergence, log_weight, rows(), limit=10.0).round(3)[0])
    2.0
    10.0
    """
    energy = _saturated(entropic(divergence, log_weight, over), limit)
    # Without neighbours this is 0 up to rounding; it has to be 0.
    return jnp.where(over.max(jax.lax.stop_gradient(log_weight)) == -jnp.inf, 0.0, energy)


def _saturated(soft_minimum: Array, limit: float | Array) -> Array:
    limit = jnp.asarray(limit, soft_minimum.dtype)
    somebody = jnp.log1p(-jnp.exp(-limit)) - soft_minimum
    return -jnp.logaddexp(somebody, -limit)


class Summary(NamedTuple):
    """What the energies of the table depend on: numbers of a receiver's row that can be joined from
    parts of it.

    Attributes:
        mass: ``log sum_j w_j``; ``-inf`` without neighbours.
        free: ``log sum_j w_j exp(-KL_ij / tau)``.
        mean: attention-weighted divergence ``sum_j beta_ij KL_ij / tau``.
    """

    mass: Array
    free: Array
    mean: Array


def of_summary(alignment_fn: AlignmentFn) -> Callable[[Summary], Array]:
    """An alignment energy as a function of the summary of a row, for rows that are on many devices.

    Args:
        alignment_fn: :func:`weighted`, :func:`entropic` or :func:`saturating`, or a
            ``functools.partial`` of the last with another limit.

    Returns:
        ``summary -> energy`` of the receivers, in units of tau; 0 without neighbours.

    Raises:
        ValueError: for another energy.

    >>> two_neighbours = Summary(mass=jnp.log(2.0), free=jnp.log(2.0) - 3.0, mean=jnp.array(3.0))
    >>> float(of_summary(entropic)(two_neighbours))
    3.0
    """
    plain: Any = alignment_fn
    options: dict[str, Any] = {}
    if isinstance(alignment_fn, partial) and not alignment_fn.args:
        plain, options = alignment_fn.func, alignment_fn.keywords
    if plain not in _OF_SUMMARY:
        known = ", ".join(fn.__name__ for fn in _OF_SUMMARY)
        raise ValueError(
            f"alignment_fn must be one of {known} where rows are on many devices, got "
            f"{getattr(plain, '__name__', plain)}"
        )

    def energies(summary: Summary) -> Array:
        alone = summary.mass == -jnp.inf
        counted = jax.tree.map(lambda x: jnp.where(alone, 0.0, x), summary)
        return jnp.where(alone, 0.0, _OF_SUMMARY[plain](counted, **options))

    return energies


_OF_SUMMARY: dict[Callable, Callable[..., Array]] = {
    weighted: lambda s: s.mean,
    entropic: lambda s: s.mass - s.free,
    saturating: lambda s, limit=SATURATION: _saturated(s.mass - s.free, limit),
}

ALIGNMENTS: dict[str, AlignmentFn] = {
    "weighted": weighted,
    "entropic": entropic,
    "saturating": saturating,
}
"""The energies by the names that commands give them."""

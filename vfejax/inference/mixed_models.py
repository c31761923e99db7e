"""Discrete states above continuous ones: outcomes of a discrete model as values of continuous
causes.

An outcome o of a discrete model says where the causes of a continuous one are, ``v = v_o`` with
the precision of their prior. Downwards goes the expected value, ``eta = sum_o p(o) v_o``. Upwards
goes the evidence of each outcome, by Bayesian model reduction: a belief ``N(mu, C)`` that was found
under ``N(eta, P^-1)`` says without a new inference how much better or worse ``N(v_o, P^-1)``
explains the same data,

    L_o = g . (mu - eta) + g . C g / 2 - d . P d / 2,    d = v_o - eta,    g = P d      [nats],

exactly for linear models. The evidence of an interval is the sum over its independent observations.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from vfejax.inference.generalized_filtering import Path
from vfejax.numerics import cast_like, matmul_nt, matvec
from vfejax.types import Array

__all__ = [
    "CauseBelief",
    "cause_belief",
    "expected_causes",
    "outcome_weights",
    "reduced_log_evidence",
]


class CauseBelief(NamedTuple):
    """``mean [m]`` and ``cov [m, m]`` of the causes of the highest level."""

    mean: Array
    cov: Array


def cause_belief(path: Path, covariance: Array) -> CauseBelief:
    """The belief about the values of the causes of the highest level.

    Args:
        path: the mode.
        covariance: of the flat path, ``[n, n]``, as of a filter's info.

    Raises:
        ValueError: when causes have more than two derivatives, for values and derivatives are not
            independent under their prior then.

    >>> path = Path((jnp.zeros((2, 1)),), (jnp.array([[3.0]]),))
    >>> cause_belief(path, jnp.diag(jnp.array([1.0, 1.0, 0.5]))).cov.tolist()
    [[0.5]]
    """
    values = path.causes[-1]
    order, num = values.shape
    if order > 2:
        raise ValueError(f"causes must have at most 2 derivatives, got {order}")
    begin = covariance.shape[0] - values.size
    here = slice(begin, begin + num)
    return CauseBelief(values[0], covariance[here, here])


def _check_tables(values: Sequence[Array]) -> None:
    for m, table in enumerate(values):
        if table.ndim != 2:
            raise ValueError(f"values[{m}] must be [o, c], got shape {list(table.shape)}")


def expected_causes(outcomes: Sequence[Array], values: Sequence[Array]) -> Array:
    """``sum_o p(o) v_o`` for each modality, one after the other: the prior of the causes.

    Args:
        outcomes: probabilities ``[o_m]`` for each modality.
        values: ``[o_m, c_m]`` for each modality: where its outcomes say that its causes are.

    Returns:
        ``[sum_m c_m]``.

    Raises:
        ValueError: when there is not one table of values per modality, or shapes do not fit.

    >>> expected_causes([jnp.array([0.25, 0.75])], [jnp.array([[0.0], [4.0]])]).tolist()
    [3.0]
    """
    if len(outcomes) != len(values):
        raise ValueError(
            f"values must have {len(outcomes)} tables, one per modality, got {len(values)}"
        )
    _check_tables(values)
    for m, (p, v) in enumerate(zip(outcomes, values, strict=True)):
        if p.shape != v.shape[:1]:
            raise ValueError(f"outcomes[{m}] must be [{len(v)}], got shape {list(p.shape)}")
    means = [matvec(v.T, p.astype(v.dtype)) for p, v in zip(outcomes, values, strict=True)]
    return jnp.concatenate(means)


def reduced_log_evidence(
    belief: CauseBelief, prior_mean: Array, prior_precision: Array, values: Sequence[Array]
) -> tuple[Array, ...]:
    """Log evidence of each outcome of each modality, relative to that of the prior that the belief
    was found under.

    Args:
        belief: about the causes, ``[c]``.
        prior_mean: eta, ``[c]``.
        prior_precision: P, ``[c, c]``, without coupling between modalities.
        values: ``[o_m, c_m]`` for each modality; its causes come in this order.

    Returns:
        ``[o_m]`` for each modality, in nats.

    Raises:
        ValueError: when the values do not have one column for each cause.

    Source: Friston and Penny, Post hoc Bayesian model selection, NeuroImage 56 (2011) 2089; as the
    link of discrete and continuous models, Friston, Parr and de Vries, The graphical brain, Network
    Neuroscience 1 (2017) 381.

    >>> belief = CauseBelief(jnp.array([1.0]), jnp.array([[0.5]]))  # one observation of 2
    >>> found = reduced_log_evidence(belief, jnp.zeros(1), jnp.eye(1), [jnp.array([[0.0], [2.0]])])
    >>> found[0].tolist()  # (2^2 - 0^2) / (2 * 2)
    [0.0, 1.0]
    """
    _check_tables(values)
    num = prior_mean.shape[0]
    columns = sum(v.shape[1] for v in values)
    if columns != num:
        raise ValueError(f"values must have {num} columns, one for each cause, got {columns}")
    off, found, start = belief.mean - prior_mean, [], 0
    for table in values:
        here = slice(start, start + table.shape[1])
        start = here.stop
        distance = table - prior_mean[None, here]
        force = matmul_nt(distance, prior_precision[here, here])
        curved = jnp.sum(force * (matmul_nt(force, belief.cov[here, here]) - distance), axis=-1)
        found.append(matvec(force, off[here]) + 0.5 * curved)
    return tuple(found)


def outcome_weights(
    log_evidence: Sequence[Array], dt: float, smoothness: ArrayLike
) -> tuple[Array, ...]:
    """What an interval says of the outcomes: their likelihoods, normalised to sum to 1, as
    :func:`vfejax.inference.pomdp.states.infer_states` takes them for observations.

    Noise with autocorrelation ``exp(-h^2 / 4 s^2)`` is worth one independent observation per ``2
    sqrt(pi) s`` of time, and one per sample where samples are farther apart.

    Args:
        log_evidence: ``[t, o_m]`` for each modality, in nats, every ``dt``.
        dt: time between them.
        smoothness: s, in units of time.

    Returns:
        ``[o_m]`` for each modality.

    >>> weights = outcome_weights([jnp.array([[0.0, 1.0]])], 1.0, 0.0)
    >>> [round(float(w), 4) for w in weights[0]]
    [0.2689, 0.7311]
    """

    def weigh(each: Array) -> Array:
        correlation = 2.0 * math.sqrt(math.pi) * cast_like(smoothness, each)
        interval = cast_like(dt, each)
        return jax.nn.softmax(jnp.sum(each, axis=0) * interval / jnp.maximum(correlation, interval))

    return tuple(map(weigh, log_evidence))

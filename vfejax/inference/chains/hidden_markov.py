"""Hidden Markov chains: filter, smoother, pairs and the most probable path, exactly.

Columns of a transition matrix sum to 1: ``transition[j, i] = p(s' = j | s = i)``. The recursions
run on normalised probabilities. Where one of their normalisers leaves the safe range, all of it is
computed once more from logarithms, so that an improbable past is neither lost nor called
impossible.

An observation that no possible state explains is *impossible*: the log evidence is then -inf, the
beliefs go on as if it had been missing, and the info says at which time it came.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.inference._logarithms import safe_log
from vfejax.inference.chains._arguments import check_columns, checked
from vfejax.inference.chains._discrete import PLATFORM, DiscretePasses, log_filter
from vfejax.inference.chains._underflow import negligible
from vfejax.numerics import as_floating, matmul_tn
from vfejax.types import Array

__all__ = [
    "HiddenMarkov",
    "HiddenMarkovFiltered",
    "HiddenMarkovInfo",
    "HiddenMarkovPath",
    "HiddenMarkovSmoothed",
    "check_model",
    "hidden_markov_filter",
    "hidden_markov_smoother",
    "log_likelihoods",
    "two_slice_marginals",
    "two_slice_sum",
    "viterbi",
]


class HiddenMarkov(NamedTuple):
    """A hidden Markov model.

    Attributes:
        initial: probabilities of the first state, ``[k]``.
        transition: ``[k, k]``, columns sum to 1; or ``[t - 1, k, k]`` where entry i leads from i to
            i + 1.
        emission: probabilities of discrete observations, ``[o, k]``, columns sum to 1; None for a
            model whose log likelihoods come from elsewhere.

    >>> model = HiddenMarkov(jnp.array([0.5, 0.5]), jnp.eye(2), jnp.eye(2))
    """

    initial: Array
    transition: Array
    emission: Array | None = None


class HiddenMarkovInfo(NamedTuple):
    """Which observations no possible state explains.

    Attributes:
        impossible: booleans ``[t]``.
        first_impossible: the time of the first one, -1 where there is none.
    """

    impossible: Array
    first_impossible: Array


class HiddenMarkovFiltered(NamedTuple):
    """Probabilities of each state given the observations up to it.

    Attributes:
        probabilities: ``[t, k]``.
        log_evidence: log probability (or density) of all observations, in nats.
        predicted: before each observation, ``[t, k]``.
        step_log_evidence: of each observation given those before it, ``[t]``, in nats.
        info: which observations were impossible.
    """

    probabilities: Array
    log_evidence: Array
    predicted: Array
    step_log_evidence: Array
    info: HiddenMarkovInfo


class HiddenMarkovSmoothed(NamedTuple):
    """Probabilities of each state given all observations, ``[t, k]``, the log evidence in nats, the
    filter's result, and the log likelihoods that were smoothed, ``[t, k]``.
    """

    probabilities: Array
    log_evidence: Array
    filtered: HiddenMarkovFiltered
    log_likelihood: Array


class HiddenMarkovPath(NamedTuple):
    """The most probable states ``[t]``, the log probability of them together with the observations,
    in nats, and which observations were impossible.
    """

    states: Array
    log_probability: Array
    info: HiddenMarkovInfo


def log_likelihoods(model: HiddenMarkov, observations: Array, mask: Array | None = None) -> Array:
    """Log probability of each discrete observation in each state.

    Args:
        model: with an emission.
        observations: integers ``[t]`` from 0 to o - 1; others give NaN.
        mask: booleans ``[t]``, True where there is an observation; None where all are.

    Returns:
        ``[t, k]``, in nats; 0 where the observation is missing.

    Raises:
        ValueError: when the model has no emission or an argument does not fit.

    >>> model = HiddenMarkov(jnp.ones(1), jnp.eye(1), jnp.array([[0.25], [0.75]]))
    >>> [round(float(row[0]), 3) for row in log_likelihoods(model, jnp.array([0, 1]))]
    [-1.386, -0.288]
    """
    if model.emission is None:
        raise ValueError("log_likelihoods needs a model with an emission; it has None")
    emission, observations = as_floating(model.emission, "emission"), jnp.asarray(observations)
    if observations.ndim != 1 or not jnp.issubdtype(observations.dtype, jnp.integer):
        raise ValueError(
            f"observations must be integers [t], got {observations.dtype} "
            f"{list(observations.shape)}"
        )
    table = safe_log(emission)
    known = observations if mask is None else jnp.where(mask, observations, 0)
    # A negative index would count from the end.
    known = jnp.where(known < 0, table.shape[0], known)
    found = table.at[known].get(mode="fill", fill_value=jnp.nan)
    if mask is None:
        return found
    if mask.shape != observations.shape:
        raise ValueError(f"mask must be {list(observations.shape)}, got {list(mask.shape)}")
    return jnp.where(jnp.broadcast_to(mask[:, None], found.shape), found, 0.0)


def _info(impossible: Array) -> HiddenMarkovInfo:
    first = jnp.where(jnp.any(impossible), jnp.argmax(impossible), -1)
    return HiddenMarkovInfo(impossible, first)


def _filtered(parts: tuple[Array, ...]) -> HiddenMarkovFiltered:
    predicted, probabilities, steps, impossible = parts
    info = _info(impossible)
    return HiddenMarkovFiltered(probabilities, jnp.sum(steps), predicted, steps, info)


def hidden_markov_filter(
    model: HiddenMarkov, log_likelihood: Array, *, passes: DiscretePasses = PLATFORM
) -> HiddenMarkovFiltered:
    """Probabilities of each state given the observations up to it, and the log evidence. O(t k^2).

    Args:
        model: its emission is not read.
        log_likelihood: log probability of each observation in each state, ``[t, k]``, in nats: of
            discrete ones by :func:`log_likelihoods`, or any log density. Rows of 0 are missing.
        passes: the algorithm. The default is sequential on a CPU, an associative scan elsewhere.

    Returns:
        The probabilities; no NaN where an observation is impossible.

    Raises:
        ValueError: naming the argument that does not fit.

    Source: Rabiner, A tutorial on hidden Markov models (1989), with scaling.

    >>> model = HiddenMarkov(jnp.array([0.5, 0.5]), jnp.eye(2), jnp.array([[0.9, 0.1], [0.1, 0.9]]))
    >>> found = hidden_markov_filter(model, log_likelihoods(model, jnp.array([0, 0])))
    >>> [round(float(p), 3) for p in found.probabilities[-1]]
    [0.988, 0.012]
    """
    return _filtered(passes.filter(*checked(model, log_likelihood)))


def hidden_markov_smoother(
    model: HiddenMarkov, log_likelihood: Array, *, passes: DiscretePasses = PLATFORM
) -> HiddenMarkovSmoothed:
    """Probabilities of each state given all observations. O(t k^2).

    Args:
        model, log_likelihood, passes: as :func:`hidden_markov_filter` takes them.

    Returns:
        The probabilities, the log evidence and the filter's result.

    Raises:
        ValueError: naming the argument that does not fit.

    >>> model = HiddenMarkov(jnp.array([0.5, 0.5]), jnp.eye(2), jnp.array([[0.9, 0.1], [0.1, 0.9]]))
    >>> found = hidden_markov_smoother(model, log_likelihoods(model, jnp.array([0, 0])))
    >>> [round(float(p), 3) for p in found.probabilities[0]]
    [0.988, 0.012]
    """
    arrays = checked(model, log_likelihood)
    *parts, smoothed = passes.smooth(*arrays)
    filtered = _filtered(tuple(parts))
    return HiddenMarkovSmoothed(smoothed, filtered.log_evidence, filtered, arrays[2])


def _ratio(smoothed: HiddenMarkovSmoothed) -> Array:
    """``p(s_{i+1} | all) / p(s_{i+1} | up to i)``, ``[t - 1, k]``; 0 where both are."""
    predicted = smoothed.filtered.predicted[1:]
    zero = predicted == 0
    return jnp.where(zero, 0.0, smoothed.probabilities[1:] / jnp.where(zero, 1.0, predicted))


def _underflows(smoothed: HiddenMarkovSmoothed) -> Array:
    """Whether a state was predicted with next to no probability that counts in the end."""
    predicted, posterior = smoothed.filtered.predicted[1:], smoothed.probabilities[1:]
    _, enough = negligible(posterior.dtype, posterior.shape[1])
    return jnp.any((predicted <= enough) & (posterior > float(jnp.finfo(posterior.dtype).eps)))


def _log_factors(model: HiddenMarkov, smoothed: HiddenMarkovSmoothed) -> tuple[Array, Array]:
    """Logarithms of the factors of the pairs: of the later state and of the earlier one,
    ``[t - 1, k]``.
    """
    arrays = checked(model, smoothed.log_likelihood)
    predicted, after, _, _ = log_filter(*arrays)
    never = predicted[1:] == -jnp.inf
    log_posterior = safe_log(smoothed.probabilities[1:])
    log_ratio = jnp.where(never, -jnp.inf, log_posterior - jnp.where(never, 0.0, predicted[1:]))
    return log_ratio, after[:-1]


def two_slice_marginals(model: HiddenMarkov, smoothed: HiddenMarkovSmoothed) -> Array:
    """Joint probabilities of neighbouring states given all observations.

    Args:
        model: the one that was smoothed.
        smoothed: what :func:`hidden_markov_smoother` returned.

    Returns:
        ``[t - 1, k, k]``; entry ``i, a, b`` is ``p(s_{i+1} = a, s_i = b | all)``.

    >>> model = HiddenMarkov(jnp.array([0.5, 0.5]), jnp.eye(2))
    >>> two_slice_marginals(model, hidden_markov_smoother(model, jnp.zeros((2, 2)))).tolist()
    [[[0.5, 0.0], [0.0, 0.5]]]
    """
    before = smoothed.filtered.probabilities[:-1, None, :]
    transition = as_floating(model.transition, "model.transition").astype(before.dtype)
    transition = transition if transition.ndim == 3 else transition[None]

    def from_logarithms() -> Array:
        ahead, behind = _log_factors(model, smoothed)
        return jnp.exp(ahead[..., None] + safe_log(transition) + behind[:, None, :])

    return jax.lax.cond(
        _underflows(smoothed),
        from_logarithms,
        lambda: _ratio(smoothed)[..., None] * transition * before,
    )


def two_slice_sum(model: HiddenMarkov, smoothed: HiddenMarkovSmoothed) -> Array:
    """Expected number of transitions from each state to each, given all observations: the sum of
    :func:`two_slice_marginals`, without storing them where the transition does not change.

    Args:
        model: the one that was smoothed.
        smoothed: what :func:`hidden_markov_smoother` returned.

    Returns:
        ``[k, k]``, from the column to the row.

    >>> model = HiddenMarkov(jnp.array([0.5, 0.5]), jnp.eye(2))
    >>> two_slice_sum(model, hidden_markov_smoother(model, jnp.zeros((5, 2)))).tolist()
    [[2.0, 0.0], [0.0, 2.0]]
    """
    if jnp.ndim(model.transition) == 3:
        return jnp.sum(two_slice_marginals(model, smoothed), axis=0)
    before = smoothed.filtered.probabilities[:-1]
    transition = as_floating(model.transition, "model.transition").astype(before.dtype)

    def from_logarithms() -> Array:
        table = safe_log(transition)

        def add(total: Array, factors: tuple[Array, Array]) -> tuple[Array, None]:
            ahead, behind = factors
            return total + jnp.exp(ahead[:, None] + table + behind[None]), None

        factors = _log_factors(model, smoothed)
        return jax.lax.scan(add, jnp.zeros_like(transition), factors)[0]

    return jax.lax.cond(
        _underflows(smoothed),
        from_logarithms,
        lambda: transition * matmul_tn(_ratio(smoothed), before),
    )


def viterbi(
    model: HiddenMarkov, log_likelihood: Array, *, passes: DiscretePasses = PLATFORM
) -> HiddenMarkovPath:
    """The most probable path of states. O(t k^2), as an associative scan O(t k^3).

    An impossible observation counts as missing and makes the log probability -inf. Of several best
    paths it is the one with the lowest numbers, from the end.

    Args:
        model, log_likelihood, passes: as :func:`hidden_markov_filter` takes them.

    Returns:
        The path.

    Raises:
        ValueError: naming the argument that does not fit.

    Source: Viterbi (1967); Hassan, Sarkka and Garcia-Fernandez, Temporal parallelization of
        inference in hidden Markov models (2021), with the path as a composition of maps.

    >>> model = HiddenMarkov(jnp.array([0.5, 0.5]), jnp.array([[0.9, 0.1], [0.1, 0.9]]))
    >>> viterbi(model, jnp.array([[0.0, -3.0], [0.0, 0.1], [0.0, -3.0]])).states.tolist()
    [0, 0, 0]
    """
    states, best, impossible = passes.decode(*checked(model, log_likelihood))
    return HiddenMarkovPath(states, best, _info(impossible))


def check_model(model: HiddenMarkov) -> None:
    """Refuse a model whose values cannot be right, on concrete arrays: probabilities are finite and
    not negative, and sum to 1 over axis 0 (over the rows of a matrix) to ``100 k eps``.

    Raises:
        ValueError: naming the field and the entry or the column.

    >>> check_model(HiddenMarkov(jnp.ones(1), jnp.array([[0.5]])))
    Traceback (most recent call last):
    ...
    ValueError: transition: column 0 must sum to 1; it sums to 0.5
    """
    for name, value in model._asdict().items():
        if value is not None:
            check_columns(name, value)

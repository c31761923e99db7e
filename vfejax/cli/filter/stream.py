"""A filter that takes one row at a time: compiled once, with a state of constant size."""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.cli.filter.emissions import GaussianStates, Symbols
from vfejax.cli.filter.estimates import LOG_EVIDENCE, Measure
from vfejax.cli.filter.local_models import ORDERS
from vfejax.inference.chains.blocks import SEQUENTIAL
from vfejax.inference.chains.hidden_markov import HiddenMarkov, hidden_markov_filter
from vfejax.inference.chains.linear_gaussian import LinearGaussian, kalman_filter
from vfejax.inference.chains.local_models import LocalModel, linear_gaussian
from vfejax.numerics import matmul, matmul_nt, matvec, symmetrize
from vfejax.types import Array, PyTree

__all__ = ["Answer", "Stream", "free_stream", "hidden_stream", "local_stream", "series_columns"]


class Answer(NamedTuple):
    """What is known after a row.

    Attributes:
        numbers: as the columns say, one array.
        log_evidence: log density of the row given those before it, in nats.
        impossible: whether no state allows the row.
    """

    numbers: Array
    log_evidence: Array
    impossible: Array


class Stream(NamedTuple):
    """A filter of rows that come one by one.

    Attributes:
        columns: names of the numbers in an answer.
        init: the state before the first row.
        step: ``(state, elapsed, values [o], mask [o]) -> (state, Answer)``, pure; ``elapsed`` is
            the time since the row before, 0 for the first one.
        impossible: what is said of a row that an answer calls so.
        measure: what ``log_evidence`` is, or minus what.
        usual: time between rows that come without one.
    """

    columns: tuple[str, ...]
    init: PyTree
    step: Callable[[PyTree, Array, Array, Array], tuple[PyTree, Answer]]
    impossible: str = "no state of the model allows this row; it counts as missing"
    measure: Measure = LOG_EVIDENCE
    usual: float = 1.0


def series_columns(names: tuple[str, ...], states: tuple[str, ...]) -> tuple[str, ...]:
    """Names of the numbers about series and states that have intervals."""
    ends = ("mean", "lower", "upper")
    series = [f"{name}_{end}" for name in names for end in (*ends, "new_lower", "new_upper")]
    return (*series, *(f"{name}_{end}" for name in states for end in ends))


def _linear(
    chain_fn: Callable[[Array], LinearGaussian],
    start: LinearGaussian,
    names: tuple[str, ...],
    states: dict[int, str],
    width: float,
    which: str,
) -> Stream:
    indices = np.array(list(states), int)

    def step(state: PyTree, elapsed: Array, values: Array, mask: Array) -> tuple[PyTree, Answer]:
        mean, cov, begun = state
        model = chain_fn(elapsed)
        moved = matvec(model.transition, mean)
        if model.transition_offset is not None:
            moved = moved + model.transition_offset
        spread = symmetrize(matmul_nt(matmul(model.transition, cov), model.transition))
        before = (
            jnp.where(begun, moved, mean),
            jnp.where(begun, spread + model.transition_cov, cov),
        )
        chain = model._replace(initial_mean=before[0], initial_cov=before[1])
        found = kalman_filter(chain, values[None], mask[None], passes=SEQUENTIAL)
        after = found.mean[0], found.cov[0]
        numbers = _numbers(model, *(after if which == "filtered" else before), indices, width)
        return (*after, jnp.ones_like(begun)), Answer(numbers, found.log_evidence, jnp.array(False))

    init = (start.initial_mean, start.initial_cov, jnp.array(False))
    return Stream(series_columns(names, tuple(states.values())), init, step)


def _numbers(
    model: LinearGaussian, mean: Array, cov: Array, indices: np.ndarray, width: float
) -> Array:
    signal = matvec(model.emission, mean)
    if model.emission_offset is not None:
        signal = signal + model.emission_offset
    variance = jnp.diagonal(matmul_nt(matmul(model.emission, cov), model.emission))
    inner = width * jnp.sqrt(variance)
    outer = width * jnp.sqrt(variance + jnp.diagonal(model.emission_cov))
    series = [signal, signal - inner, signal + inner, signal - outer, signal + outer]
    chosen, around = mean[indices], width * jnp.sqrt(jnp.diagonal(cov)[indices])
    states = [chosen, chosen - around, chosen + around]
    return jnp.concatenate([jnp.stack(series, 1).ravel(), jnp.stack(states, 1).ravel()])


def local_stream(
    kind: str, model: LocalModel, names: tuple[str, ...], width: float, which: str
) -> Stream:
    """A local model, for any times between rows.

    Args:
        kind: its name.
        model: its parameters.
        names: of the series.
        width: half the width of the intervals, in standard deviations.
        which: filtered or predicted.
    """
    model = LocalModel(*(jnp.asarray(x, jnp.float64) for x in model))
    slopes = {2 * j + 1: f"{name}_slope" for j, name in enumerate(names)}
    start = linear_gaussian(model, jnp.asarray(1.0, jnp.float64))
    return _linear(
        lambda elapsed: linear_gaussian(model, elapsed),
        start,
        names,
        slopes if ORDERS[kind] == 2 else {},
        width,
        which,
    )


def free_stream(model: LinearGaussian, names: tuple[str, ...], width: float, which: str) -> Stream:
    """A linear Gaussian model whose steps are all equal.

    Args:
        model: its parameters.
        names: of the series.
        width: half the width of the intervals, in standard deviations.
        which: filtered or predicted.
    """
    states = {i: f"state_{i}" for i in range(len(model.initial_mean))}
    return _linear(lambda elapsed: model, model, names, states, width, which)


def hidden_stream(model: GaussianStates | Symbols, names: tuple[str, ...], which: str) -> Stream:
    """A hidden Markov model: means of the series, probabilities of the states, and the most
    probable of them at this time.

    Args:
        model: its parameters.
        names: of the series.
        which: filtered or predicted.
    """
    centres = jnp.asarray(model.centres())
    num_states = len(centres)

    def step(state: PyTree, elapsed: Array, values: Array, mask: Array) -> tuple[PyTree, Answer]:
        chances, begun = state
        before = jnp.where(begun, matvec(model.transition, chances), chances)
        table = model.log_likelihood(values[None], mask[None])
        found = hidden_markov_filter(HiddenMarkov(before, model.transition), table)
        after = found.probabilities[0]
        shown = after if which == "filtered" else before
        best = jnp.argmax(shown).astype(shown.dtype)
        numbers = jnp.concatenate([matvec(centres.T, shown), shown, best[None]])
        answer = Answer(numbers, found.log_evidence, found.info.impossible[0])
        return (after, jnp.ones_like(begun)), answer

    columns = (
        *(f"{name}_mean" for name in names),
        *(f"state_{k}_probability" for k in range(num_states)),
        "most_probable_state",
    )
    return Stream(columns, (jnp.asarray(model.initial), jnp.array(False)), step)

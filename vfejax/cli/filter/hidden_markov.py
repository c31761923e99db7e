"""Hidden Markov models of a series: estimates, and learning in the loop."""

from functools import partial
from statistics import NormalDist
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.filter.emissions import SMALLEST, GaussianStates, Symbols
from vfejax.cli.filter.estimates import Engine, Estimates, States
from vfejax.cli.filter.linear import Data
from vfejax.inference.chains.hidden_markov import (
    HiddenMarkovSmoothed,
    hidden_markov_smoother,
    two_slice_sum,
    viterbi,
)
from vfejax.types import Array

__all__ = ["document", "engine"]


def engine(
    kind: str, start: GaussianStates | Symbols, names: tuple[str, ...], values: np.ndarray
) -> Engine:
    """The model of a series as the command runs it.

    Args:
        kind: its name.
        start: its parameters.
        names: of the series.
        values: rows ``[t, o]``, NaN where missing.
    """
    data = Data.of(values)
    least = jnp.asarray(SMALLEST * np.nanstd(values, axis=0))

    def smoothed(params: Any) -> HiddenMarkovSmoothed:
        table = params.log_likelihood(data.values, data.mask)
        return hidden_markov_smoother(params.chain, table)

    def update(params: Any) -> tuple[Any, Array]:
        found = smoothed(params)
        pairs = two_slice_sum(params.chain, found)
        total = jnp.sum(pairs, axis=0, keepdims=True)
        never = jnp.broadcast_to(total <= 1e-8, pairs.shape)
        fresh = pairs / jnp.where(total <= 1e-8, 1.0, total)
        moved = params._replace(transition=jnp.where(never, params.transition, fresh))
        return moved.learned(data, found.probabilities, least), found.log_evidence

    compiled = compiled_once(smoothed)
    path = compiled_once(lambda p: viterbi(p.chain, p.log_likelihood(data.values, data.mask)))

    def estimates(params: Any, which: str, interval: float, horizon: int) -> Estimates:
        found, states = compiled(params), np.asarray(path(params).states)
        return _estimates(params, values, found, states, which, interval, horizon)

    def impossible(params: Any) -> np.ndarray:
        return np.flatnonzero(np.asarray(compiled(params).filtered.info.impossible))

    return Engine(
        kind,
        jax.tree.map(jnp.asarray, start),
        update,
        lambda params: float(compiled(params).log_evidence),
        estimates,
        partial(document, kind, names),
        impossible,
    )


def document(kind: str, names: tuple[str, ...], params: GaussianStates | Symbols) -> dict[str, Any]:
    """The parameters as a file of ``--model`` has them.

    Args:
        kind: name of the model.
        names: of the series.
        params: its parameters.
    """
    fields = {name: np.asarray(value).tolist() for name, value in params._asdict().items()}
    return {"model": kind, "columns": list(names), **fields}


def _estimates(
    params: Any,
    values: np.ndarray,
    found: HiddenMarkovSmoothed,
    path: np.ndarray,
    which: str,
    interval: float,
    horizon: int,
) -> Estimates:
    filtered = found.filtered
    chances = {
        "smoothed": found.probabilities,
        "filtered": filtered.probabilities,
        "predicted": filtered.predicted,
    }
    rows = [*np.asarray(chances[which])]
    ahead = np.asarray(filtered.probabilities[-1])
    for _ in range(horizon):
        ahead = np.asarray(params.transition) @ ahead
        rows.append(ahead)
    weights = np.stack(rows)
    ends = [_quantile(params, weights, 0.5 + sign * interval / 2) for sign in (-1, 1)]
    return Estimates(
        mean=weights @ params.centres(),
        lower=None,
        upper=None,
        new_lower=ends[0],
        new_upper=ends[1],
        state_names=(),
        state_mean=np.zeros((len(rows), 0)),
        state_lower=np.zeros((len(rows), 0)),
        state_upper=np.zeros((len(rows), 0)),
        states=States(weights, path),
        log_evidence=float(found.log_evidence),
        residuals=_residuals(params, np.asarray(filtered.predicted), values),
    )


def _quantile(params: Any, weights: np.ndarray, share: float) -> np.ndarray:
    """Quantile of each series under a mixture of states, ``[rows, o]``, by bisection."""
    low, high = (np.tile(end, (len(weights), 1)) for end in params.bracket())
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = np.einsum("tk,tko->to", weights, params.cumulative(middle)) < share
        low, high = np.where(below, middle, low), np.where(below, high, middle)
    return high


def _residuals(params: Any, predicted: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Normal quantiles of the probability, before each row, of at most what was observed."""
    share = np.einsum("tk,tko->to", predicted, params.middle(np.nan_to_num(values)))
    normal = np.vectorize(NormalDist().inv_cdf, otypes=[float])
    off = normal(np.clip(share, 1e-16, 1 - 1e-16))
    return np.where(np.isnan(values), np.nan, off)

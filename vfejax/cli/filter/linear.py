"""Linear Gaussian models of a series: estimates, and learning in the loop."""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from vfejax.cli.fast_compilation import compiled_once
from vfejax.cli.filter.estimates import Engine, Estimates, half_width
from vfejax.inference.chains.blocks import SEQUENTIAL
from vfejax.inference.chains.linear_gaussian import (
    LinearGaussian,
    Smoothed,
    kalman_smoother,
    predict,
)
from vfejax.inference.chains.parallel import PLATFORM
from vfejax.types import Array, PyTree

__all__ = ["Chain", "Data", "engine", "smoothed"]

# Blocks side by side are several times faster from here on, and compile for twice as long.
_LONG = 10_000


class Data(NamedTuple):
    """Observations on the device.

    Attributes:
        values: ``[t, o]``, 0 where missing.
        mask: booleans ``[t, o]``.
    """

    values: Array
    mask: Array

    @classmethod
    def of(cls, values: np.ndarray) -> "Data":
        """From values with NaN where they are missing."""
        return cls(jnp.asarray(np.nan_to_num(values)), jnp.asarray(~np.isnan(values)))


class Chain(NamedTuple):
    """What a kind of linear Gaussian model is.

    Attributes:
        kind: its name.
        params: parameters.
        chain_fn: parameters to the chain of the observations.
        future_fn: parameters to a chain without time axes, for the steps after them.
        update: ``(params, data) -> (params, log evidence before)``, a step of learning.
        state_names: names of states to report, by their index.
        document: parameters as a file has them.
    """

    kind: str
    params: PyTree
    chain_fn: Callable[[PyTree], LinearGaussian]
    future_fn: Callable[[PyTree], LinearGaussian]
    update: Callable[[PyTree, Data], tuple[PyTree, Array]]
    state_names: dict[int, str]
    document: Callable[[PyTree], dict[str, Any]]


def smoothed(model: LinearGaussian, data: Data) -> Smoothed:
    """The posterior, by the algorithm that serves the length of the series.

    Args:
        model: the chain.
        data: the observations.
    """
    serial = data.values.shape[0] < _LONG and jax.default_backend() == "cpu"
    passes = SEQUENTIAL if serial else PLATFORM
    return kalman_smoother(model, data.values, data.mask, passes=passes)


def engine(chain: Chain, data: Data) -> Engine:
    """The model of a series as the command runs it.

    Args:
        chain: the kind of model and its parameters.
        data: the observations.
    """
    compiled = compiled_once(
        lambda params: (smoothed(chain.chain_fn(params), data), chain.future_fn(params))
    )
    return Engine(
        chain.kind,
        chain.params,
        lambda params: chain.update(params, data),
        lambda params: float(compiled(params)[0].log_evidence),
        lambda params, which, interval, horizon: _estimates(
            chain, data, compiled(params), which, interval, horizon
        ),
        chain.document,
    )


def _estimates(
    chain: Chain,
    data: Data,
    compiled: tuple[Smoothed, LinearGaussian],
    which: str,
    interval: float,
    horizon: int,
) -> Estimates:
    found, future = compiled
    filtered = found.filtered
    moments = {
        "smoothed": (found.mean, found.cov),
        "filtered": (filtered.mean, filtered.cov),
        "predicted": (filtered.predicted_mean, filtered.predicted_cov),
    }
    mean, cov = map(np.asarray, moments[which])
    if horizon:
        last = filtered.mean[-1], filtered.cov[-1]
        ahead = compiled_once(partial(predict, num_steps=horizon))(future, *last)
        mean = np.concatenate([mean, np.asarray(ahead.mean)])
        cov = np.concatenate([cov, np.asarray(ahead.cov)])
    width = half_width(interval)
    signal, spread, noise = _signal(future, mean, cov)
    inner, outer = width * np.sqrt(spread), width * np.sqrt(spread + noise)
    indices = list(chain.state_names)
    states = mean[:, indices]
    around = width * np.sqrt(np.diagonal(cov, axis1=1, axis2=2)[:, indices])
    return Estimates(
        mean=signal,
        lower=signal - inner,
        upper=signal + inner,
        new_lower=signal - outer,
        new_upper=signal + outer,
        state_names=tuple(chain.state_names.values()),
        state_mean=states,
        state_lower=states - around,
        state_upper=states + around,
        states=None,
        log_evidence=float(found.log_evidence),
        residuals=_residuals(future, data, filtered),
    )


def _signal(
    model: LinearGaussian, mean: np.ndarray, cov: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and variance of each series without noise ``[rows, o]``, and the noise ``[o]``."""
    c = np.asarray(model.emission)
    offset = 0.0 if model.emission_offset is None else np.asarray(model.emission_offset)
    spread = np.einsum("oi,tij,oj->to", c, cov, c)
    return mean @ c.T + offset, np.maximum(spread, 0.0), np.diag(np.asarray(model.emission_cov))


def _residuals(model: LinearGaussian, data: Data, filtered: Any) -> np.ndarray:
    mean, cov = np.asarray(filtered.predicted_mean), np.asarray(filtered.predicted_cov)
    signal, spread, noise = _signal(model, mean, cov)
    off = (np.asarray(data.values) - signal) / np.sqrt(spread + noise)
    return np.where(np.asarray(data.mask), off, np.nan)

"""The local models of ``vfejax filter``: scales from options, from data or from a file."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from vfejax.cli.filter.config import FilterConfig
from vfejax.cli.filter.linear import Chain, Data, smoothed
from vfejax.errors import UserError
from vfejax.inference.chains.linear_gaussian import LinearGaussian
from vfejax.inference.chains.local_models import (
    LocalModel,
    learned,
    linear_gaussian,
    moment_scales,
)
from vfejax.types import Array, PyTree

__all__ = ["ORDERS", "Times", "begin", "chain", "document"]

ORDERS = {"local-level": 1, "local-trend": 2}
# The first state is not known before the first row: its standard deviation is so many times that of
# the noise and of a step together.
_VAGUE = 100.0


class Times(NamedTuple):
    """Time between neighbouring rows ``[t - 1]``, and of the steps after the last one."""

    steps: np.ndarray
    future: float


def begin(
    config: FilterConfig, kind: str, names: tuple[str, ...], values: np.ndarray, times: Times
) -> LocalModel:
    """A local model whose scales are those of the options, or else estimated from rows.

    Args:
        config: the command's options.
        kind: name of the model.
        names: of the series.
        values: rows ``[t, o]``, NaN where missing.
        times: of the rows.

    Raises:
        UserError: naming the column from which they cannot be estimated.
    """
    order = ORDERS[kind]
    o = len(names)
    drift, noise = np.full(o, np.nan), np.full(o, np.nan)
    if config.drift_std is None or config.noise_std is None:
        drift, noise = moment_scales(order, times.steps, values)
    if config.drift_std is not None:
        drift = np.full(o, config.drift_std)
    if config.noise_std is not None:
        noise = np.full(o, config.noise_std)
    for name, scale in zip(names, drift * noise, strict=True):
        if not scale > 0:
            raise UserError(
                f"column '{name}' has too few values that differ to estimate how it moves; give "
                "--noise-std and --drift-std, or leave it out with --columns"
            )
    return _with_beginning(order, drift, noise, values, times.future)


def _with_beginning(
    order: int, drift: np.ndarray, noise: np.ndarray, values: np.ndarray, step: float
) -> LocalModel:
    """Centred at the first observed value of each series, and vague."""
    first = np.argmax(~np.isnan(values), axis=0)
    level = np.nan_to_num(values[first, np.arange(values.shape[1])])
    reach = noise + drift * np.sqrt(step) * (step if order == 2 else 1.0)
    mean = np.zeros((len(level), order))
    mean[:, 0] = level
    std = np.repeat(_VAGUE * reach[:, None], order, axis=1)
    std[:, 1:] /= step
    fields = drift, noise, mean.ravel(), np.diag(std.ravel() ** 2)
    return LocalModel(*map(jnp.asarray, fields))


def chain(kind: str, model: LocalModel, names: tuple[str, ...], times: Times) -> Chain:
    """The model as the command runs it.

    Args:
        kind: its name.
        model: its parameters.
        names: of the series.
        times: of the rows.
    """
    steps = jnp.asarray(times.steps, jnp.float64)
    if np.all(times.steps == times.steps[0]):
        steps = steps[0]

    def update(params: PyTree, data: Data) -> tuple[LocalModel, Array]:
        found = smoothed(chain_fn(params), data)
        better = learned(params, steps, data.values, data.mask, found)
        return better, found.log_evidence

    def chain_fn(params: PyTree) -> LinearGaussian:
        return linear_gaussian(params, steps)

    def future_fn(params: PyTree) -> LinearGaussian:
        return linear_gaussian(params, jnp.asarray(times.future, jnp.float64))

    slopes = {2 * j + 1: f"{name}_slope" for j, name in enumerate(names)}
    return Chain(
        kind,
        LocalModel(*(jnp.asarray(x, jnp.float64) for x in model)),
        chain_fn,
        future_fn,
        update,
        slopes if ORDERS[kind] == 2 else {},
        lambda params: document(kind, params, names),
    )


def document(kind: str, params: LocalModel, names: tuple[str, ...]) -> dict[str, Any]:
    """The parameters as a file of ``--model`` has them.

    Args:
        kind: name of the model.
        params: its parameters.
        names: of the series.
    """
    fields = {name: np.asarray(value).tolist() for name, value in params._asdict().items()}
    return {"model": kind, "columns": list(names), **fields}

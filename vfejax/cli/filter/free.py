"""The linear Gaussian model of ``vfejax filter`` all of whose matrices are learned."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vfejax.cli.filter.linear import Chain, Data
from vfejax.errors import UserError
from vfejax.inference.chains.learning import expect, maximize
from vfejax.inference.chains.linear_gaussian import LinearGaussian
from vfejax.types import Array, PyTree

__all__ = ["begin", "chain", "document"]


def begin(num_states: int, names: tuple[str, ...], values: np.ndarray, seed: int) -> LinearGaussian:
    """Where learning begins: states of unit variance that forget slowly, seen along the principal
    components of the data.

    Args:
        num_states: size of the state.
        names: of the series.
        values: rows ``[t, o]``, NaN where missing.
        seed: of the small random part that tells equal states apart.

    Raises:
        UserError: naming a series that is constant.
    """
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    for name, scale in zip(names, std, strict=True):
        if not scale > 0:
            raise UserError(f"column '{name}' is constant; leave it out with --columns")
    n, o = num_states, values.shape[1]
    whole = np.nan_to_num((values - mean) / std)
    _, scales, axes = np.linalg.svd(whole, full_matrices=False)
    rng = np.random.default_rng(seed)
    directions = 0.1 * rng.normal(size=(n, o))
    rank = min(n, len(axes))
    directions[:rank] += axes[:rank] * (scales[:rank] / np.sqrt(len(whole)))[:, None]
    # Different rates of forgetting, so that no two states are alike.
    rates = 0.95 - 0.5 * np.arange(n) / n
    return LinearGaussian(
        jnp.zeros(n),
        jnp.eye(n),
        jnp.diag(jnp.asarray(rates)),
        jnp.diag(jnp.asarray(1.0 - rates**2)),
        jnp.asarray((std * directions).T),
        jnp.diag(jnp.asarray(0.5 * std**2)),
        emission_offset=jnp.asarray(mean),
    )


def chain(start: LinearGaussian, names: tuple[str, ...]) -> Chain:
    """The model as the command runs it.

    Args:
        start: its parameters.
        names: of the series.
    """
    num_states = len(start.initial_mean)
    return Chain(
        "lgssm",
        start,
        lambda params: params,
        lambda params: params,
        _update,
        {i: f"state_{i}" for i in range(num_states)},
        lambda params: document(params, names),
    )


def document(params: LinearGaussian, names: tuple[str, ...]) -> dict[str, Any]:
    """The parameters as a file of ``--model`` has them.

    Args:
        params: the model.
        names: of the series.
    """
    fields = {k: np.asarray(v).tolist() for k, v in params._asdict().items() if v is not None}
    return {"model": "lgssm", "columns": list(names), **fields}


def _update(params: PyTree, data: Data) -> tuple[LinearGaussian, Array]:
    """One step of expectation maximisation; the belief about the first state stays, since one
    series says next to nothing about it.
    """
    mask = None if np.all(np.asarray(data.mask)) else data.mask
    statistics = expect(params, data.values, mask)
    better = maximize(params, statistics)
    beginning = {"initial_mean": params.initial_mean, "initial_cov": params.initial_cov}
    return better._replace(**beginning), statistics.log_evidence

"""The linear Gaussian model of ``vfejax filter`` whose every matrix is free."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from vfejax.cli.filter.linear import Chain, Data
from vfejax.errors import UserError
from vfejax.inference.chains.linear_gaussian import LinearGaussian, Smoothed
from vfejax.numerics import cholesky, matmul_nt, symmetrize, triangular_inverse
from vfejax.types import Array, PyTree

__all__ = ["begin", "chain", "document"]


def begin(num_states: int, values: np.ndarray, seed: int) -> LinearGaussian:
    """Where learning begins: states of unit variance that forget slowly, seen along the principal
    components of the data.

    Args:
        num_states: size of the state.
        values: rows ``[t, o]``, NaN where missing.
        seed: of the small random part that tells equal states apart.

    Raises:
        UserError: when a series is constant.
    """
    mean, std = np.nanmean(values, axis=0), np.nanstd(values, axis=0)
    if not np.all(std > 0):
        raise UserError("a column is constant; leave it out with --columns")
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
        _learned,
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


def _inverse(matrix: Array) -> Array:
    half = triangular_inverse(cholesky(symmetrize(matrix)))
    return jnp.einsum("...ki,...kj->...ij", half, half)


def _learned(params: PyTree, data: Data, found: Smoothed) -> LinearGaussian:
    """The maximising step: regressions of states on states and of series on states. The noise of
    the series is independent, the beginning and the offset of the states stay.
    """
    mean, t = found.mean, found.mean.shape[0]
    second = found.cov + mean[:, :, None] * mean[:, None, :]
    drift = (
        jnp.zeros_like(mean[0]) if params.transition_offset is None else params.transition_offset
    )
    later = mean[1:] - drift[None]
    cross = jnp.sum(found.cross_cov + later[:, :, None] * mean[:-1, None, :], axis=0)
    moved = jnp.sum(found.cov[1:] + later[:, :, None] * later[:, None, :], axis=0)
    a = cross @ _inverse(jnp.sum(second[:-1], axis=0))
    q = symmetrize(moved - matmul_nt(a, cross)) / (t - 1)
    inputs = mean
    if params.emission_offset is not None:  # one more input, which is 1
        inputs = jnp.concatenate([mean, jnp.ones((t, 1), mean.dtype)], axis=1)
        corner = jnp.ones((t, 1, 1), mean.dtype)
        upper = jnp.concatenate([second, mean[:, :, None]], axis=2)
        second = jnp.concatenate(
            [upper, jnp.concatenate([mean[:, None, :], corner], axis=2)], axis=1
        )
    seen = data.mask.astype(mean.dtype)
    gram = jnp.einsum("to,tij->oij", seen, second)
    targets = jnp.einsum("to,ti->oi", seen * data.values, inputs)
    rows = jnp.einsum("oij,oj->oi", _inverse(gram), targets)
    fitted = jnp.einsum("oi,tij,oj->to", rows, second, rows)
    off = data.values**2 - 2.0 * data.values * matmul_nt(inputs, rows) + fitted
    r = jnp.sum(seen * off, axis=0) / jnp.sum(seen, axis=0)
    n = mean.shape[1]
    return params._replace(
        transition=a,
        transition_cov=q,
        emission=rows[:, :n],
        emission_cov=jnp.diag(r),
        emission_offset=None if params.emission_offset is None else rows[:, n],
    )

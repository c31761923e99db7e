"""Checks of samples and weights of the statistics, with errors that name the argument."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike, DTypeLike

from vfejax.numerics import as_floating
from vfejax.types import Array

__all__ = ["pairs", "weighting"]


def pairs(now: ArrayLike, following: ArrayLike, dims: tuple[int, ...], dtype: DTypeLike) -> Array:
    """``[X Y]``, checked.

    Args:
        now: X ``[k, d]``.
        following: Y ``[k, e]``.
        dims: d and e.
        dtype: of both.

    >>> pairs(jnp.ones((1, 2)), jnp.zeros((1, 1)), (2, 1), jnp.float32).tolist()
    [[1.0, 1.0, 0.0]]
    """
    rows = []
    for name, x, dim in (("now", now, dims[0]), ("following", following, dims[1])):
        x = as_floating(x, name)
        if x.ndim != 2 or x.shape[-1] != dim:
            raise ValueError(f"{name} must be samples [k, {dim}], got shape {x.shape}")
        if x.dtype != dtype:
            raise ValueError(f"{name} must be {dtype}, as the factor is, got {x.dtype}")
        rows.append(x)
    if len(rows[0]) != len(rows[1]):
        raise ValueError(
            f"now and following must be as many samples, got {len(rows[0])} and {len(rows[1])}"
        )
    return jnp.concatenate(rows, axis=1)


def weighting(
    num: int, dtype: DTypeLike, weights: ArrayLike | None, forgetting: ArrayLike
) -> tuple[Array, Array]:
    """Roots of the weights and the weights, each ``[1 + k]``: of all before, then of k samples.

    Args:
        num: k.
        dtype: of what is returned.
        weights: those given for the samples, by default 1.
        forgetting: what a sample multiplies all weights before it by.

    >>> weighting(2, jnp.float32, None, 0.25)[0].tolist()
    [0.25, 0.5, 1.0]
    """
    if not isinstance(forgetting, jax.core.Tracer) and not np.all(
        (np.asarray(forgetting) > 0) & (np.asarray(forgetting) <= 1)
    ):
        raise ValueError(f"forgetting must be in (0, 1], got {forgetting}")
    # Of the roots, whose derivatives stay finite where the weights themselves vanish.
    roots = jnp.asarray(forgetting, dtype) ** (0.5 * jnp.arange(num, -1, -1).astype(dtype))
    decays = roots**2
    if weights is None:
        return roots, decays
    weights = as_floating(weights, "weights").astype(dtype)
    if weights.shape != (num,):
        raise ValueError(f"weights must be [{num}], got shape {weights.shape}")
    if not isinstance(weights, jax.core.Tracer) and np.any(np.asarray(weights) < 0):
        raise ValueError(f"weights must not be negative, got {np.min(weights):.6g}")
    return roots.at[1:].multiply(jnp.sqrt(weights)), decays.at[1:].multiply(weights)

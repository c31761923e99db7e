"""Correction of kernels for removed inputs, which the kept ones predict in part."""

import jax
import jax.numpy as jnp

from vfejax.compression.prune import Cut
from vfejax.numerics import cholesky, identity_like, matmul, matmul_tn, triangular_inverse
from vfejax.types import Array

__all__ = ["compensated", "inputs"]


def inputs(cut: Cut, number: int, units: Array) -> Array:
    """Places of these units along the axis of a cut.

    Args:
        cut: how the axis is made up of units.
        number: how many units there are.
        units: indices of some, ``[..., kept]``.

    Returns:
        Integers ``[..., copies kept size]``, in the order of the axis when the units are.

    >>> inputs(Cut("kernel", -2, copies=2, size=2), 2, jnp.asarray([1])).tolist()
    [2, 3, 6, 7]
    """
    places = jnp.arange(cut.copies * number * cut.size).reshape(cut.copies, number, cut.size)
    return jnp.moveaxis(places[:, units], 0, -3).reshape(*units.shape[:-1], -1)


def compensated(kernel: Array, moments: Array, kept: Array, ridge: float) -> Array:
    """A kernel whose inputs that stay make up for those that go, as well as they can,

        W_k <- W_k + (C_kk + r 1)^-1 C_kg W_g,

    the regression of what it wrote on the inputs that stay, where ``r = ridge tr(C_kk) / k``.

    Args:
        kernel: W, ``[..., n, m]``.
        moments: second moments C of what it reads, ``[..., n, n]``.
        kept: places k of the inputs that stay, ``[..., k]``; fewer leading axes for those that are
            the same for the last of them.
        ridge: positive; small ones trust correlations that few tokens show.

    Returns:
        ``[..., n, m]``, of which the rows that go are as they were.

    Source: Frantar and Alistarh, Optimal brain compression (2022), for all inputs at once.

    >>> kernel, moments = jnp.asarray([[1.0], [2.0]]), jnp.ones((2, 2))  # two equal inputs
    >>> bool(jnp.allclose(compensated(kernel, moments, jnp.asarray([0]), 1e-6)[0], 3.0))
    True
    """
    kernel, moments, kept = jnp.asarray(kernel), jnp.asarray(moments), jnp.asarray(kept)
    before = kernel.shape[:-2]
    missing = [1] * (len(before) - kept.ndim + 1)
    kept = kept.reshape(*kept.shape[:-1], *missing, kept.shape[-1])
    kept = jnp.broadcast_to(kept, (*before, kept.shape[-1]))

    def one(kernel: Array, moments: Array, kept: Array) -> Array:
        rows = moments[kept].astype(kernel.dtype)
        inner = rows[:, kept]
        ground = ridge * jnp.trace(inner) / kept.size
        ground = jnp.where(ground <= 0, jnp.ones((), ground.dtype), ground)
        inverse = triangular_inverse(cholesky(inner + ground * identity_like(inner)))
        missed = matmul(rows, kernel.at[kept].set(0))
        return kernel.at[kept].add(matmul_tn(inverse, matmul(inverse, missed)))

    for _ in before:
        one = jax.vmap(one)
    return one(kernel, moments, kept)

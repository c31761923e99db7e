"""Ozaki's local linearisation: one step of a flow that is exact where the flow is linear.

``du/dt = f(u)`` with Jacobian J moves by ``(exp(J dt) - 1) J^{-1} f(u)``. Written as the
exponential of a block matrix, nothing is divided by J, and forces that are polynomials of time come
with it.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from vfejax.numerics import as_floating, cast_like, common_dtype, matmul
from vfejax.types import Array

__all__ = ["exponential_minus_one", "ozaki_step"]

_TERMS = 16
_MAX_DOUBLINGS = 32
# Doublings that are left out together. On a GPU a choice takes as long as several products.
_AT_ONCE = 4


def exponential_minus_one(x: Array) -> Array:
    """``exp(x) - 1`` for ``x [..., k, k]``, by Taylor's series of ``x / 2^d`` and d doublings.

    A doubling is ``N <- 2 N + N^2``: small parts keep the digits that ``exp`` loses beside 1.
    Products only, so there is no batched LU. d is at most 32, which reaches ``|x|_1`` of 2e9 (8e9
    in float32). The error is a few ``|x|_1 eps``.

    Args:
        x: real, ``[..., k, k]``.

    Returns:
        ``[..., k, k]``; NaN where the doublings do not reach ``|x|_1``.

    Raises:
        ValueError: when ``x`` is complex or not square.

    Source: Higham, Functions of Matrices (2008), section 10.3; the sum of the series as in Paterson
    and Stockmeyer, SIAM J. Comput. 2 (1973) 60.

    >>> exponential_minus_one(jnp.array([[0.0, 1.0], [0.0, 0.0]])).tolist()
    [[0.0, 1.0], [0.0, 0.0]]
    """
    x = as_floating(x, "x")
    if x.ndim < 2 or x.shape[-1] != x.shape[-2]:
        raise ValueError(f"x must be square matrices [..., k, k], got shape {x.shape}")
    radius = 0.5 if jnp.finfo(x.dtype).bits == 64 else 2.0
    norm = jax.lax.stop_gradient(jnp.max(jnp.sum(jnp.abs(x), axis=-2), axis=-1, initial=0.0))
    doublings = jnp.maximum(0.0, jnp.ceil(jnp.log2(norm[..., None, None] / radius)))
    doublings = jnp.where(norm[..., None, None] == 0, 0.0, doublings)
    y = x * jnp.exp2(-doublings)
    return jnp.where(doublings <= _MAX_DOUBLINGS, _doubled(_taylor(y), doublings), jnp.nan)


def _taylor(y: Array) -> Array:
    """``y + y^2 / 2 + ... + y^16 / 16!``: Paterson and Stockmeyer's six products."""
    square = matmul(y, y)
    powers = (y, square, matmul(square, y), matmul(square, square))
    factors = np.array([1.0 / math.factorial(n) for n in range(1, _TERMS + 1)])

    def block(row: Array) -> Array:
        terms = [row[i] * power for i, power in enumerate(powers)]
        return functools.reduce(jnp.add, terms)

    def above(total: Array, row: Array) -> tuple[Array, None]:
        return block(row) + matmul(powers[-1], total), None

    rows = jnp.asarray(factors.reshape(-1, len(powers))[::-1], y.dtype)
    return jax.lax.scan(above, block(rows[0]), rows[1:])[0]


def _doubled(start: Array, doublings: Array) -> Array:
    """``N <- 2 N + N^2``, so many times."""

    def double(carry: Array, index: Array) -> tuple[Array, None]:
        return jnp.where(index < doublings, 2.0 * carry + matmul(carry, carry), carry), None

    def some(carry: Array, indices: Array) -> tuple[Array, None]:
        # Most flows need a few. Unlike a loop of unknown length this has a gradient.
        needed = jnp.any(indices[0] < doublings)
        return jax.lax.cond(
            needed, lambda x: jax.lax.scan(double, x, indices)[0], lambda x: x, carry
        ), None

    indices = jnp.arange(_MAX_DOUBLINGS, dtype=start.dtype).reshape(-1, _AT_ONCE)
    return jax.lax.scan(some, start, indices)[0]


def ozaki_step(jacobian: Array, flow: Array, dt: ArrayLike) -> Array:
    """How far a linear flow moves in ``dt``: ``d(dt)`` of ``d' = J d + sum_k b_k t^k / k!``, ``d(0)
    = 0``.

    Args:
        jacobian: J, ``[n, n]``, in units of 1 / time.
        flow: the columns ``b_0, b_1, ...``, ``[n, p]``: the flow at the start and its derivatives
            in time at a fixed place. ``[n]`` for a flow that does not depend on time.
        dt: length of the step.

    Returns:
        ``[n]``.

    Raises:
        ValueError: when the shapes do not fit.

    Source: Ozaki, Statistica Sinica 2 (1992) 113; forces that depend on time by the block matrix of
    Higham, Functions of Matrices (2008), theorem 10.17 and its generalisation by Al-Mohy and
    Higham, SIAM J. Sci. Comput. 33 (2011) 488, theorem 2.1.

    >>> round(float(ozaki_step(jnp.array([[-1.0]]), jnp.array([1.0]), 1.0)[0]), 4)  # 1 - 1 / e
    0.6321
    """
    flow = flow[:, None] if flow.ndim == 1 else flow
    num, terms = flow.shape
    if jacobian.shape != (num, num):
        raise ValueError(f"jacobian must be [{num}, {num}] to fit flow, got {jacobian.shape}")
    dtype = common_dtype(jacobian, flow)
    jacobian, flow = jacobian.astype(dtype), flow.astype(dtype)
    # The force may have any size: it enters linearly, and is brought to that of the Jacobian.
    size = jnp.maximum(jnp.max(jnp.abs(jacobian), initial=0.0), 1.0)
    largest = jax.lax.stop_gradient(jnp.max(jnp.abs(flow), initial=0.0))
    scale = jax.lax.stop_gradient(jnp.where(largest <= size, 1.0, size / largest))
    chain = jnp.eye(terms, k=1, dtype=dtype)
    block = jnp.block([[jacobian, flow * scale], [jnp.zeros((terms, num), dtype), chain.T]])
    moved = exponential_minus_one(cast_like(dt, block) * block)
    return moved[:num, num] / scale

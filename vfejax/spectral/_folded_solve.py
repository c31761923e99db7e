"""Solution of the linear equations of folded chains on a CPU: the two sweeps of the resolvent,
applied to vectors.

Inward ``V_r = I_r (x_r - c V_{r-1})``, outward ``U_r = O_r (x_r - b U_{r+1})``, and where they meet
``y_r = G_r (x_r - c V_{r-1} - b U_{r+1})``; in the second half of a chain b and c change places.
"""

import jax.numpy as jnp

from vfejax.spectral._folded import (
    Chains,
    meet,
    plan,
    sweep_inward,
    sweep_outward,
    turned,
)
from vfejax.spectral._folds import (
    down,
    fold,
    for_each_group,
    grouped,
    groups,
    joined,
    row,
    unfold_middle,
    up,
)
from vfejax.spectral.scans import scaled
from vfejax.types import Array

__all__ = ["solve"]


def _coupled(k: Array, x: Array) -> Array:
    return scaled(k[..., None], x)


def _couplings(chains: Chains, rows: int) -> tuple[Array, Array]:
    """Between a row and the next one: what the next feels of it, and it of the next."""
    folded = (chains.multiplied(fold(0, rows, x)) for x in (chains.b, chains.c))
    b, c = (jnp.split(x, 2, axis=1) for x in folded)
    return jnp.concatenate([c[0], b[1]], axis=1), jnp.concatenate([b[0], c[1]], axis=1)


def _solve(a: Array, b: Array, c: Array, z: Array, s: Array, x: Array) -> Array:
    n, rows = a.shape[1], -(-a.shape[1] // 2)
    chains, *_ = plan(a, b, c, z, s)
    none = jnp.zeros((rows + 1, *chains.z.shape), z.dtype)
    inward = sweep_inward(chains, 0, none[0], none[1:])
    _, outward = sweep_outward(chains, 0, turned(n, 0, inward), none)
    before, after = _couplings(chains, rows)
    x_rows = fold(0, rows, x)

    def step_inward(r: Array, v: Array) -> Array:
        felt = _coupled(row(before, r), v)
        return row(inward, r + 1)[:, None] * (row(x_rows, r + 1) - felt)

    def step_outward(r: Array, u: Array) -> Array:
        return row(outward, r)[:, None] * (row(x_rows, r) - _coupled(row(after, r), u))

    space = jnp.zeros((rows + 1, *x_rows.shape[1:]), z.dtype)
    v = up(step_inward, inward[0][:, None] * x_rows[0], space[1:])
    _, u = down(step_outward, turned(n, 0, v), space)
    felt = jnp.concatenate([space[:1], _coupled(before, v)[:-1]]) + _coupled(after, u[1:])
    # Near a pole G is large and x - felt small: the unit multiplies their product.
    y = _coupled(chains.s[None], meet(chains, 0, inward, outward)[..., None] * (x_rows - felt))
    return unfold_middle(y, 0, jnp.zeros_like(x))


def solve(a: Array, b: Array, c: Array, z: Array, s: Array, x: Array) -> Array:
    """``(T - z)^{-1} x`` of the chains with diagonal a and off-diagonals b and c.

    Args:
        a: real or complex, ``[lanes, n]``, n >= 1.
        b: real or complex, ``[lanes, n - 1]``.
        c: of the same dtype and shape.
        z: complex, ``[lanes]``.
        s: what multiplies all of them before they are swept, and y after it, real, ``[lanes]``.
        x: complex, ``[lanes, n, channels]``.

    Returns:
        Shape and dtype of ``x``.

    >>> a, b, z, x = jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.zeros(1) + 0j, jnp.ones((1, 2, 1))
    >>> print(solve(a, b, b, z, jnp.ones(1), x + 0j)[0, :, 0].real)
    [1. 1.]
    """
    num = groups(a.shape[0], a.dtype == b.dtype == jnp.float32 and x.shape[2] == 1)
    y = for_each_group(_solve, *(grouped(v, num) for v in (a, b, c, z, s, x)))
    return joined(y, a.shape[0])

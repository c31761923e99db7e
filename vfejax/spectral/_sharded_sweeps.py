"""The recurrences of tridiagonal systems over shards of a sequence, with their derivatives.

Inside ``shard_map``, sites first, nothing checked. Entry i of a coupling k couples site i to the
site before it, also over the border to the shard before; that of the first site of all is 0.
"""

from functools import partial

import jax
import jax.numpy as jnp

from vfejax.spectral._shards import (
    compose_affine,
    compose_moebius,
    fold,
    moebius_map,
    neighbour,
    up_to_here,
)
from vfejax.spectral.scans import Scans, pivot_reciprocal, reciprocal
from vfejax.types import Array

__all__ = ["diagonal_of", "left_fraction", "linear_sweep", "two_sided_solve"]

Pair = tuple[Array, Array]


def _swept(gates: Array, inputs: Array, axis_name: str, reverse: bool, scans: Scans) -> Array:
    total = fold(compose_affine, lambda row: row, (gates, inputs), reverse)
    is_first, (_, start) = up_to_here(compose_affine, total, axis_name, reverse)
    start = jnp.where(is_first, jnp.zeros_like(start), start)
    end = -1 if reverse else 0
    return scans.linear(gates, inputs.at[end].add(gates[end] * start), reverse)


def linear_sweep(gates: Array, inputs: Array, axis_name: str, reverse: bool, scans: Scans) -> Array:
    """``y_i = g_i y_{i-1} + x_i``, or ``y_i = g_i y_{i+1} + x_i`` in reverse.

    The solution of linear equations, so that derivatives of every order are such sweeps.

    Args:
        gates: g, ``[l, ...]``; axes after the first may have size 1.
        inputs: x, ``[l, ...]`` of the same rank and dtype.
        axis_name: axis of the mesh along the sequence.
        reverse: from the last site to the first.
        scans: the algorithm within a shard.

    >>> from vfejax.spectral.scans import PLATFORM
    >>> sweep = jax.vmap(
    ...     lambda g, x: linear_sweep(g, x, "sequence", False, PLATFORM), axis_name="sequence"
    ... )
    >>> print(jax.jit(sweep)(jnp.full((2, 2), 0.5), jnp.ones((2, 2))))  # two shards of two sites
    [[1.    1.5  ]
     [1.75  1.875]]
    """
    transposed = neighbour(gates, axis_name, not reverse)

    def equations(y: Array) -> Array:
        return y - gates * neighbour(y, axis_name, reverse)

    return jax.lax.custom_linear_solve(
        equations,
        inputs,
        solve=lambda _, x: _swept(gates, x, axis_name, reverse, scans),
        transpose_solve=lambda _, x: _swept(transposed, x, axis_name, not reverse, scans),
    )


def _before(total: Array, entry: Array, axis_name: str, reverse: bool) -> Array:
    """The continued fraction at the last site before this shard, 0 where there is none.

    ``total`` is the product of the shard's maps without the coupling ``entry`` to that site.
    """
    none, one = jnp.zeros_like(entry), jnp.ones_like(entry)
    coupled = jnp.stack([jnp.stack([-entry, none]), jnp.stack([none, one])])
    own = compose_moebius(coupled, total)
    is_first, found = up_to_here(compose_moebius, own, axis_name, reverse)
    g = found[0, 1] * pivot_reciprocal(found[1, 1])
    return jnp.where(is_first, jnp.zeros_like(g), g)


def _joined(g: Array, d: Array, coupled: Array, axis_name: str, reverse: bool) -> Array:
    """An entry after one that is near a pole, from this very one: their product, near ``-1 / k``,
    would be lost if one came from the gathered maps and the other from a scan.
    """
    last = neighbour(g, axis_name, reverse)
    near_a_pole = (last.real**2 + last.imag**2) * jnp.abs(coupled) > 1.0
    return jnp.where(near_a_pole, pivot_reciprocal(d - coupled * last), g)


def _fractions(d: Array, k: Array, axis_name: str, both: bool, scans: Scans) -> tuple[Array, ...]:
    """``gL_i = 1 / (d_i - k_i gL_{i-1})`` and, if both, ``gR_i = 1 / (d_i - k_{i+1} gR_{i+1})``.

    One product of maps serves both ways: with ``[[0, 1], [-k, d]] = [[0, 1], [1, d]] diag(-k, 1)``
    the product in reverse is the transpose, but for the couplings at the ends.

    Args:
        d: complex ``[l, ...]``.
        k: of the same shape and dtype.
        axis_name: axis of the mesh along the sequence.
        both: whether gR is wanted.
        scans: the algorithm within a shard.
    """
    total = fold(compose_moebius, moebius_map, (d, k.at[0].set(-1.0)))
    after = neighbour(k, axis_name, True)
    ways = [(d, k, total, False), (d[::-1], after[::-1], jnp.swapaxes(total, 0, 1), True)]
    lanes = []
    for diagonal, coupling, product, reverse in ways[: 2 if both else 1]:
        start = _before(product, coupling[0], axis_name, reverse)
        diagonal = diagonal.at[0].add(-coupling[0] * start)
        lanes.append((diagonal, coupling.at[0].set(0.0)))
    found = scans.moebius(*(jnp.stack(lane, axis=1) for lane in zip(*lanes, strict=True)))
    left = _joined(found[:, 0], d, k, axis_name, False)
    return (left, _joined(found[::-1, 1], d, after, axis_name, True)) if both else (left,)


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def left_fraction(d: Array, k: Array, axis_name: str, scans: Scans) -> Array:
    """``gL`` alone, with its derivatives: ``dgL_i = k_i gL_i^2 dgL_{i-1} + gL_i^2 (gL_{i-1} dk_i -
    dd_i)``.

    Args:
        d: complex ``[l, ...]``.
        k: of the same shape and dtype.
        axis_name: axis of the mesh along the sequence.
        scans: the algorithm within a shard.

    >>> from vfejax.spectral.scans import PLATFORM
    >>> left = jax.vmap(
    ...     lambda d, k: left_fraction(d, k, "sequence", PLATFORM), axis_name="sequence"
    ... )
    >>> print(jax.jit(left)(jnp.full((2, 1), -1j), jnp.full((2, 1), 1.0 + 0j)).imag)
    [[1. ]
     [0.5]]
    """
    return _fractions(d, k, axis_name, False, scans)[0]


@left_fraction.defjvp
def _left_fraction_jvp(axis_name: str, scans: Scans, primals: Pair, tangents: Pair) -> Pair:
    (d, k), (d_change, k_change) = primals, tangents
    left = left_fraction(d, k, axis_name, scans)
    square = left * left
    inputs = square * (neighbour(left, axis_name) * k_change - d_change)
    return left, linear_sweep(k * square, inputs, axis_name, False, scans)


def _meet(d: Array, k: Array, sides: tuple[Array, ...], axis_name: str) -> Array:
    left, right = sides
    return reciprocal(d - k * neighbour(left, axis_name) - neighbour(k * right, axis_name, True))


@partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def diagonal_of(d: Array, k: Array, axis_name: str, scans: Scans) -> Array:
    """``G_ii = 1 / (d_i - k_i gL_{i-1} - k_{i+1} gR_{i+1})``, with its derivatives.

    ``dG_ii = G_ii^2 (dd_i + u_i + v_i)``, with ``u_i = k_{i+1} gR_{i+1}^2 u_{i+1} + gR_{i+1}
    dk_{i+1} - dd_i`` what site i feels of changes to its right, and v likewise to its left.

    Args:
        d: complex ``[l, ...]``.
        k: of the same shape and dtype.
        axis_name: axis of the mesh along the sequence.
        scans: the algorithm within a shard.

    >>> from vfejax.spectral.scans import PLATFORM
    >>> both = jax.vmap(
    ...     lambda d, k: diagonal_of(d, k, "sequence", PLATFORM), axis_name="sequence"
    ... )
    >>> jax.eval_shape(both, jnp.full((2, 3), -1j), jnp.full((2, 3), 1.0 + 0j)).shape
    (2, 3)
    """
    return _meet(d, k, _fractions(d, k, axis_name, True, scans), axis_name)


@diagonal_of.defjvp
def _diagonal_of_jvp(axis_name: str, scans: Scans, primals: Pair, tangents: Pair) -> Pair:
    (d, k), (d_change, k_change) = primals, tangents
    left, right = sides = _fractions(d, k, axis_name, True, scans)
    diagonal = _meet(d, k, sides, axis_name)
    before = neighbour(left, axis_name)
    felt = linear_sweep(k * before**2, before * k_change - d_change, axis_name, False, scans)
    links, inputs = (neighbour(x, axis_name, True) for x in (k * right**2, right * k_change))
    felt += linear_sweep(links, inputs - d_change, axis_name, True, scans)
    return diagonal, diagonal**2 * (d_change + felt)


def two_sided_solve(d: Array, b: Array, c: Array, x: Array, axis_name: str, scans: Scans) -> Array:
    """``T^{-1} x``: sweeps from both ends meet at every site, ``y_i = G_ii (x_i - c_i yL_{i-1} -
    b_{i+1} yR_{i+1})``.

    Args:
        d: diagonal, complex ``[l, ...]``.
        b: above it, ``b_i = T_{i-1,i}``, of the same shape and dtype.
        c: below it, ``c_i = T_{i,i-1}``.
        x: ``[l, ..., channels]``.
        axis_name: axis of the mesh along the sequence.
        scans: the algorithm within a shard.

    >>> from vfejax.spectral.scans import PLATFORM
    >>> solve = jax.vmap(
    ...     lambda d, x: two_sided_solve(d, d, d, x, "sequence", PLATFORM), axis_name="sequence"
    ... )
    >>> jax.eval_shape(solve, jnp.full((2, 3), 1j), jnp.full((2, 3, 4), 1j)).shape
    (2, 3, 4)
    """
    fixed, k = jax.lax.stop_gradient((d, b * c))
    sides = _fractions(fixed, k, axis_name, True, scans)
    left, right = (g[..., None] for g in sides)
    before, after = (partial(neighbour, axis_name=axis_name, reverse=way) for way in (False, True))
    middle = _meet(fixed, k, sides, axis_name)[..., None]

    def solve(upper: Array, lower: Array, x: Array) -> Array:
        lower, upper = lower[..., None], after(upper)[..., None]
        onward = linear_sweep(-left * lower, left * x, axis_name, False, scans)
        back = linear_sweep(-right * upper, right * x, axis_name, True, scans)
        return middle * (x - lower * before(onward) - upper * after(back))

    def equations(y: Array) -> Array:
        return d[..., None] * y + c[..., None] * before(y) + after(b[..., None] * y)

    return jax.lax.custom_linear_solve(
        equations,
        x,
        solve=lambda _, x: solve(b, c, x),
        transpose_solve=lambda _, x: solve(c, b, x),
    )

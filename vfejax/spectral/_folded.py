"""The two-sided resolvent of long chains on a CPU: each chain folded in its middle, swept inward
from both ends and outward again.

Row r of a folded chain holds site r and its mirror image, site n - 1 - r, of all chains side by
side, ``[n / 2, 2 lanes]``. The inward sweep gives gL of the first half and gR of the second in one
vector per row, the outward sweep the other two, which starts from the same vector with its halves
swapped. The rows of both belong to the same pair of sites, so that neither the diagonal nor the
adjoint reverses an array.

XLA turns a loop whose iteration touches less than 1 KB into one kernel, and computes an array again
for each strided read of it unless a loop wrote it. So every sweep and every map over rows is a loop
of its own, with one output. Long chains are folded block by block.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.spectral.scans import pivot_reciprocal, reciprocal
from vfejax.types import Array

__all__ = [
    "Folded",
    "adjoint",
    "blocks",
    "bordered",
    "diagonal",
    "extended",
]

BLOCK = 2**15
"""Numbers in one block of a folded array: a few of these fit the second cache."""


class Folded(NamedTuple):
    """What the gradient reads besides the arguments and the diagonal.

    Attributes:
        inward: continued fractions from the ends to the middle, ``[blocks, rows + 1, 2 lanes]``;
            each block begins with the last row of the one before, the first with zero.
        outward: those from the middle to the ends; each block ends with the first row of the next,
            the last with the last row of ``inward``, its halves swapped.
    """

    inward: Array
    outward: Array


def blocks(lanes: int, n: int) -> tuple[int, int]:
    """Number of blocks and rows of each; the chain is extended to twice their product.

    >>> blocks(8, 512), blocks(8, 10_000)
    ((1, 256), (3, 1667))
    """
    num = max(1, -(-n * lanes // BLOCK))
    return num, -(-n // (2 * num))


def swap(x: Array) -> Array:
    """The halves of the last axis exchanged.

    >>> print(swap(jnp.arange(4)))
    [2 3 0 1]
    """
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([second, first], axis=-1)


def _fold(x: Array, start: Array, rows: int) -> Array:
    """Rows ``start .. start + rows - 1`` of the folded ``x [lanes, n]``."""
    first = jax.lax.dynamic_slice_in_dim(x, start, rows, 1)
    mirrored = jax.lax.dynamic_slice_in_dim(x, x.shape[1] - start - rows, rows, 1)
    return jnp.concatenate([first, mirrored[:, ::-1]]).T


def _unfold(rows: Array, start: Array, x: Array) -> Array:
    """``x [lanes, n]`` with these rows of its folded form written into it."""
    first, mirrored = jnp.split(rows.T, 2)
    x = jax.lax.dynamic_update_slice_in_dim(x, first, start, 1)
    last = x.shape[1] - start - rows.shape[0]
    return jax.lax.dynamic_update_slice_in_dim(x, mirrored[:, ::-1], last, 1)


def _row(x: Array, r: Array | int) -> Array:
    return jax.lax.dynamic_index_in_dim(x, r, keepdims=False)


def _put(x: Array, row: Array, r: Array | int) -> Array:
    return jax.lax.dynamic_update_index_in_dim(x, row, r, 0)


def _rows_of(row: Array, num: int) -> Array:
    return jnp.zeros((num, *row.shape), row.dtype)


def _up(step_fn: Callable, first: Array, num: int) -> tuple[Array, Array]:
    """``y_0 = first, y_{r+1} = step(r, y_r)``: the last one, and all ``[num + 1, ...]``."""

    def step(r: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        y = step_fn(r, carry[0])
        return y, _put(carry[1], y, r + 1)

    return jax.lax.fori_loop(0, num, step, (first, _put(_rows_of(first, num + 1), first, 0)))


def _down(step_fn: Callable, last: Array, num: int) -> tuple[Array, Array]:
    """``y_num = last, y_r = step(r, y_{r+1})``: the first one, and all ``[num + 1, ...]``."""

    def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        r = num - 1 - i
        y = step_fn(r, carry[0])
        return y, _put(carry[1], y, r)

    return jax.lax.fori_loop(0, num, step, (last, _put(_rows_of(last, num + 1), last, num)))


def _each(row_fn: Callable, num: int) -> Array:
    """``row_fn(r)`` for every row, ``[num, ...]``."""
    rows = _rows_of(jax.eval_shape(row_fn, 0), num)
    return jax.lax.fori_loop(0, num, lambda r, x: _put(x, row_fn(r), r), rows)


def _scaled(k: Array, g: Array) -> Array:
    return k.astype(g.dtype) * g


def _as(x: Array, like: Array) -> Array:
    """Complex ``x``, or its real part where ``like`` is real: the cotangent of ``like``."""
    return x if jnp.iscomplexobj(like) else jnp.real(x)


def bordered(k: Array, size: int) -> Array:
    """``k [lanes, n - 1]`` with zeros around it, ``[lanes, size + 1]``: column i couples site i - 1
    to site i.

    >>> print(bordered(jnp.ones((1, 1)), 3))
    [[0. 1. 0. 0.]]
    """
    return jnp.pad(k, ((0, 0), (1, size - k.shape[1])))


def extended(a: Array, z: Array, size: int) -> Array:
    """``a`` with sites that nothing is coupled to, of pivot ``1 - i Im z`` or 1.

    Args:
        a: ``[lanes, n]``.
        z: ``[lanes]``.
        size: sites wanted.

    Returns:
        ``[lanes, size]``.

    >>> print(extended(jnp.zeros((1, 1)), jnp.array([2 + 1j]), 2))
    [[0. 3.]]
    """
    unit = z + 1.0 if jnp.iscomplexobj(a) else jnp.real(z) + 1.0
    extra = jnp.broadcast_to(unit[:, None], (a.shape[0], size - a.shape[1]))
    return jnp.concatenate([a, extra], axis=1) if extra.size else a


def diagonal(a: Array, k: Array, z: Array) -> tuple[Array, Folded]:
    """``G_ii`` of the chains with diagonal a, couplings ``k = b c``, at z.

    Args:
        a: real or complex, ``[lanes, n]``, n >= 1.
        k: real or complex, ``[lanes, n - 1]``.
        z: complex, ``[lanes]``.

    Returns:
        G, complex ``[lanes, n]``, and :class:`Folded`. With O' the outward fraction of the next
        row, ``G = 1 / (1 / I - k O')``.

    >>> g, _ = diagonal(jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([1j]))
    >>> print(g.imag)
    [[0.5 0.5]]
    """
    num, rows = blocks(*a.shape)
    n, size = a.shape[1], 2 * num * rows
    a, k = extended(a, z, size), bordered(k, size)
    z = jnp.concatenate([z, z])

    def pivot(a: Array, kg: Array) -> Array:
        if jnp.iscomplexobj(a):
            return a - z - kg
        return jax.lax.complex(a - jnp.real(z), jnp.broadcast_to(-jnp.imag(z), a.shape)) - kg

    def inward(g: Array, start: Array) -> tuple[Array, Array]:
        sites, links = _fold(a, start, rows), _fold(k, start, rows + 1)
        return _up(
            lambda r, g: pivot_reciprocal(pivot(_row(sites, r), _scaled(_row(links, r), g))),
            g,
            rows,
        )

    def outward(
        carry: tuple[Array, Array], block: tuple[Array, Array]
    ) -> tuple[tuple[Array, Array], Array]:
        (g, result), (start, to_site) = carry, block
        sites, links = _fold(a, start, rows), _fold(k, start, rows + 1)
        g, back = _down(
            lambda r, g: pivot_reciprocal(pivot(_row(sites, r), _scaled(_row(links, r + 1), g))),
            g,
            rows,
        )

        def meet(r: Array) -> Array:
            side, inner = _row(to_site, r + 1), _scaled(_row(links, r + 1), _row(back, r + 1))
            # Beyond a pivot whose reciprocal is 0 nothing is felt, and that has no reciprocal.
            vanishes = side.real * side.real + side.imag * side.imag == 0.0
            return jnp.where(vanishes, 0.0, reciprocal(reciprocal(side) - inner))

        return (g, _unfold(_each(meet, rows), start, result)), back

    starts = jnp.arange(num, dtype=jnp.int32) * rows
    middle, there = jax.lax.scan(inward, jnp.zeros_like(z), starts)
    result = jnp.zeros(a.shape, z.dtype)
    (_, result), back = jax.lax.scan(outward, (swap(middle), result), (starts, there), reverse=True)
    return result[:, :n], Folded(there, back)


def adjoint(a: Array, k: Array, g: Array, folded: Folded, w: Array) -> tuple[Array, Array, Array]:
    """Cotangents of a, k and z for the cotangent w of G.

    With ``t = w G^2``, inward ``S_{r+1} = t_{r+1} + k O'^2 S_r``, outward ``Y_r = t_r + k I^2
    Y_{r+1}`` (k couples rows r and r + 1), the cotangents are ``-(S_r + k I^2 Y_{r+1})`` of a and
    ``O' S_r + I Y_{r+1}`` of k. The inward loop carries ``C_{r+1} = k O'^2 (t_r + C_r)``, so that
    ``S = t + C``.

    Args:
        a: ``[lanes, n]``; only its shape and dtype are read.
        k: ``[lanes, n - 1]``.
        g: G, ``[lanes, n]``.
        folded: of :func:`diagonal`.
        w: complex, ``[lanes, n]``.

    Returns:
        Arrays like a, k and z, real where a or k is.

    >>> a, k = jnp.zeros((1, 2)), jnp.ones((1, 1))
    >>> g, folded = diagonal(a, k, jnp.array([1j]))
    >>> print(adjoint(a, k, g, folded, jnp.ones_like(g))[2])  # of z
    [0.+0.j]
    """
    (num, rows), n = blocks(*a.shape), a.shape[1]
    size = 2 * num * rows
    links_of = bordered(k, size)
    w, g = (jnp.pad(x, ((0, 0), (0, size - n))) if size > n else x for x in (w, g))

    def read(start: Array) -> tuple[Array, Array]:
        return _fold(links_of, start, rows + 1), _fold(w * (g * g), start, rows)

    def link(links: Array, fractions: Array, r: Array) -> Array:
        fraction = _row(fractions, r + 1)
        return _scaled(_row(links, r + 1), fraction * fraction)

    def inward(carried: Array, block: tuple[Array, Array]) -> tuple[Array, Array]:
        start, back = block
        links, t = read(start)
        return _up(lambda r, c: link(links, back, r) * (_row(t, r) + c), carried, rows)

    def outward(carry: tuple[Array, ...], block: tuple[Array, ...]) -> tuple[tuple, None]:
        (y, a_part, k_part, z_part), (start, there, back, carried) = carry, block
        links, t = read(start)
        y, ys = _down(lambda r, y: _row(t, r) + link(links, there, r) * y, y, rows)

        def site(r: Array) -> Array:
            return _row(t, r) + _row(carried, r) + link(links, there, r) * _row(ys, r + 1)

        def bond(r: Array) -> Array:
            there_part = _row(back, r + 1) * (_row(t, r) + _row(carried, r))
            return _as(there_part + _row(there, r + 1) * _row(ys, r + 1), k)

        z_part = jax.lax.fori_loop(0, rows, lambda r, total: total + site(r), z_part)
        a_part = _unfold(_each(lambda r: _as(-site(r), a), rows), start, a_part)
        return (y, a_part, _unfold(_each(bond, rows), start, k_part), z_part), None

    starts = jnp.arange(num, dtype=jnp.int32) * rows
    none = jnp.zeros(folded.inward.shape[2:], g.dtype)
    _, carried = jax.lax.scan(inward, none, (starts, folded.outward))
    middle = slice(size // 2 - 1, size // 2 + 1)
    t_middle = jnp.reshape((w[:, middle] * g[:, middle] ** 2).T, none.shape)
    start = swap(t_middle + carried[-1, -2])
    empty = (jnp.zeros(g.shape, a.dtype), jnp.zeros((k.shape[0], size - 1), k.dtype), none)
    (_, a_part, k_part, z_part), _ = jax.lax.scan(
        outward, (start, *empty), (starts, *folded, carried), reverse=True
    )
    first, mirrored = jnp.split(z_part, 2)
    return a_part[:, :n], k_part[:, : n - 1], first + mirrored

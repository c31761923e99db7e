"""The adjoint of the resolvent of folded chains.

I and O are the fractions of the inward and of the outward sweep (:mod:`vfejax.spectral._folded`).
With ``t = w G^2``, inward ``S_{r+1} = t_{r+1} + k O'^2 S_r``, outward ``Y_r = t_r + k I^2 Y_{r+1}``
(k couples rows r and r + 1, and O' is the outward fraction of row r + 1), the cotangents are ``t_r
- S_r - Y_r`` of a and ``O' S_r + I Y_{r+1}`` of k.

S is carried from the first block to the middle one (``enter``), and Y back again (``leave``).
Blocks are swept anew wherever their fractions are needed.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.spectral._folded import (
    Chains,
    Folded,
    plan,
    sweep_inward,
    sweep_outward,
    turned,
)
from vfejax.spectral._folds import (
    down,
    each,
    fold,
    for_each_group,
    grouped,
    groups,
    joined,
    row,
    unfold,
    unfold_middle,
    up,
)
from vfejax.spectral.scans import scaled
from vfejax.types import Array

__all__ = ["adjoint"]


class _Weights(NamedTuple):
    """G and its cotangent, ``[lanes, n]``."""

    g: Array
    w: Array


class _Block(NamedTuple):
    """What the sums of a block are made of: I and S, ``[rows, 2 lanes]``, and O, ``[rows + 1, 2
    lanes]``.
    """

    inward: Array
    outward: Array
    sums: Array


class _Found(NamedTuple):
    """What a block gives: Y, ``[rows + 1, 2 lanes]``, and the cotangents of a and of k, ``[rows, 2
    lanes]``.
    """

    ys: Array
    a_part: Array
    k_part: Array


class _Way(NamedTuple):
    """What blocks hand on from the middle one to the first.

    Attributes:
        y: Y of the block's first row, ``[2 lanes]``.
        total: the cotangents of z so far, ``[2 lanes]``.
        parts: the cotangents of a and k so far, ``[lanes, n]`` and ``[lanes, n - 1]``.
        found: what the next block writes into.
        block: likewise.
    """

    y: Array
    total: Array
    parts: tuple[Array, Array]
    found: _Found
    block: _Block


def _link(links: Array, r: Array | int, fraction: Array) -> Array:
    return scaled(row(links, r), fraction * fraction)


def _as(x: Array, like: Array) -> Array:
    """Complex ``x``, or its real part where ``like`` is real: the cotangent of ``like``."""
    return x if jnp.iscomplexobj(like) else jnp.real(x)


def _inward(
    chains: Chains, weights: _Weights, start: Array | int, felt: Array, outward: Array
) -> tuple[Callable, Array, Array]:
    """``step(r, S_r)``, S of the first row of a block, and the link after its last one."""
    rows = outward.shape[0] - 1
    links = chains.links(start, rows)
    t = fold(start, rows, weights.w, weights.g, weights.g)

    def step(r: Array, s: Array) -> Array:
        return row(t, r + 1) + _link(links, r, row(outward, r + 1)) * s

    return step, t[0] + felt, _link(links, rows - 1, outward[rows])


def _sum_inward(
    chains: Chains,
    weights: _Weights,
    start: Array | int,
    felt: Array,
    outward: Array,
    into: Array,
) -> Array:
    """S of a block, in the place of ``into``."""
    step, first, _ = _inward(chains, weights, start, felt, outward)
    return up(step, first, into)


def _felt_after(
    chains: Chains, weights: _Weights, start: Array, felt: Array, outward: Array
) -> Array:
    """What reaches the row after a block, with no row of it kept."""
    step, first, link = _inward(chains, weights, start, felt, outward)
    return link * jax.lax.fori_loop(0, outward.shape[0] - 2, step, first)


def _sum_outward(
    chains: Chains,
    weights: _Weights,
    start: Array | int,
    y: Array,
    total: Array,
    block: _Block,
    into: _Found,
) -> tuple[Array, Array, _Found]:
    """Y of a block's first row from that of the row after it, ``total`` with the block's cotangents
    of z, and what it gives, in the place of ``into``.
    """
    inward, outward, sums = block
    rows, (lanes, n) = inward.shape[0], chains.a.shape
    links = chains.links(start, rows)
    t = fold(start, rows, weights.w, weights.g, weights.g)
    y, ys = down(lambda r, y: row(t, r) + _link(links, r, row(inward, r)) * y, y, into.ys)
    half = jnp.repeat(jnp.asarray([-(-n // 2), n // 2], jnp.int32), lanes)

    def site(r: Array) -> Array:
        return row(sums, r) + (row(ys, r) - row(t, r))

    def bond(r: Array) -> Array:
        return row(outward, r + 1) * row(sums, r) + row(inward, r) * row(ys, r + 1)

    def add(r: Array, total: Array) -> Array:
        return total + jnp.where(start + r < half, site(r), 0.0)

    a_part = each(lambda r, _: _as(-site(r), chains.a), into.a_part)
    # Complex where links are real, too: XLA unrolls a shorter loop before it looks for vectors.
    k_part = each(lambda r, _: bond(r), into.k_part)
    return y, jax.lax.fori_loop(0, rows, add, total), _Found(ys, a_part, k_part)


def _adjoint(
    a: Array, b: Array, c: Array, z: Array, s: Array, g: Array, folded: Folded, w: Array
) -> tuple[Array, Array, Array, Array]:
    chains, rows, starts, middle = plan(a, b, c, z, s)
    weights, n, none = _Weights(g, w), a.shape[1], jnp.zeros_like(chains.z)
    space = jnp.zeros((rows + 1, *none.shape), none.dtype)

    def enter(carry: tuple[Array, Array], block: tuple[Array, Array]) -> tuple[tuple, Array]:
        (felt, outward), (start, after) = carry, block
        _, outward = sweep_outward(chains, start, after, outward)
        return (_felt_after(chains, weights, start, felt, outward), outward), felt

    def leave(way: _Way, known: tuple[Array, ...]) -> tuple[_Way, None]:
        start, before, after, felt = known
        inward = sweep_inward(chains, start, before, way.block.inward)
        _, outward = sweep_outward(chains, start, after, way.block.outward)
        sums = _sum_inward(chains, weights, start, felt, outward, way.block.sums)
        block = _Block(inward, outward, sums)
        y, total, found = _sum_outward(chains, weights, start, way.y, way.total, block, way.found)
        a_part, k_part = (
            unfold(_as(x, to), start, to) for x, to in zip(found[1:], way.parts, strict=True)
        )
        return _Way(y, total, (a_part, k_part), found, block), None

    (felt, outward), felts = jax.lax.scan(enter, (none, space), (starts, folded.leaving))
    sums = _sum_inward(chains, weights, middle, felt, folded.outward, space[1:])
    into = _Found(space, jnp.zeros((rows, *none.shape), a.dtype), space[1:])
    center = _Block(folded.inward, folded.outward, sums)
    y, total, found = _sum_outward(
        chains, weights, middle, turned(n, middle, sums), none, center, into
    )
    parts = jnp.zeros_like(chains.a), jnp.zeros_like(chains.b)
    way = _Way(y, total, parts, found, _Block(space[1:], outward, sums))
    way, _ = jax.lax.scan(
        leave, way, (starts, folded.entering, folded.leaving, felts), reverse=True
    )
    a_part, k_part = (
        unfold_middle(_as(x, to), middle, to) for x, to in zip(found[1:], way.parts, strict=True)
    )
    first, mirrored = jnp.split(way.total, 2)
    b_part, c_part = (k_part * scaled(s[:, None], x) for x in (chains.c, chains.b))
    return a_part, b_part[:, : n - 1], c_part[:, : n - 1], first + mirrored


def adjoint(
    a: Array, b: Array, c: Array, z: Array, s: Array, g: Array, folded: Folded, w: Array
) -> tuple[Array, Array, Array, Array]:
    """Cotangents of a, b, c and z for the cotangent w of G.

    Args:
        a: ``[lanes, n]``.
        b: ``[lanes, n - 1]``.
        c: ``[lanes, n - 1]``.
        z: ``[lanes]``.
        s: what multiplies them before they are swept, ``[lanes]``.
        g: G, ``[lanes, n]``.
        folded: of :func:`vfejax.spectral._folded.diagonal`.
        w: complex, ``[lanes, n]``.

    Returns:
        Arrays like a, b, c and z, real where a is, and where b and c are.

    >>> from vfejax.spectral._folded import diagonal
    >>> a, b, z = jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([1j])
    >>> s = jnp.ones(1)
    >>> g, folded = diagonal(a, b, b, z, s)
    >>> print(adjoint(a, b, b, z, s, g, folded, jnp.ones_like(g))[3])
    [0.+0.j]
    """
    num = groups(a.shape[0], a.dtype == b.dtype == jnp.float32)
    *arguments, w = (grouped(x, num) for x in (a, b, c, z, s, g, w))
    parts = for_each_group(_adjoint, *arguments, folded, w)
    a_part, b_part, c_part, z_part = (joined(x, a.shape[0]) for x in parts)
    return a_part, b_part, c_part, z_part

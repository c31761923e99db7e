"""The two-sided resolvent of folded chains on a CPU, swept inward from both ends and outward again.

The inward sweep gives gL of the first half and gR of the second in one vector per row, the outward
sweep the other two, which starts from the same vector with its halves swapped. The rows of both
belong to the same pair of sites, so that neither the diagonal nor the adjoint reverses an array.

What crosses an edge of a block of rows is kept, and the sweeps within a block are repeated where
they are needed again. See :mod:`vfejax.spectral._folds` for the layout.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.spectral._folds import (
    blocks,
    down,
    each,
    fold,
    for_each_group,
    grouped,
    groups,
    joined,
    row,
    swap,
    unfold,
    unfold_middle,
    up,
)
from vfejax.spectral.scans import pivot_reciprocal, reciprocal, scaled
from vfejax.types import Array

__all__ = [
    "Chains",
    "Folded",
    "diagonal",
    "meet",
    "plan",
    "sweep_inward",
    "sweep_outward",
    "turned",
]


class Folded(NamedTuple):
    """What the gradient reads besides the arguments and the diagonal, of every group of chains, in
    the unit in which they are swept.

    Attributes:
        entering: what the first row of each block but the middle one feels of the row before, ``k
            I``, ``[..., blocks - 1, 2 lanes]``.
        leaving: the outward fraction of the row after each of them, ``[..., blocks - 1, 2 lanes]``.
        inward: the fractions I of the middle block, ``[..., rows, 2 lanes]``.
        outward: the fractions O of the middle block and of the row after it, ``[..., rows + 1, 2
            lanes]``.
    """

    entering: Array
    leaving: Array
    inward: Array
    outward: Array


class Chains(NamedTuple):
    """Chains ``[lanes, n]`` and ``[lanes, n - 1]``, and of their rows ``[2 lanes]`` what multiplies
    them before they are swept, and z, multiplied.
    """

    a: Array
    b: Array
    c: Array
    s: Array
    z: Array

    def multiplied(self, x: Array) -> Array:
        """Rows ``[rows, 2 lanes]`` in the unit of the sweeps; and a resolvent of that unit in that
        of the arguments.
        """
        return scaled(self.s[None], x)

    def links(self, start: Array | int, rows: int) -> Array:
        """Rows of the folded product of the off-diagonals."""
        if isinstance(start, int):
            b, c = (self.multiplied(fold(start, rows, x)) for x in (self.b, self.c))
            return b * c
        # XLA is quicker at this form where blocks start anywhere, at half the speed where not.
        return fold(start, rows, self.b, self.c, scale=self.s[: self.a.shape[0]])


def plan(a: Array, b: Array, c: Array, z: Array, s: Array) -> tuple[Chains, int, Array, int]:
    """How chains are swept.

    Args:
        a: ``[lanes, n]``.
        b: ``[lanes, n - 1]``.
        c: ``[lanes, n - 1]``.
        z: ``[lanes]``.
        s: what multiplies them, real, ``[lanes]``.

    Returns:
        Chains with a link at least, rows of a block, starts of all blocks but the middle one, and
        its start.

    >>> a, b, z = jnp.zeros((1, 9000)), jnp.ones((1, 8999)), jnp.array([1j])
    >>> plan(a, b, b, z, jnp.ones(1))[1:]
    (1500, Array([   0, 1500], dtype=int32), 3000)
    """
    num, rows = blocks(a.shape[1])
    if a.shape[1] == 1:
        b, c = (jnp.pad(x, ((0, 0), (0, 1))) for x in (b, c))
    starts = jnp.arange(num - 1, dtype=jnp.int32) * rows
    s, z = (jnp.concatenate([x, x]) for x in (s, z))
    return Chains(a, b, c, s, scaled(s, z)), rows, starts, (num - 1) * rows


def _pivot(chains: Chains, a: Array, felt: Array) -> Array:
    a, z = scaled(chains.s, a), chains.z
    if jnp.iscomplexobj(a):
        return a - z - felt
    return jax.lax.complex(a - jnp.real(z), jnp.broadcast_to(-jnp.imag(z), a.shape)) - felt


def _inward(
    chains: Chains, start: Array | int, felt: Array, rows: int
) -> tuple[Callable, Array, Array]:
    """``step(r, I_r)``, I of the first row of a block, and the links after its last one."""
    sites, links = fold(start, rows, chains.a), chains.links(start, rows)

    def step(r: Array, g: Array) -> Array:
        return pivot_reciprocal(_pivot(chains, row(sites, r + 1), scaled(row(links, r), g)))

    return step, pivot_reciprocal(_pivot(chains, sites[0], felt)), links[-1]


def sweep_inward(chains: Chains, start: Array | int, felt: Array, into: Array) -> Array:
    """``I_r = 1 / (d_r - k I_{r-1})`` of a block.

    Args:
        chains: of :func:`plan`.
        start: first row of the block.
        felt: what the first row feels, ``[2 lanes]``.
        into: ``[rows, 2 lanes]``; what it holds is lost.

    >>> a, b, z = jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([1j])
    >>> chains, *_ = plan(a, b, b, z, jnp.ones(1))
    >>> print(sweep_inward(chains, 0, jnp.zeros(2) + 0j, jnp.zeros((1, 2)) + 0j))
    [[0.+1.j 0.+1.j]]
    """
    step, first, _ = _inward(chains, start, felt, into.shape[0])
    return up(step, first, into)


def _felt_after(chains: Chains, start: Array, felt: Array, rows: int) -> Array:
    """What the row after a block feels, with no row of it kept."""
    step, first, link = _inward(chains, start, felt, rows)
    return scaled(link, jax.lax.fori_loop(0, rows - 1, step, first))


def sweep_outward(chains: Chains, start: Array | int, g: Array, into: Array) -> tuple[Array, Array]:
    """``O_r = 1 / (d_r - k O_{r+1})`` of a block: that of its first row, and O.

    Args:
        chains: of :func:`plan`.
        start: first row of the block.
        g: O of the row after the block, ``[2 lanes]``.
        into: ``[rows + 1, 2 lanes]``; what it holds is lost.

    >>> a, b, z = jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([1j])
    >>> chains, *_ = plan(a, b, b, z, jnp.ones(1))
    >>> print(sweep_outward(chains, 0, jnp.array([1j, 1j]), jnp.zeros((2, 2)) + 0j)[0])
    [0.+0.5j 0.+0.5j]
    """
    rows = into.shape[0] - 1
    sites, links = fold(start, rows, chains.a), chains.links(start, rows)

    def step(r: Array, g: Array) -> Array:
        return pivot_reciprocal(_pivot(chains, row(sites, r), scaled(row(links, r), g)))

    return down(step, g, into)


def turned(n: int, start: int, inward: Array) -> Array:
    """What the row after the middle block passes outward: a row of this block, halves swapped.

    Args:
        n: sites.
        start: first row of the middle block.
        inward: what its rows pass inward, ``[rows, 2 lanes]``.

    >>> print(turned(3, 0, jnp.array([[1, 2], [3, 4]])))
    [2 1]
    """
    mirrored = n - 1 - 2 * start - inward.shape[0]
    return swap(inward[mirrored]) if mirrored >= 0 else jnp.zeros_like(inward[0])


def meet(chains: Chains, start: Array | int, inward: Array, outward: Array) -> Array:
    """G of a block, in the place of its inward fractions.

    Args:
        chains: of :func:`plan`.
        start: first row of the block.
        inward: I, ``[rows, 2 lanes]``.
        outward: O, ``[rows + 1, 2 lanes]``.

    >>> a, b, z = jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([1j])
    >>> chains, *_ = plan(a, b, b, z, jnp.ones(1))
    >>> print(meet(chains, 0, jnp.full((1, 2), 1j), jnp.full((2, 2), 1j)).imag)
    [[0.5 0.5]]
    """
    links = chains.links(start, inward.shape[0])

    def g(r: Array, side: Array) -> Array:
        inner = scaled(row(links, r), row(outward, r + 1))
        # Beyond a pivot whose reciprocal is 0 nothing is felt, and that has no reciprocal.
        vanishes = side.real * side.real + side.imag * side.imag == 0.0
        return jnp.where(vanishes, 0.0, reciprocal(reciprocal(side) - inner))

    return each(g, inward)


def _diagonal(a: Array, b: Array, c: Array, z: Array, s: Array) -> tuple[Array, Folded]:
    chains, rows, starts, middle = plan(a, b, c, z, s)
    none = jnp.zeros_like(chains.z)
    space = jnp.zeros((rows + 1, *none.shape), none.dtype)

    def enter(felt: Array, start: Array) -> tuple[Array, Array]:
        return _felt_after(chains, start, felt, rows), felt

    def leave(carry: tuple[Array, ...], block: tuple[Array, Array]) -> tuple[tuple, Array]:
        (g, result, inward, outward), (start, felt) = carry, block
        inward = sweep_inward(chains, start, felt, inward)
        first, outward = sweep_outward(chains, start, g, outward)
        inward = meet(chains, start, inward, outward)
        result = unfold(chains.multiplied(inward), start, result)
        return (first, result, inward, outward), g

    felt, entering = jax.lax.scan(enter, none, starts)
    inward = sweep_inward(chains, middle, felt, space[1:])
    g, outward = sweep_outward(chains, middle, turned(a.shape[1], middle, inward), space)
    center = meet(chains, middle, inward, outward)
    carry = g, jnp.zeros(a.shape, z.dtype), inward, outward
    (_, result, *_), leaving = jax.lax.scan(leave, carry, (starts, entering), reverse=True)
    return unfold_middle(chains.multiplied(center), middle, result), Folded(
        entering, leaving, inward, outward
    )


def diagonal(a: Array, b: Array, c: Array, z: Array, s: Array) -> tuple[Array, Folded]:
    """``G_ii`` of the chains with diagonal a and off-diagonals b and c, at z.

    Args:
        a: real or complex, ``[lanes, n]``, n >= 1.
        b: real or complex, ``[lanes, n - 1]``.
        c: of the same dtype and shape.
        z: complex, ``[lanes]``.
        s: what multiplies all of them before they are swept, and G after it, real, ``[lanes]``.

    Returns:
        G, complex ``[lanes, n]``, and :class:`Folded`. With O' the outward fraction of the next
        row, ``G = 1 / (1 / I - k O')``.

    >>> a, b, z = jnp.zeros((1, 2)), jnp.ones((1, 1)), jnp.array([1j])
    >>> g, _ = diagonal(a, b, b, z, jnp.ones(1))
    >>> print(g.imag)
    [[0.5 0.5]]
    """
    num = groups(a.shape[0], a.dtype == b.dtype == jnp.float32)
    chains = tuple(grouped(x, num) for x in (a, b, c, z, s))
    g, folded = for_each_group(_diagonal, *chains)
    return joined(g, a.shape[0]), folded

"""Both continued fractions of a chain in one scan, with the sweeps from both ends side by side.

Source: see :mod:`vfejax.spectral.resolvent`.
"""

from typing import NamedTuple

import jax.numpy as jnp

from vfejax.spectral.recurrence import (
    Scans,
    linear_scan,
    moebius_scan,
    pad_back,
    pad_front,
    reciprocal,
)
from vfejax.types import Array

__all__ = ["Sides", "both_ways", "diagonal_tangent", "sides", "sum_both"]


def both_ways(x: Array) -> Array:
    """``[n, ...]`` to ``[n, 2, ...]``: the sequence and its reversal, so that one scan does both
    sweeps.

    >>> print(both_ways(jnp.array([1, 2, 3])).T)
    [[1 2 3]
     [3 2 1]]
    """
    return jnp.stack([x, x[::-1]], axis=1)


def sum_both(x: Array) -> Array:
    """``[n, 2, ...]`` to ``[n, ...]``: the reversed half turned back and added.

    >>> print(sum_both(both_ways(jnp.array([1, 2, 3]))))
    [2 4 6]
    """
    return x[:, 0] + x[::-1, 1]


class Sides(NamedTuple):
    """Both continued fractions of a chain and what they make of each site, sites first.

    Attributes:
        both: ``[n, 2, ...]``: gL in order and gR in reverse order, finite at poles.
        diagonal: G_ii, ``[n, ...]``.
    """

    both: Array
    diagonal: Array


def sides(d: Array, k: Array, scans: Scans) -> Sides:
    """The continued fractions from both ends, by one scan, and G.

    Args:
        d: ``a - z``, complex ``[n, ...]``.
        k: ``b c``, ``[n - 1, ...]``.
        scans: the algorithm.

    Returns:
        :class:`Sides`.

    >>> from vfejax.spectral.scans import PLATFORM
    >>> print(sides(jnp.full(2, 2.0 + 0j), -4.0 * jnp.ones(1), PLATFORM).diagonal.real)
    [0.25 0.25]
    """
    k_both = both_ways(k)
    both = moebius_scan(both_ways(d), k_both, scans)
    coupled = pad_front(k_both.astype(both.dtype) * both[:-1])
    return Sides(both, reciprocal(d - sum_both(coupled)))


def diagonal_tangent(
    chain: Sides, k: Array, d_change: Array, k_change: Array, scans: Scans
) -> Array:
    """``dG_ii = G_ii^2 (dd_i + u_i + v_i)``: what site i feels of the changes to its right,

        u_i = k_i gR_{i+1}^2 u_{i+1} + gR_{i+1} dk_i - dd_i,

    and v likewise to its left, as one scan. For the cotangent w of G the transpose of this is, with
    ``t = w G^2``,

        S^L_j = t_j + k_{j-1} gR_j^2 S^L_{j-1},   S^R_j = t_j + k_j gL_j^2 S^R_{j+1},
        dF/dd = t - S^L - S^R,   dF/dk_i = gR_{i+1} S^L_i + gL_i S^R_{i+1}.

    Args:
        chain: of :func:`sides`; the last entry of ``both`` is not read.
        k: ``b c``, ``[n - 1, ...]``.
        d_change: dd, complex ``[n, ...]``.
        k_change: dk, ``[n - 1, ...]``.
        scans: the algorithm.

    Returns:
        dG, ``[n, ...]``.

    >>> from vfejax.spectral.scans import PLATFORM
    >>> d, k = jnp.full(2, 2.0 + 0j), jnp.zeros(1)
    >>> chain = sides(d, k, PLATFORM)
    >>> print(diagonal_tangent(chain, k, jnp.ones_like(d), k, PLATFORM).real)
    [-0.25 -0.25]
    """
    opposite = chain.both[::-1, ::-1][1:]
    links = both_ways(k).astype(opposite.dtype) * opposite**2
    k_part = pad_back(opposite * both_ways(k_change).astype(opposite.dtype))
    felt = linear_scan(links, k_part - both_ways(d_change), True, scans)
    return chain.diagonal**2 * (d_change + sum_both(felt))

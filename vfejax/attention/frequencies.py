"""Numbers of turns around a ring: distinct integers, as close as possible to given numbers.

A pair of channels that turns n times on a ring of N tokens has the same angle at i and at i + N if
n is an integer. Numbers above N/2 repeat the smaller ones: n and N - n turn alike, in opposite
directions. A number coprime to N gives every token of the ring an angle of its own.
"""

from math import gcd

import numpy as np

__all__ = ["LARGEST_CIRCUMFERENCE", "nearest_distinct", "nearest_turns", "spaced"]

LARGEST_CIRCUMFERENCE = 2**29 - 1
"""Tokens on the largest ring whose angles 32-bit integers keep exact."""


def nearest_distinct(targets: np.ndarray, largest: int) -> np.ndarray:
    """Distinct integers in ``[1, largest]`` with the least sum of squared distances to the targets.

    The integers descend as the targets do. With j counted from the slowest, ``n_j - j`` does not
    descend, so the best real numbers are the isotonic regression of ``t_j - j``,

        max over i <= j, min over l >= j, of the mean of (t_i - i, ..., t_l - l),

    and rounding and clipping them gives the best integers. O(m^2) numbers for m targets.

    Args:
        targets: real numbers that do not ascend, ``[m]``.
        largest: upper bound, at least m.

    Returns:
        Descending integers ``[m]``.

    Source: Robertson, Wright and Dykstra, Order restricted statistical inference (1988), theorem
    1.4.4, for the formula. That rounding keeps the optimum follows from its level sets: those at n
    + 1/2 are the same for the integers, since (n + 1 - t)^2 - (n - t)^2 = 2 (n + 1/2 - t).

    >>> nearest_distinct(np.array([7.6, 1.2, 1.1, 0.3]), 8).tolist()
    [8, 3, 2, 1]
    """
    count = targets.size
    shift = np.arange(count)
    sums = np.concatenate([[0.0], np.cumsum(targets[::-1] - shift)])
    lengths = np.maximum(shift[None, :] - shift[:, None] + 1, 1)
    means = (sums[None, 1:] - sums[:-1, None]) / lengths
    level = [means[: j + 1, j:].min(axis=1).max() for j in range(count)]
    steps = np.clip(np.rint(level), 1, largest - count + 1).astype(np.int64)
    return (steps + shift)[::-1]


def spaced(count: int, largest: int) -> np.ndarray:
    """Distinct integers nearest to a geometric sequence from ``largest`` down to 1, ends included.

    The slow end of a long sequence has more terms than integers; there it is 1, 2, 3, and so on.

    Args:
        count: how many, at least 1; one alone is 1.
        largest: the first one, at least ``count``.

    Returns:
        Descending integers ``[count]``.

    >>> spaced(6, 512).tolist()
    [512, 147, 42, 12, 3, 1]
    >>> spaced(6, 8).tolist()
    [8, 5, 4, 3, 2, 1]
    """
    return nearest_distinct(np.geomspace(1, largest, count)[::-1], largest)


def nearest_turns(targets: np.ndarray, circumference: int) -> np.ndarray:
    """Distinct integers in ``[1, N/2]`` nearest to the targets, one of them coprime to N.

    Where the nearest ones all share a factor with N, the slowest moves to the nearest coprime
    number below the others; 1 always is one.

    Args:
        targets: numbers of turns that do not ascend, ``[m]``.
        circumference: N, tokens on the ring, at least 2 m.

    Returns:
        Descending integers ``[m]``.

    >>> nearest_turns(np.array([1.9]), 12).tolist()  # 2 divides 12
    [1]
    """
    turns = nearest_distinct(targets, circumference // 2)
    if all(gcd(int(n), circumference) > 1 for n in turns):
        above = int(turns[-2]) if turns.size > 1 else circumference // 2 + 1
        coprime = [n for n in range(1, above) if gcd(n, circumference) == 1]
        turns[-1] = min(coprime, key=lambda n: abs(n - targets[-1]))
    return turns

"""Budgets: whole numbers of tokens for each patch, with limits for one and a sum for all.

    t_i = min(K_max, K_min + lambda pi_i),    sum_i t_i = budget

Every patch has K_min tokens. The rest is shared in proportion to pi, and what exceeds K_max flows
on to the others (water-filling). A sort finds which patches are full; the others share what is left
by a softmax over themselves, so that the derivative is exact and no search is unrolled. With K_min
= 0 and K_max = 1 this is a relaxed top-K: as pi grows sharper, the most probable ones have 1 each.

(A formula K_min + (K_max - K_min) softmax would fix the sum near p K_min, whatever the budget.)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from vfejax.numerics import as_floating
from vfejax.types import Array

__all__ = [
    "Allocation",
    "allocate",
    "check_budget",
    "relaxed_tokens",
    "straight_through",
    "token_mask",
    "whole_tokens",
]

_LARGEST_SUM = 2**31 - 1


class Allocation(NamedTuple):
    """Tokens of each patch: ``tokens [p]``, int32, which sum to the budget, and ``relaxed [p]``,
    the real numbers before rounding.
    """

    tokens: Array
    relaxed: Array


def check_budget(num_patches: int, budget: int, k_min: int, k_max: int) -> None:
    """Refuse a budget that the limits of the patches cannot make.

    Args:
        num_patches: p.
        budget: tokens of all patches.
        k_min, k_max: the fewest and the most tokens of a patch.

    Raises:
        ValueError: with the numbers.

    >>> check_budget(10, 100, 64, 400)
    Traceback (most recent call last):
    ValueError: budget must be 640 to 4000 for 10 patches of 64 to 400 tokens, got 100
    """
    if not 0 <= k_min <= k_max:
        raise ValueError(f"k_min and k_max must satisfy 0 <= k_min <= k_max, got {k_min}, {k_max}")
    least, most = num_patches * k_min, num_patches * k_max
    if most > _LARGEST_SUM:
        raise ValueError(
            f"k_max times the number of patches must be at most {_LARGEST_SUM}, got {k_max} for "
            f"{num_patches} patches"
        )
    if not least <= budget <= most:
        raise ValueError(
            f"budget must be {least} to {most} for {num_patches} patches of {k_min} to {k_max} "
            f"tokens, got {budget}"
        )


def _check(log_pi: Array, budget: int, k_min: int, k_max: int) -> Array:
    log_pi = as_floating(log_pi, "log_pi")
    if log_pi.ndim != 1 or log_pi.size == 0:
        raise ValueError(f"log_pi must have shape [p], not empty, got {list(log_pi.shape)}")
    check_budget(log_pi.size, budget, k_min, k_max)
    return log_pi


def _full(log_pi: Array, spare: int, room: int) -> Array:
    """Which patches reach the cap, when ``spare`` tokens are shared and each has ``room``."""
    order = jnp.argsort(log_pi, descending=True, stable=True)
    falling = log_pi[order]
    # Of the m-th largest and all smaller ones: the share of the m-th.
    share = jnp.exp(falling - jax.lax.cumlogsumexp(falling, reverse=True))
    left = spare - room * jnp.arange(log_pi.size, dtype=log_pi.dtype)
    overflows = jnp.cumprod((left * share >= room).astype(jnp.int32))
    return jnp.zeros(log_pi.size, bool).at[order].set(overflows == 1)


def relaxed_tokens(log_pi: Array, budget: int, k_min: int = 64, k_max: int = 400) -> Array:
    """Real numbers of tokens between the limits, whose sum is the budget.

    Their derivative is exact: patches that are full stay full, and the others share by a softmax.

    Args:
        log_pi: log probabilities up to a constant, ``[p]``; -inf comes after all others.
        budget: tokens of all patches.
        k_min, k_max: the fewest and the most tokens of a patch.

    Returns:
        ``[p]``; all NaN when one of ``log_pi`` is.

    Raises:
        ValueError: for a budget that the limits cannot make, or another shape.

    >>> relaxed_tokens(jnp.log(jnp.array([0.5, 0.25, 0.25])), 10, 1, 4).tolist()
    [4.0, 3.0, 3.0]
    """
    log_pi = _check(log_pi, budget, k_min, k_max)
    # A floor far below all that counts: -inf minus -inf would be NaN.
    floor = jnp.finfo(log_pi.dtype).min / 4
    logits = jnp.where(log_pi < floor, floor, log_pi)
    spare, room = budget - log_pi.size * k_min, k_max - k_min
    full = jax.lax.stop_gradient(_full(logits, spare, room))
    rest = spare - room * jnp.sum(full).astype(log_pi.dtype)
    # Where all are full nothing is left to share, and a softmax over nothing would be NaN.
    among = jnp.where(full & ~jnp.all(full), -jnp.inf, logits)
    return k_min + jnp.where(full, jnp.full_like(logits, room), rest * jax.nn.softmax(among))


def _fill(amount: Array, capacity: Array) -> Array:
    """Give ``amount`` to entries in their order, each up to its ``capacity``; whole numbers."""
    before = jnp.cumsum(capacity, dtype=capacity.dtype) - capacity
    return jnp.clip(amount - before, 0, capacity)


def _missing(counts: Array, budget: int) -> Array:
    return budget - jnp.sum(counts, dtype=counts.dtype)


def whole_tokens(relaxed: Array, budget: int, k_min: int = 64, k_max: int = 400) -> Array:
    """Whole numbers of tokens that keep the limits and the sum, by the largest remainders.

    Of equal remainders the first patch is served first. The sum is exact whatever the rounding of
    the real numbers was: it is made in integers.

    Args:
        relaxed: real numbers of tokens, ``[p]``.
        budget: tokens of all patches.
        k_min, k_max: the fewest and the most tokens of a patch.

    Returns:
        int32 ``[p]``; all -1 when a number is NaN, for which there is no integer.

    Raises:
        ValueError: for a budget that the limits cannot make, or another shape.

    >>> whole_tokens(jnp.array([1.5, 1.5, 2.0]), 5, 1, 4).tolist()
    [2, 1, 2]
    """
    relaxed = _check(relaxed, budget, k_min, k_max)
    unknown = jnp.isnan(relaxed).any()
    floor = jnp.clip(jnp.floor(relaxed), k_min, k_max)
    below = jnp.where(unknown, k_min, floor).astype(jnp.int32)
    remainder = jnp.where(unknown, 0.0, relaxed - floor)
    order = jnp.argsort(remainder, descending=True, stable=True)
    counts = below[order]
    counts += _fill(_missing(counts, budget), jnp.minimum(k_max - counts, 1))
    # What rounding of the real numbers may have left, in either direction.
    counts += _fill(_missing(counts, budget), k_max - counts)
    counts -= _fill(-_missing(counts, budget), counts - k_min)
    tokens = jnp.zeros_like(counts).at[order].set(counts)
    return jnp.where(unknown, -1, tokens)


def allocate(log_pi: Array, budget: int, k_min: int = 64, k_max: int = 400) -> Allocation:
    """Tokens of each patch from the belief where to look.

    Args:
        log_pi: log probabilities up to a constant, ``[p]``.
        budget: tokens of all patches.
        k_min, k_max: the fewest and the most tokens of a patch.

    Raises:
        ValueError: for a budget that the limits cannot make, or another shape.

    >>> allocate(jnp.zeros(3), 200).tokens.tolist()
    [67, 67, 66]
    """
    relaxed = relaxed_tokens(log_pi, budget, k_min, k_max)
    return Allocation(whole_tokens(relaxed, budget, k_min, k_max), relaxed)


def straight_through(log_pi: Array, budget: int, k_min: int = 64, k_max: int = 400) -> Array:
    """Whole numbers of tokens as real ones, with the gradient of the relaxed ones.

    With ``k_min = 0`` and ``k_max = 1`` these are 1 for the ``budget`` most probable patches and 0
    for those that are dropped: a straight-through top-K.

    Args:
        log_pi: log probabilities up to a constant, ``[p]``.
        budget: tokens of all patches.
        k_min, k_max: the fewest and the most tokens of a patch.

    Returns:
        ``[p]``; NaN where :func:`relaxed_tokens` is.

    Raises:
        ValueError: for a budget that the limits cannot make, or another shape.

    >>> straight_through(jnp.array([0.0, 2.0, 1.0]), 2, 0, 1).tolist()
    [0.0, 1.0, 1.0]
    """
    found = allocate(log_pi, budget, k_min, k_max)
    gap = found.tokens.astype(found.relaxed.dtype) - found.relaxed
    return found.relaxed + jax.lax.stop_gradient(gap)


def token_mask(tokens: Array, k_max: int) -> Array:
    """How far each of the ``k_max`` tokens of a patch is kept: the first ``tokens`` of them.

    Args:
        tokens: of each patch, ``[p]``; between two whole numbers the last token counts in part,
            so that a loss of what was kept has a gradient.
        k_max: the most tokens of a patch.

    Returns:
        ``[p, k_max]``, from 0 to 1.

    >>> token_mask(jnp.array([2.0, 0.5]), 3).tolist()
    [[1.0, 1.0, 0.0], [0.5, 0.0, 0.0]]
    """
    return jnp.clip(tokens[:, None] - jnp.arange(k_max, dtype=tokens.dtype)[None], 0.0, 1.0)

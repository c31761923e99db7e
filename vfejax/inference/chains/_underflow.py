"""Whether underflow made a recursion on probabilities lose anything that counts.

Normalisers below the square root of the smallest number are not safe. Above it a state can still be
lost at one observation, and be what explains all that follow, each of which adds a little. So a
state that underflows must be reached again at once, as all states are, with far more than was lost.
A sum of positive numbers keeps the relative error of the worst of them, so that no later
observation can make the loss larger.
"""

from typing import Any

import jax
import jax.numpy as jnp

from vfejax.types import Array

__all__ = ["divided", "kept", "limit", "negligible"]


def limit(dtype: Any) -> float:
    """The square root of the smallest number: normalisers above it are safe.

    Args:
        dtype: of the probabilities.

    >>> limit("float64") < 1e-150
    True
    """
    return float(jnp.finfo(dtype).tiny) ** 0.5


def divided(joint: Array, total: Array) -> Array:
    """``joint / total``, and ``joint`` where the total is not safe: its derivatives are finite.

    Args:
        joint: probabilities.
        total: what to divide them by.

    >>> divided(jnp.ones(2), jnp.array([2.0, 0.0])).tolist()
    [0.5, 1.0]
    """
    return joint / jnp.where(total <= limit(total.dtype), 1.0, total)


def negligible(dtype: Any, num_states: int) -> tuple[float, float]:
    """Numbers that may have underflowed, and those beside which as many of them count as nothing.

    Args:
        dtype: of the probabilities.
        num_states: how many are added up.

    >>> negligible("float64", 10)[0] < 1e-290
    True
    """
    info = jnp.finfo(dtype)
    floor = float(info.tiny / info.eps)
    return floor, num_states * floor / float(info.eps)


def kept(before: Array, rows: Array, likelihood: Array, totals: Array, steps: Array) -> Array:
    """Whether nothing is lost for good where ``before * likelihood / totals`` follow one another.

    Args:
        before: probabilities, ``[t, k]``, in the order of the steps.
        rows: log likelihoods ``[t, k]`` with their ``likelihood``.
        totals: sums of the products, ``[t]``.
        steps: transitions between them.

    >>> before, rows = jnp.array([[0.5, 0.5], [1.0, 0.0]]), jnp.array([[0.0, -800.0], [0.0, 0.0]])
    >>> bool(kept(before, rows, jnp.exp(rows), jnp.ones(2), jnp.eye(2)))
    False
    """
    floor, enough = negligible(before.dtype, before.shape[1])

    def by_steps() -> Array:
        after = before * likelihood / totals[:, None]
        lost = (after < floor) & (before > 0) & (rows > -jnp.inf)
        reached = jnp.min(before[1:], axis=1) > enough
        # What goes through a smaller entry may underflow by itself.
        smallest = jnp.min(jnp.where(steps == 0, 1.0, steps), initial=1.0)
        lost = jnp.any(lost[:-1], axis=1) | (smallest < float(jnp.finfo(before.dtype).eps))
        return jnp.all(~lost | reached)

    all_reached = jnp.min(steps, initial=1.0) > enough
    return jax.lax.cond(all_reached, lambda: all_reached, by_steps)

"""Checks that numbers are in their range, where their values are known."""

import jax
import numpy as np

from vfejax.types import Array

__all__ = ["check_at_least_0"]


def check_at_least_0(name: str, value: Array | float, most: float = np.inf) -> None:
    """Refuse a number below 0 or above ``most``; one that is traced passes.

    Args:
        name: of the argument.
        value: a number, or an array of them.
        most: the largest that is allowed.

    Raises:
        ValueError: naming argument, limits and value.

    >>> check_at_least_0("keep", 1.5, most=1)
    Traceback (most recent call last):
    ValueError: keep must be from 0 to 1, got 1.5
    """
    if isinstance(value, jax.core.Tracer):
        return
    if np.any((np.asarray(value) < 0) | (np.asarray(value) > most)):
        limits = "at least 0" if np.isinf(most) else f"from 0 to {most:g}"
        raise ValueError(f"{name} must be {limits}, got {value}")

"""Random keys from seeds, all of whose bits count."""

import jax
import numpy as np

from vfejax.types import Array

__all__ = ["LARGEST_SEED", "random_key"]

LARGEST_SEED = 2**63 - 1  # what TOML can hold


def random_key(seed: int) -> Array:
    """The random key of a seed in ``[0, 2^63)``.

    Without 64-bit mode ``jax.random.key`` reads the low 32 bits only, so that 5 and 2^32 + 5 would
    draw the same numbers. Here the high bits, unless they are 0, are folded in.

    Raises:
        ValueError: for a seed out of range.

    >>> from vfejax.runs.seeds import random_key
    >>> same = bool(random_key(5) == jax.random.key(5))
    >>> same, bool(random_key(5) == random_key(2**32 + 5))
    (True, False)
    """
    if not 0 <= seed <= LARGEST_SEED:
        raise ValueError(f"seed must be at least 0 and at most {LARGEST_SEED}, got {seed}")
    high, low = divmod(seed, 1 << 32)
    key = jax.random.key(np.uint32(low))
    return jax.random.fold_in(key, np.uint32(high)) if high else key

"""What the processes of one job do together: who writes, and what all of them agree on.

A process that has not joined others (:mod:`vfejax.runs.process_group`, or ``jax.distributed``) is
alone: it leads, and agrees with itself. Across processes everything here but :func:`leads` and
:func:`count` is a collective: all of them must call it, in the same order.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils

__all__ = ["any_of", "barrier", "count", "gathered", "index", "leads", "said_by_first"]


def count() -> int:
    """How many processes there are. Touches no device of a process that is alone.

    >>> count()
    1
    """
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this process, from 0."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def leads() -> bool:
    """Whether this process writes the files of a run and speaks for all: the first one.

    >>> leads()
    True
    """
    return index() == 0


def gathered(value: int) -> list[int]:
    """What every process says, by its number.

    Args:
        value: what this one says, at least 0 and below 2^31.

    >>> gathered(7)
    [7]
    """
    if count() == 1:
        return [value]
    return [int(said) for said in multihost_utils.process_allgather(np.int32(value))]


def any_of(flag: bool) -> bool:
    """Whether the flag is set in any process: the same answer in all.

    >>> any_of(False)
    False
    """
    return any(gathered(int(flag)))


def said_by_first(value: float) -> float:
    """The number of the first process, bit for bit, for decisions that all must take alike.

    Args:
        value: the number of this one.

    >>> said_by_first(0.1)
    0.1
    """
    if count() == 1:
        return value
    words = np.array([value], np.float64).view(np.uint32)  # 64-bit floats may be disabled
    return float(multihost_utils.process_allgather(words)[0].view(np.float64)[0])


def barrier() -> None:
    """Wait until every process is here, so that all see what the first one wrote before."""
    gathered(0)

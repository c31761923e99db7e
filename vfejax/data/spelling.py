"""The nats that a code needs for the symbols of a text that its tokens do not determine.

A vocabulary that lacks a symbol says "unknown" for it, which costs a model next to nothing. A code
for the text itself must also say which symbol it was. The codes here need no training text and no
parameters: every symbol is coded with Laplace's rule, from the counts of those coded before it. An
encoder and a decoder can both follow, so the nats are those of a code that exists.
"""

import math
from collections.abc import Iterable, Sequence

import numpy as np

__all__ = ["adaptive_nats", "spelled_nats"]

_NUM_BYTES = 256


def adaptive_nats(counts: Sequence[int] | np.ndarray) -> float:
    """Nats of coding symbols one after the other by Laplace's rule of succession.

    The symbol x costs ``-ln((n(x) + 1) / (n + k))`` after n symbols of an alphabet of k, n(x) of
    them x. The sum depends on the final counts N alone, in whatever order the symbols come::

        ln Gamma(N + k) - ln Gamma(k) - sum_x ln Gamma(N(x) + 1)

    Args:
        counts: ``[k]``, how often each symbol of the alphabet occurs in the end, at least 0.

    Returns:
        Nats; 0 when nothing is coded.

    Source: Cover and Thomas, Elements of Information Theory (2006), section 13.2.

    >>> round(adaptive_nats([1, 1]) / math.log(6), 12)  # 1/2, then 1/3
    1.0
    """
    total, alphabet = int(np.sum(counts)), len(counts)
    ordered = sum(math.lgamma(int(count) + 1) for count in counts)
    return math.lgamma(total + alphabet) - math.lgamma(alphabet) - ordered


def spelled_nats(strings: Iterable[str], *, ends: bool) -> float:
    """Nats of spelling strings by the bytes of their UTF-8, one adaptive code for all of them.

    Args:
        strings: what is spelled.
        ends: whether the end of every string is a symbol of the code. A single character needs
            none, since its first byte says how many follow.

    Returns:
        Nats; 0 for no strings.

    >>> round(spelled_nats(["a"], ends=False) / math.log(256), 12)
    1.0
    """
    strings = list(strings)
    data = "".join(strings).encode("utf-8", "surrogatepass")
    counts = np.bincount(np.frombuffer(data, np.uint8), minlength=_NUM_BYTES)
    return adaptive_nats(np.append(counts, len(strings)) if ends else counts)

"""N-gram models of a text: the loss that a model must beat to have learned more than which tokens
go together.
"""

import math
import operator
from collections.abc import Callable, Iterator

import numpy as np

__all__ = ["ngram_cross_entropy"]

_BLOCK = 1 << 20  # n-grams in memory at once
_MOST_BINS = 1 << 22  # of a table with a place for every possible n-gram: 32 MiB


class _Stopped(Exception):
    """The caller wants no more counting."""


def ngram_cross_entropy(
    train: np.ndarray,
    valid: np.ndarray,
    vocab_size: int,
    order: int,
    *,
    stop_fn: Callable[[], bool] = lambda: False,
) -> float:
    """Nats per token of predicting by counts of n-grams.

    ``p(x | c) = (N(c, x) + 1) / (N(c) + V)`` with the counts N of the training tokens and c the
    ``order - 1`` tokens before x (Laplace's rule of succession), averaged over the validation
    tokens that have such a context.

    A table of all ``V^order`` counts is kept where it is small; otherwise only the n-grams of the
    validation tokens are counted. The training tokens are read in blocks, so that memory grows with
    the validation tokens alone.

    Args:
        train: integers ``[n]`` in [0, V).
        valid: integers ``[m]`` in [0, V).
        vocab_size: V.
        order: 1 for unigrams, 2 for bigrams, and so on.
        stop_fn: asked between two blocks of a million tokens; when it is true the counting ends.

    Returns:
        The mean cross-entropy, in nats per token; NaN where the counting was ended, since counts of
        a part of the text are another baseline.

    Raises:
        ValueError: for tokens out of range, an order below 1, no integers, fewer tokens than the
            order, or ``V^order`` beyond 63 bits.

    >>> import math
    >>> import numpy as np
    >>> cycle = np.arange(3000) % 3
    >>> round(ngram_cross_entropy(cycle, cycle, 3, 1), 3), round(math.log(3), 3)
    (1.099, 1.099)
    >>> round(ngram_cross_entropy(cycle, cycle, 3, 2), 3)
    0.002
    """
    # Powers of numbers of NumPy overflow.
    vocab_size, order = operator.index(vocab_size), operator.index(order)
    if order < 1 or vocab_size**order >= 2**63:
        raise ValueError(
            f"order must be at least 1 and vocab_size^order below 2^63, got {order} and "
            f"{vocab_size}"
        )
    train, valid = np.asarray(train), np.asarray(valid)
    _check(train, "train", vocab_size, order)
    _check(valid, "valid", vocab_size, order)
    try:
        together_fn = _counts(train, valid, vocab_size, order, stop_fn)
        context_fn = _counts(train[:-1], valid[:-1], vocab_size, order - 1, stop_fn)
        nats = 0.0
        for asked in _ngrams(valid, vocab_size, order, stop_fn):
            context = context_fn(asked // vocab_size)
            nats += float(np.sum(np.log((context + vocab_size) / (together_fn(asked) + 1))))
    except _Stopped:
        return math.nan
    return nats / (len(valid) - order + 1)


def _check(tokens: np.ndarray, name: str, vocab_size: int, order: int) -> None:
    if tokens.ndim != 1 or len(tokens) < order or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"{name} must be integers [n] with n >= {order}, got {tokens.dtype} of shape "
            f"{tokens.shape}"
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(
            f"{name} must lie between 0 and {vocab_size - 1}, got {tokens.min()} to {tokens.max()}"
        )


def _ngrams(
    tokens: np.ndarray, vocab_size: int, order: int, stop_fn: Callable[[], bool]
) -> Iterator[np.ndarray]:
    """Blocks of n-grams, each as one number: its last token is the lowest digit in base V."""
    weights = vocab_size ** np.arange(order - 1, -1, -1, dtype=np.int64)
    windows = np.lib.stride_tricks.sliding_window_view(tokens, order)
    for start in range(0, len(windows), _BLOCK):
        if start > 0 and stop_fn():
            raise _Stopped
        # NumPy multiplies unsigned tokens of 64 bits as floating numbers.
        yield windows[start : start + _BLOCK].astype(np.int64, copy=False) @ weights


def _counts(
    train: np.ndarray,
    valid: np.ndarray,
    vocab_size: int,
    order: int,
    stop_fn: Callable[[], bool],
) -> Callable[[np.ndarray], np.ndarray]:
    """A function from n-grams of ``valid`` to how often each occurs in ``train``."""
    if order == 0:  # the empty n-gram stands before every token, the last of ``train`` included
        return lambda asked: np.full(len(asked), len(train) + 1)
    if vocab_size**order <= _MOST_BINS:
        table = np.zeros(vocab_size**order, np.int64)
        for seen in _ngrams(train, vocab_size, order, stop_fn):
            table += np.bincount(seen, minlength=len(table))
        return table.__getitem__
    blocks = _ngrams(valid, vocab_size, order, stop_fn)
    wanted = np.unique(np.concatenate([np.unique(block) for block in blocks]))
    counts = np.zeros(len(wanted), np.int64)
    for seen in _ngrams(train, vocab_size, order, stop_fn):
        # Sorted numbers are searched for in sorted numbers: half the time of any other order.
        seen = np.sort(seen)
        counts += np.searchsorted(seen, wanted, "right") - np.searchsorted(seen, wanted, "left")
    return lambda asked: counts[np.searchsorted(wanted, asked)]

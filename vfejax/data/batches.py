"""Windows of a token stream: random ones to train on, consecutive ones to evaluate on.

Why plain arrays and no data loader (grain, or worker processes): a corpus of tokens fits in memory,
and a batch is one gather from one array, microseconds beside a training step. A loader's state
would have to be saved and restored; here batch k is a pure function of seed and k, so the whole
state in a checkpoint is the step number, any batch can be made again, and each process of many
makes its own share without talking to the others.
"""

from dataclasses import dataclass

import numpy as np

__all__ = ["Batches", "evaluation_windows"]

_WORDS = 4  # 64-bit words that Philox makes per count


@dataclass(frozen=True, eq=False)
class Batches:
    """Windows at uniformly random starts, drawn with replacement.

    The starts come from a counter-based generator (Philox, keyed by the seed) whose counter is set
    from the step. Its raw words are used, which NumPy promises never to change; ``word mod
    num_starts`` is uniform to ``num_starts / 2^64``.

    Attributes:
        tokens: int32 ``[n]`` with ``n > length``.
        batch_size: windows per step, over all shards.
        length: tokens that the model reads; a window has one more, to predict.
        seed: integer in [0, 2^128).
        shard: ``(index, count)``: this process makes the index-th of ``count`` equal parts of every
            batch.

    Raises:
        ValueError: when these do not fit together.

    Source: Salmon et al., Parallel random numbers: as easy as 1, 2, 3 (2011).

    >>> batches = Batches(np.arange(100, dtype=np.int32), batch_size=2, length=3, seed=7)
    >>> batches.at(step=5, num_steps=1).tolist()
    [[[13, 14, 15, 16], [20, 21, 22, 23]]]
    """

    tokens: np.ndarray
    batch_size: int
    length: int
    seed: int
    shard: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        _check(self.tokens, self.length, self.batch_size)
        if len(self.tokens) <= self.length:
            raise ValueError(
                f"tokens must be longer than length {self.length}, got {len(self.tokens)}"
            )
        if not 0 <= self.seed < 2**128:
            raise ValueError(f"seed must lie in [0, 2^128), got {self.seed}")
        index, count = self.shard
        if not 0 <= index < count or self.batch_size % count:
            raise ValueError(
                "shard must be (index, count) with 0 <= index < count and count a divisor of "
                f"batch_size {self.batch_size}, got {self.shard}"
            )

    def at(self, step: int, num_steps: int) -> np.ndarray:
        """The windows of consecutive steps, each a function of seed and step alone.

        Args:
            step: number of the first step, at least 0.
            num_steps: how many steps.

        Returns:
            int32 ``[num_steps, batch_size / count, length + 1]``.
        """
        if step < 0 or num_steps < 0:
            raise ValueError(f"step and num_steps must be at least 0, got {step} and {num_steps}")
        counts = -(-self.batch_size // _WORDS)
        words = np.random.Philox(key=self.seed, counter=step * counts).random_raw(
            num_steps * counts * _WORDS
        )
        index, count = self.shard
        share = self.batch_size // count
        mine = words.reshape(num_steps, counts * _WORDS)[:, index * share : (index + 1) * share]
        windows = np.lib.stride_tricks.sliding_window_view(self.tokens, self.length + 1)
        return windows[mine % len(windows)]


def evaluation_windows(
    tokens: np.ndarray, length: int, batch_size: int, padding_id: int, limit: int | None = None
) -> np.ndarray:
    """Consecutive windows that predict every token but the very first exactly once.

    Window i holds tokens ``i length ... (i + 1) length``: it shares one token with the next, which
    predicts nothing twice, since a window predicts all of its tokens but its first. A token early
    in a window has little context: the loss is an upper bound of what longer contexts would give.

    Args:
        tokens: int32 ``[n]`` with ``n >= 2``.
        length: tokens that the model reads.
        batch_size: windows per batch.
        padding_id: fills the last window and the last batch; its prediction must not count.
        limit: read at most this many windows, evenly spaced; all by default.

    Returns:
        int32 ``[num_batches, batch_size, length + 1]``.

    Raises:
        ValueError: for tokens of another type or too few, or a number below 1.

    >>> evaluation_windows(np.arange(1, 6, dtype=np.int32), length=3, batch_size=1, padding_id=0)
    array([[[1, 2, 3, 4]],
    <BLANKLINE>
           [[4, 5, 0, 0]]], dtype=int32)
    """
    _check(tokens, length, batch_size)
    if len(tokens) < 2:
        raise ValueError(
            f"tokens must be at least 2, one to read and one to predict, got {len(tokens)}"
        )
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1 or None, got {limit}")
    total = -(-(len(tokens) - 1) // length)
    num_windows = total if limit is None else min(limit, total)
    filled = np.full(total * length + 1, padding_id, np.int32)
    filled[: len(tokens)] = tokens
    chosen = np.arange(num_windows) * total // num_windows
    windows = np.lib.stride_tricks.sliding_window_view(filled, length + 1)[chosen * length]
    num_batches = -(-num_windows // batch_size)
    batches = np.full((num_batches * batch_size, length + 1), padding_id, np.int32)
    batches[:num_windows] = windows
    return batches.reshape(num_batches, batch_size, length + 1)


def _check(tokens: np.ndarray, length: int, batch_size: int) -> None:
    shape, dtype = np.shape(tokens), getattr(tokens, "dtype", type(tokens).__name__)
    if len(shape) != 1 or dtype != np.int32:
        raise ValueError(
            f"tokens must be int32 [n], got {dtype} of shape {shape}; np.asarray(tokens, np.int32) "
            "converts them"
        )
    if length < 1 or batch_size < 1:
        raise ValueError(f"length and batch_size must be at least 1, got {length} and {batch_size}")

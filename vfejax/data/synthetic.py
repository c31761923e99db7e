"""Synthetic token streams whose best possible loss is known.

A model that fails to learn, or one that reads its own answers, shows at once. Symbols are the
numerals ``0, 1, ...``, words of a :class:`~vfejax.data.vocabulary.Vocabulary`, so that what a model
generates can be read and continued. All streams are functions of their seed. The last part of a
stream is its validation split.
"""

import math

import numpy as np

from vfejax.data.corpus import Corpus, Split, num_train, require_window
from vfejax.data.vocabulary import Vocabulary

__all__ = ["periodic", "sinusoidal", "uniform"]

_NUM_WAVES = 3


def periodic(
    num_tokens: int,
    num_symbols: int,
    period: int,
    *,
    length: int,
    noise: float = 0.0,
    valid_fraction: float = 0.1,
    seed: int = 0,
) -> Corpus:
    """A random pattern, repeated: easy for a model that can copy the token ``period`` places back.

    Each token is replaced with probability ``noise`` by a uniform one (which may be the same). Once
    pattern and phase are known, the next token is the expected one with probability ``1 - noise +
    noise / V``, any other with ``noise / V``; the entropy of that is the entropy rate.

    Args:
        num_tokens: tokens of all splits together.
        num_symbols: number V of different tokens.
        period: length of the pattern.
        length: tokens that a model reads at once.
        noise: probability of a replacement.
        valid_fraction: share of the tokens, at the end, for validation.
        seed: of pattern and noise, an integer of at least 0.

    Returns:
        The corpus, with its entropy rate in nats per token.

    Raises:
        ValueError: for a number of symbols or a period below 1, or a noise outside [0, 1].
        UserError: for a split that does not fill one window.

    >>> corpus = periodic(100, 5, 3, length=8)
    >>> bool((corpus.train.tokens[3:] == corpus.train.tokens[:-3]).all()), corpus.entropy_rate
    (True, 0.0)
    """
    _require_positive(num_symbols, "num_symbols")
    _require_positive(period, "period")
    if not 0.0 <= noise <= 1.0:
        raise ValueError(f"noise must lie between 0 and 1, got {noise}")
    rng = np.random.default_rng(seed)
    clean = np.resize(rng.integers(num_symbols, size=period), num_tokens)
    replaced = rng.random(num_tokens) < noise
    stream = np.where(replaced, rng.integers(num_symbols, size=num_tokens), clean)
    probabilities = np.full(num_symbols, noise / num_symbols)
    probabilities[0] += 1.0 - noise
    probabilities = probabilities[probabilities > 0]
    entropy_rate = float(probabilities @ np.log(1.0 / probabilities))
    name = f"periodic sequence of {num_symbols} symbols, period {period}, noise {noise:g}"
    return _corpus(name, stream, num_symbols, length, valid_fraction, entropy_rate)


def sinusoidal(
    num_tokens: int,
    num_symbols: int,
    period: int,
    *,
    length: int,
    valid_fraction: float = 0.1,
    seed: int = 0,
) -> Corpus:
    """The mean of three sinusoids, cut into equal steps: smooth, and never quite repeating.

    Phases are uniform and the periods lie between ``period / 4`` and ``period`` tokens (one over
    uniform frequencies). The stream is deterministic (a rotation of a torus seen through a
    partition), so its entropy rate is 0.

    Args:
        num_tokens: tokens of all splits together.
        num_symbols: number V of different tokens, one per step of the height.
        period: longest period, in tokens.
        length: tokens that a model reads at once.
        valid_fraction: share of the tokens, at the end, for validation.
        seed: of frequencies and phases, an integer of at least 0.

    Returns:
        The corpus.

    Raises:
        ValueError: for a number of symbols or a period below 1.
        UserError: for a split that does not fill one window.

    >>> corpus = sinusoidal(1000, 16, 24, length=8)
    >>> len(corpus.train.tokens), len(corpus.valid.tokens), corpus.vocabulary.size
    (900, 100, 18)
    """
    _require_positive(num_symbols, "num_symbols")
    _require_positive(period, "period")
    rng = np.random.default_rng(seed)
    frequencies = rng.uniform(1.0, 4.0, (_NUM_WAVES, 1)) / period
    phases = rng.uniform(0.0, 1.0, (_NUM_WAVES, 1))
    wave = np.mean(np.sin(2.0 * np.pi * (frequencies * np.arange(num_tokens) + phases)), axis=0)
    stream = np.minimum((0.5 * (wave + 1.0) * num_symbols).astype(np.int64), num_symbols - 1)
    name = f"sinusoidal sequence of {num_symbols} symbols, periods up to {period}"
    return _corpus(name, stream, num_symbols, length, valid_fraction, 0.0)


def uniform(
    num_tokens: int, num_symbols: int, *, length: int, valid_fraction: float = 0.1, seed: int = 0
) -> Corpus:
    """Independent uniform tokens: no model predicts them better than ``ln V`` nats per token.

    A model whose validation loss is lower reads its own answer.

    Args:
        num_tokens: tokens of all splits together.
        num_symbols: number V of different tokens.
        length: tokens that a model reads at once.
        valid_fraction: share of the tokens, at the end, for validation.
        seed: of the tokens, an integer of at least 0.

    Returns:
        The corpus.

    Raises:
        ValueError: for a number of symbols below 1.
        UserError: for a split that does not fill one window.

    >>> round(uniform(1000, 4, length=8).entropy_rate, 6)  # ln 4
    1.386294
    """
    _require_positive(num_symbols, "num_symbols")
    stream = np.random.default_rng(seed).integers(num_symbols, size=num_tokens)
    name = f"independent uniform tokens of {num_symbols} symbols"
    return _corpus(name, stream, num_symbols, length, valid_fraction, math.log(num_symbols))


def _require_positive(value: int, name: str) -> None:
    if value < 1:
        raise ValueError(f"{name} must be at least 1, got {value}")


def _corpus(
    name: str,
    stream: np.ndarray,
    num_symbols: int,
    length: int,
    valid_fraction: float,
    entropy_rate: float,
) -> Corpus:
    """Splits of a stream of symbols ``[n]`` in [0, num_symbols)."""
    numerals = Vocabulary("word", tuple(map(str, range(num_symbols))))
    tokens = (stream + (numerals.size - num_symbols)).astype(np.int32)
    cut = num_train(len(tokens), valid_fraction, name)
    for part, split in (("train", tokens[:cut]), ("valid", tokens[cut:])):
        require_window(split, f"{name}: the {part} split", length)
    return Corpus(
        name, numerals, Split(tokens[:cut], None), Split(tokens[cut:], None), None, entropy_rate
    )

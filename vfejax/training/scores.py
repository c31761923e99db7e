"""How well a model predicts a text: cross-entropy, perplexity, bits per byte."""

import math
from typing import NamedTuple

__all__ = ["Measured", "bits_per_byte", "perplexity", "scores"]


class Measured(NamedTuple):
    """Mean cross-entropy in nats per token, and how many tokens were predicted."""

    nats_per_token: float
    num_tokens: int


def perplexity(nats_per_token: float) -> float:
    """``exp`` of the cross-entropy: among how many equally probable tokens the model guesses.

    Infinite beyond the largest float; NaN stays NaN.

    >>> round(perplexity(math.log(50)), 6), perplexity(1000.0)
    (50.0, inf)
    """
    try:
        return math.exp(nats_per_token)
    except OverflowError:
        return math.inf


def bits_per_byte(
    nats_per_token: float, num_tokens: int, num_bytes: int, spelling_nats: float = 0.0
) -> float:
    """Bits that a code for the text needs for each of its bytes.

    ``(nats_per_token * num_tokens + spelling_nats) / (num_bytes ln 2)``. It is comparable between
    vocabularies, which perplexities per token are not, since the code says the text itself: what
    the tokens leave unsaid (the letters of unknown words, say) is spelled and paid for.

    Args:
        nats_per_token: mean cross-entropy of the model.
        num_tokens: tokens of the text.
        num_bytes: bytes of the text, at least 1.
        spelling_nats: nats of a code for what the tokens leave unsaid; see
            :mod:`vfejax.data.spelling`.

    Returns:
        Bits per byte.

    >>> bits_per_byte(8 * math.log(2), 10, 10)  # uniform over 256 bytes
    8.0
    >>> bits_per_byte(0.0, 1, 10, spelling_nats=80 * math.log(2))  # one unknown word, spelled
    8.0
    """
    return (nats_per_token * num_tokens + spelling_nats) / (num_bytes * math.log(2.0))


def scores(
    measured: Measured,
    *,
    num_tokens: int,
    num_bytes: int | None = None,
    spelling_nats: float | None = 0.0,
    num_unknown: int | None = None,
) -> dict[str, float]:
    """The figures of an evaluation by name.

    Args:
        measured: what the model reached on the tokens that were predicted.
        num_tokens: tokens of the whole split.
        num_bytes: bytes of the whole split; None when it is no text.
        spelling_nats: nats of what its tokens leave unsaid; None when that is not known.
        num_unknown: unknown tokens of the whole split; None when the vocabulary has no such token
            or the split is no text.

    Returns:
        ``loss_nats_per_token``, ``perplexity``, ``tokens_predicted``, and, where they are known,
        ``unknown_tokens`` (their share, 0 to 1) and ``bits_per_byte``.

    >>> scores(Measured(0.0, 9), num_tokens=10, num_bytes=10)["bits_per_byte"]
    0.0
    """
    nats, count = measured
    figures: dict[str, float] = {
        "loss_nats_per_token": nats,
        "perplexity": perplexity(nats),
        "tokens_predicted": count,
    }
    if num_unknown is not None:
        figures["unknown_tokens"] = num_unknown / num_tokens
    if num_bytes is not None and spelling_nats is not None:
        figures["bits_per_byte"] = bits_per_byte(nats, num_tokens, num_bytes, spelling_nats)
    return figures

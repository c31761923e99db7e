"""Corpora: text from a file, a directory or Python itself, cut into splits and encoded; and what a
count of n-grams makes of it.
"""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vfejax.data import vocabulary
from vfejax.data.files import read_errors
from vfejax.data.vocabulary import Vocabulary
from vfejax.errors import UserError

__all__ = [
    "Corpus",
    "Split",
    "load_split",
    "load_text",
    "ngram_cross_entropy",
    "num_train",
    "require_window",
]


class Split(NamedTuple):
    """Part of a corpus: tokens ``[n]`` (int32) and the bytes of UTF-8 they stand for, None when
    they are no text.

    Bits per byte are ``nats per token / ln 2 * n / num_bytes``: comparable between vocabularies,
    which perplexities per token are not.
    """

    tokens: np.ndarray
    num_bytes: int | None


class Corpus(NamedTuple):
    """Tokens to learn from and to be judged by.

    Attributes:
        name: where they come from.
        vocabulary: what they mean, made from the training split alone.
        train, valid, test: the splits; test is None when there is none.
        entropy_rate: nats per token below which nobody can predict them in the long run; None when
            unknown.
    """

    name: str
    vocabulary: Vocabulary
    train: Split
    valid: Split
    test: Split | None
    entropy_rate: float | None


def load_text(
    path: str | os.PathLike | None,
    kind: str = "character",
    *,
    length: int,
    max_words: int | None = None,
    valid_fraction: float = 0.1,
) -> Corpus:
    """Read a text corpus.

    Args:
        path: a UTF-8 text file; or a directory with one train, one valid and at most one test file,
            recognised by a word of the name that begins with ``train``, ``val`` or ``test``
            (``wiki.train.tokens``, ``val.txt``); or None for the help topics of the running Python
            (``pydoc_data.topics``): half a megabyte of English about one subject, without a
            download. It changes a little with Python's version.
        kind: what a token is, as in :func:`vfejax.data.vocabulary.build`, which also explains
            ``max_words``.
        length: tokens that a model reads at once; every split must fill a window of ``length + 1``.
        valid_fraction: share of a single text, its last part, that is the validation split. The cut
            falls between two characters.

    Returns:
        The corpus. Nothing is normalised; only a byte order mark is taken off.

    Raises:
        UserError: naming the file and the remedy, when one is missing, unreadable, empty, binary,
            not UTF-8 or too short.
    """
    name = "help topics of Python" if path is None else os.fspath(path)
    texts = _texts(path, name, valid_fraction)
    words = vocabulary.build(kind, texts["train"], max_words=max_words)
    splits = {
        part: _encode(text, words, f"{name}: the {part} split", length)
        for part, text in texts.items()
    }
    return Corpus(name, words, splits["train"], splits["valid"], splits.get("test"), None)


def load_split(path: str | os.PathLike, words: Vocabulary, length: int) -> Split:
    """Read a UTF-8 text file with a vocabulary that exists already; raises UserError as
    :func:`load_text` does.
    """
    return _encode(_read(Path(path)), words, os.fspath(path), length)


def num_train(total: int, valid_fraction: float, name: str) -> int:
    """How many of ``total`` characters or tokens are for training; UserError when that leaves
    nothing for one of the two parts.
    """
    count = int(total * (1.0 - valid_fraction)) if 0.0 < valid_fraction < 1.0 else 0
    if not 0 < count < total:
        raise UserError(
            f"--valid-fraction {valid_fraction:g} of {name} ({total} long) leaves nothing for training or for validation; "
            "choose another fraction or give more"
        )
    return count


def require_window(tokens: np.ndarray, name: str, length: int) -> None:
    """UserError when tokens ``[n]`` do not fill one window: ``length`` to read and one more to
    predict.
    """
    if len(tokens) <= length:
        raise UserError(
            f"{name} has {len(tokens)} tokens, fewer than the {length + 1} of one window; give more or a smaller --length"
        )


def _encode(text: str, words: Vocabulary, name: str, length: int) -> Split:
    tokens = words.encode(text)
    require_window(tokens, name, length)
    return Split(tokens, len(text.encode()))


def _texts(path: str | os.PathLike | None, name: str, valid_fraction: float) -> dict[str, str]:
    """Text of each split."""
    if path is not None:
        with read_errors(path):
            is_directory = Path(path).is_dir()
        if is_directory:
            return {part: _read(file) for part, file in _files(Path(path)).items()}
    text = _help_topics() if path is None else _read(Path(path))
    cut = num_train(len(text), valid_fraction, name)
    return {"train": text[:cut], "valid": text[cut:]}


def _help_topics() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise UserError(
            "this Python comes without its help topics (pydoc_data); give a text with --text"
        ) from error
    return "\n".join(topics[key] for key in sorted(topics))


def _files(folder: Path) -> dict[str, Path]:
    """File of each split in a directory."""
    with read_errors(folder):
        names = sorted(
            path.name
            for path in folder.iterdir()
            if path.is_file() and not path.name.startswith(".")
        )
    found: dict[str, list[str]] = {"train": [], "valid": [], "test": []}
    for name in names:
        # "constraints", "interval" and "latest" name no split: the word must begin so.
        parts = set(re.findall(r"(?<![a-z])(train|val|test)", name.lower()))
        if len(parts) > 1:
            raise UserError(
                f"{folder / name} says {' and '.join(sorted(parts))}; name it after one split"
            )
        for part in parts:
            found["valid" if part == "val" else part].append(name)
    for part, matches in found.items():
        if len(matches) > 1:
            raise UserError(
                f"{folder} has more than one {part} file ({', '.join(matches)}); keep one of them"
            )
        if not matches and part != "test":
            raise UserError(
                f"{folder} has no {part} file; add one, such as {part}.txt, or give a single text file"
            )
    return {part: folder / matches[0] for part, matches in found.items() if matches}


def _read(path: Path) -> str:
    with read_errors(path):
        content = path.read_bytes()
    if not content:
        raise UserError(f"{path} is empty; give a file with text")
    if b"\0" in content:
        raise UserError(
            f"{path} is no UTF-8 text: byte {content.index(0)} is NUL, so it is binary or UTF-16; give text or convert it"
        )
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no UTF-8 text: byte {error.start} is 0x{content[error.start]:02x} ({error.reason}); "
            "convert it, for instance with iconv -t utf-8"
        ) from error


def ngram_cross_entropy(train: np.ndarray, valid: np.ndarray, vocab_size: int, order: int) -> float:
    """Nats per token of counting: what a model must beat to have learned more than which tokens go
    together.

    ``p(x | c) = (N(c, x) + 1) / (N(c) + V)`` with the counts N of the training tokens and c the
    ``order - 1`` tokens before x (Laplace's rule of succession), averaged over the validation
    tokens that have such a context. Time O(n log n), memory O(n): no table of V^order.

    Args:
        train, valid: integers ``[n]`` in [0, V).
        vocab_size: V.
        order: 1 for single frequencies, 2 for pairs, and so on.

    Raises:
        ValueError: for tokens out of range, an order below 1, no integers, fewer tokens than the
            order, or ``V^order`` beyond 63 bits.
    """
    if order < 1 or vocab_size**order >= 2**63:
        raise ValueError(
            f"order must be at least 1 and vocab_size^order below 2^63, got {order} and {vocab_size}"
        )
    seen, asked = (
        _ngrams(tokens, name, vocab_size, order)
        for tokens, name in ((train, "train"), (valid, "valid"))
    )
    together = _counts(seen, asked)
    context = _counts(seen // vocab_size, asked // vocab_size)
    return float(np.mean(np.log((context + vocab_size) / (together + 1))))


def _ngrams(tokens: np.ndarray, name: str, vocab_size: int, order: int) -> np.ndarray:
    """Each n-gram as one number, its last token the lowest digit in base ``vocab_size``."""
    tokens = np.asarray(tokens)
    if tokens.ndim != 1 or len(tokens) < order or not np.issubdtype(tokens.dtype, np.integer):
        raise ValueError(
            f"{name} must be integers [n] with n >= {order}, got {tokens.dtype} of shape {tokens.shape}"
        )
    if tokens.min() < 0 or tokens.max() >= vocab_size:
        raise ValueError(
            f"{name} must lie between 0 and {vocab_size - 1}, got {tokens.min()} to {tokens.max()}"
        )
    weights = vocab_size ** np.arange(order - 1, -1, -1, dtype=np.int64)
    return np.lib.stride_tricks.sliding_window_view(tokens, order) @ weights


def _counts(seen: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """How often each of ``asked`` occurs in ``seen``."""
    values, counts = np.unique(seen, return_counts=True)
    place = np.minimum(np.searchsorted(values, asked), len(values) - 1)
    return np.where(values[place] == asked, counts[place], 0)

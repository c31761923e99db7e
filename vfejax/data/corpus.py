"""Corpora: text from a file, a directory or Python itself, cut into splits and encoded."""

import os
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vfejax.data import tokenizers
from vfejax.data.files import read_errors
from vfejax.data.tokenizers import Tokenizer
from vfejax.errors import UserError

__all__ = [
    "Corpus",
    "Split",
    "help_topics",
    "load_split",
    "load_text",
    "num_train",
    "require_window",
    "split_files",
]


class Split(NamedTuple):
    """Part of a corpus.

    Attributes:
        tokens: int32 ``[n]``.
        num_bytes: bytes of UTF-8 that the tokens stand for; None when they are no text.
        spelling_nats: nats of a code for what the tokens leave unsaid of the text, such as the
            letters of unknown words; None when that is not known. See
            :func:`vfejax.training.scores.bits_per_byte`.
    """

    tokens: np.ndarray
    num_bytes: int | None
    spelling_nats: float | None = 0.0


class Corpus(NamedTuple):
    """Tokens to learn from and to be judged by.

    Attributes:
        name: where they come from.
        vocabulary: the tokenizer that says what they mean, made from the training split alone.
        train, valid, test: the splits; test is None when there is none.
        entropy_rate: the lowest loss that any model can reach in the long run, nats per token; None
            when unknown.
    """

    name: str
    vocabulary: Tokenizer
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
    tokenizer: Tokenizer | None = None,
) -> Corpus:
    """Read a text corpus.

    Args:
        path: a UTF-8 text file; or a directory with one train, one valid and at most one test file,
            recognised by a word of the name that begins with ``train``, ``val`` or ``test``
            (``wiki.train.tokens``, ``val.txt``); or None for the help topics of the running Python
            (``pydoc_data.topics``): half a megabyte of English about one subject, without a
            download. It changes a little with Python's version.
        kind: what a token is: ``byte``, ``character``, ``word``, or the path of a
            ``tokenizer.json``; see :func:`vfejax.data.tokenizers.build`.
        length: tokens that a model reads at once; every split must fill a window of ``length + 1``.
        max_words: how many of the most frequent words get an id of their own; all by default.
        valid_fraction: share of a single text, its last part, that is the validation split. The cut
            falls between two characters.
        tokenizer: the one that a model was trained with. It is used as it is, and ``kind`` and
            ``max_words`` are not read.

    Returns:
        The corpus. Nothing is normalised; only a byte order mark is taken off.

    Raises:
        UserError: naming the file and the remedy, when one is missing, unreadable, empty, binary,
            not UTF-8, no regular file, or too short.
    """
    name = "help topics of Python" if path is None else os.fspath(path)
    texts = _texts(path, name, valid_fraction)
    if tokenizer is None:
        tokenizer = tokenizers.build(kind, texts["train"], max_words=max_words)
    splits = {}
    for part, text in texts.items():
        splits[part] = _encode(text, tokenizer)
        require_window(splits[part].tokens, f"{name}: the {part} split", length)
    return Corpus(name, tokenizer, splits["train"], splits["valid"], splits.get("test"), None)


def load_split(path: str | os.PathLike, tokenizer: Tokenizer) -> Split:
    """Read a UTF-8 text file with a tokenizer that exists already.

    Args:
        path: the file.
        tokenizer: what a token is.

    Returns:
        The text as one split, of two tokens at least: one to read and one to predict.

    Raises:
        UserError: naming the file, when it is missing, unreadable, empty, binary, not UTF-8 or
            shorter than that.
    """
    split = _encode(_read(Path(path)), tokenizer)
    if len(split.tokens) < 2:
        raise UserError(
            f"{os.fspath(path)} has {len(split.tokens)} tokens; "
            "give a text of at least two, one to read and one to predict"
        )
    return split


def num_train(total: int, valid_fraction: float, name: str) -> int:
    """How many of a stream are for training; the rest is for validation.

    Args:
        total: length of the stream, in characters or tokens.
        valid_fraction: share of it that is for validation.
        name: what messages call it.

    Raises:
        UserError: when nothing is left for one of the two.

    >>> num_train(10, 0.2, "ten tokens")
    8
    """
    count = int(total * (1.0 - valid_fraction)) if 0.0 < valid_fraction < 1.0 else 0
    if not 0 < count < total:
        raise UserError(
            f"--valid-fraction {valid_fraction:g} of {name} ({total} long) leaves nothing for "
            "training or for validation; choose another fraction or give more"
        )
    return count


def require_window(tokens: np.ndarray, name: str, length: int) -> None:
    """Check that tokens fill one window: ``length`` to read and one more to predict.

    Args:
        tokens: ``[n]``.
        name: what the message calls them.
        length: tokens that a model reads at once.

    Raises:
        UserError: when there are fewer.
    """
    if len(tokens) <= length:
        raise UserError(
            f"{name} has {len(tokens)} tokens, fewer than the {length + 1} of one window; "
            "give more or a smaller --length"
        )


def split_files(path: str | os.PathLike) -> dict[str, Path]:
    """The files that :func:`load_text` reads at a path, by ``train``, ``valid`` and ``test``; a
    single text is ``train``.

    Raises:
        UserError: when the path holds no text to train on.
    """
    path = Path(path)
    with read_errors(path):
        if path.is_dir():
            return _files(path)
        regular = path.is_file() or not path.exists()
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{os.fspath(path)!a}: the name is not UTF-8, so no run can record it; rename it"
        ) from error
    if not regular:
        raise UserError(
            f"{path} is no regular file, so it could not be read again to resume or to evaluate; "
            "save its content in a file and give that"
        )
    return {"train": path}


def _encode(text: str, tokenizer: Tokenizer) -> Split:
    tokens = tokenizer.encode(text)
    return Split(tokens, len(text.encode()), tokenizer.spelling_nats(text, tokens))


def _texts(path: str | os.PathLike | None, name: str, valid_fraction: float) -> dict[str, str]:
    """Text of each split."""
    texts = {"train": help_topics()} if path is None else {}
    if path is not None:
        texts = {part: _read(file) for part, file in split_files(path).items()}
    if len(texts) > 1:
        return texts
    cut = num_train(len(texts["train"]), valid_fraction, name)
    return {"train": texts["train"][:cut], "valid": texts["train"][cut:]}


def help_topics() -> str:
    """The help topics of the running Python as one text; UserError when it comes without them."""
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
                f"{folder} has no {part} file; add one, such as {part}.txt, or give a single text "
                "file"
            )
    return {part: folder / matches[0] for part, matches in found.items() if matches}


def _read(path: Path) -> str:
    with read_errors(path):
        content = path.read_bytes()
    if not content:
        raise UserError(f"{path} is empty; give a file with text")
    if b"\0" in content:
        raise UserError(
            f"{path} is no UTF-8 text: byte {content.index(0)} is NUL, so it is binary or UTF-16; "
            "give text or convert it"
        )
    try:
        return content.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is no UTF-8 text: byte {error.start} is 0x{content[error.start]:02x} "
            f"({error.reason}); "
            "convert it, for instance with iconv -t utf-8"
        ) from error

"""Tokenizers: the Protocol, the ways to build one, and the file in which a run keeps it.

A tokenizer is plain data that a run keeps as ``vocabulary.json``, so that ``evaluate``,
``generate`` and a resumed training read with the very ids a model was trained on.
"""

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from vfejax.data import pretrained, subwords, vocabulary
from vfejax.data.files import atomic_write, one_line, read_errors
from vfejax.data.pretrained import PretrainedTokenizer
from vfejax.data.subwords import SubwordTokenizer
from vfejax.data.vocabulary import Vocabulary
from vfejax.errors import UserError

__all__ = [
    "Tokenizer",
    "build",
    "from_json",
    "load",
    "never_drawn",
    "opening",
    "read",
    "read_pretrained",
    "save",
]

_READERS: dict[str, Callable[[Mapping[str, Any]], "Tokenizer"]] = {
    **dict.fromkeys(vocabulary.KINDS, Vocabulary.from_json),
    subwords.KIND: SubwordTokenizer.from_json,
    pretrained.KIND: PretrainedTokenizer.from_json,
}


class Tokenizer(Protocol):
    """The way from text to ids and back.

    Attributes:
        size: number of ids; all of them lie in ``[0, size)``.
        padding_id: the id that fills windows; no text encodes to it.
        unknown_id: the id of what the tokenizer cannot say; None when it can say everything.
        num_known: the ids from there on stand for nothing.
    """

    @property
    def size(self) -> int: ...

    @property
    def padding_id(self) -> int: ...

    @property
    def unknown_id(self) -> int | None: ...

    @property
    def num_known(self) -> int: ...

    def encode(self, text: str) -> np.ndarray:
        """Ids ``[n]`` (int32) of a text."""
        ...

    def decode(self, ids: np.ndarray) -> str:
        """Text of ids ``[n]``, without padding; ValueError for what are no ids."""
        ...

    def extend(self, text: str, ids: np.ndarray) -> str:
        """The text with what ids ``[n]`` say after it."""
        ...

    def unencodable(self, text: str) -> str | None:
        """The first piece of a text that a model cannot be given; None when there is none."""
        ...

    def spelling_nats(self, text: str, ids: np.ndarray | None = None) -> float | None:
        """Nats of a code for what the ids of a text (given, or made) leave unsaid; None when they
        are not known.
        """
        ...

    def to_json(self) -> dict[str, Any]:
        """What JSON can hold, with a ``kind``; the inverse of :func:`from_json`."""
        ...


def build(kind: str, text: str, *, max_words: int | None = None) -> Tokenizer:
    """The tokenizer of a name: one of the vocabularies, or a file.

    Args:
        kind: ``byte``, ``character`` or ``word``; or the path of a ``tokenizer.json`` of the
            library ``tokenizers``, known by its ending ``.json``.
        text: the training text, from which a vocabulary takes its symbols.
        max_words: see :func:`vfejax.data.vocabulary.build`.

    Returns:
        The tokenizer.

    Raises:
        ValueError: for another kind, or ``max_words < 1``.
        UserError: for a file that is missing or holds no tokenizer.

    >>> build("byte", "").size
    258
    """
    if kind.endswith(".json"):
        return read(kind)
    return vocabulary.build(kind, text, max_words=max_words)


def from_json(mapping: Any) -> Tokenizer:
    """The tokenizer that :meth:`Tokenizer.to_json` described; ValueError for anything else."""
    kind = mapping.get("kind") if isinstance(mapping, dict) else None
    if not isinstance(kind, str):
        raise ValueError("a vocabulary must be a mapping with a string kind")
    if kind not in _READERS:
        raise ValueError(f"kind must be one of {', '.join(_READERS)}, got {kind!r}")
    return _READERS[kind](mapping)


def save(path: str | os.PathLike, tokenizer: Tokenizer) -> None:
    """Write a tokenizer as JSON; a file that cannot be written is a UserError."""
    atomic_write(path, json.dumps(tokenizer.to_json()) + "\n")


def load(path: str | os.PathLike) -> Tokenizer:
    """Read what :func:`save` wrote.

    Raises:
        UserError: naming the file, when it is missing or damaged.
    """
    try:
        return from_json(_parsed(path))
    except ValueError as error:
        raise UserError(
            f"{os.fspath(path)} is no vocabulary: {one_line(error)}; "
            "put back the file that vfejax train wrote"
        ) from error


def read(path: str | os.PathLike) -> SubwordTokenizer:
    """Read a ``tokenizer.json`` of the library ``tokenizers``.

    Raises:
        UserError: naming the file, when it is missing or holds no such tokenizer; or when the
            library is not installed.
    """
    try:
        return SubwordTokenizer(_parsed(path))
    except ValueError as error:
        raise UserError(
            f"{os.fspath(path)} holds no tokenizer: {one_line(error)}; "
            "give a tokenizer.json that the library tokenizers wrote"
        ) from error


def read_pretrained(path: str | os.PathLike | None, size: int) -> PretrainedTokenizer:
    """The tokenizer of a pretrained model.

    Args:
        path: a ``tokenizer.json`` of the library ``tokenizers``; bytes for None.
        size: rows that the model has for tokens.

    Raises:
        UserError: as :func:`read`, and when the model has not enough rows.
    """
    try:
        if path is None:
            return pretrained.of_bytes(size)
        return PretrainedTokenizer(SubwordTokenizer(_parsed(path)), size)
    except ValueError as error:
        named = "--tokenizer" + ("" if path is None else f" {os.fspath(path)}")
        raise UserError(
            f"{named}: {one_line(error)}; give the tokenizer.json that belongs to the model"
        ) from error


def _parsed(path: str | os.PathLike) -> Any:
    """What the JSON of a file says; ValueError when it says nothing."""
    with read_errors(path):
        content = Path(path).read_text(encoding="utf-8")
    try:
        return json.loads(content)
    except RecursionError:
        raise ValueError("its brackets are nested too deeply") from None


def never_drawn(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The ids that a model must not write: padding, the unknown symbol if there is one, and those
    that stand for nothing.

    >>> never_drawn(build("character", "ab"))
    (0, 1)
    """
    special = {tokenizer.padding_id, *range(tokenizer.num_known, tokenizer.size)}
    if tokenizer.unknown_id is not None:
        special.add(tokenizer.unknown_id)
    return tuple(sorted(special))


def opening(tokenizer: Tokenizer) -> str:
    r"""What a generated text begins with when no prompt is given.

    A line break where the tokenizer has one, otherwise the first symbol that reads back as itself;
    UserError when there is none.

    >>> opening(build("character", "ab\n")), opening(build("character", "ab"))
    ('\n', 'a')
    """
    ids = tokenizer.encode("\n")
    if len(ids) and ids[0] != tokenizer.unknown_id:
        return "\n"
    for index in range(tokenizer.size):
        if index not in never_drawn(tokenizer):
            text = tokenizer.decode(np.array([index]))
            if text and tokenizer.encode(text).tolist() == [index]:
                return text
    raise UserError("the vocabulary has no symbol to begin a text with; give one with --prompt")

"""Vocabularies: what a token is, and the way from text to ids and back.

Ids have one layout for every kind: 0 is padding, 1 the unknown symbol, then the symbols in order. A
vocabulary is plain data that a run keeps as ``vocabulary.json``, so that ``evaluate`` and
``generate`` read with the very ids a model was trained on.

- ``byte``: the 256 bytes of UTF-8; nothing is ever unknown.
- ``character``: the code points of the training text, by number.
- ``word``: what white space separates, and every line break as a word of its own, as the WikiText
  perplexities are counted (their ``<eos>``); the most frequent first, equals by code points. White
  space other than line breaks is not kept. A literal ``<unk>`` is the unknown word itself.
"""

import collections
import json
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vfejax.data.files import atomic_write, one_line, read_errors
from vfejax.errors import UserError

__all__ = ["Vocabulary", "build", "load"]

_PADDING, _UNKNOWN, _FIRST = 0, 1, 2
_BYTES = tuple(f"{byte:02x}" for byte in range(256))
_WORD = re.compile(r"\n|\S+")
_UNKNOWN_WORD = "<unk>"
_NUM_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Vocabulary:
    """What a token is.

    Attributes:
        kind: ``byte``, ``character`` or ``word``.
        symbols: symbol i has id ``i + 2``; bytes are written as two hexadecimal digits.

    Raises:
        ValueError: for an unknown kind, or symbols that are not distinct symbols of that kind.
    """

    kind: str
    symbols: tuple[str, ...]

    padding_id: ClassVar[int] = _PADDING
    unknown_id: ClassVar[int] = _UNKNOWN

    def __post_init__(self):
        if self.kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {self.kind!r}")
        legal_fn = _KINDS[self.kind].legal_fn
        for symbol in self.symbols:
            if not isinstance(symbol, str) or not legal_fn(symbol):
                raise ValueError(f"symbols of kind {self.kind} cannot hold {symbol!r}")
        if len(set(self.symbols)) < len(self.symbols):
            raise ValueError("symbols must be distinct")
        if self.kind == "byte" and self.symbols != _BYTES:
            raise ValueError("symbols of kind byte must be all 256 bytes in order")

    @property
    def size(self) -> int:
        """Number of ids, padding and the unknown symbol among them."""
        return _FIRST + len(self.symbols)

    def encode(self, text: str) -> np.ndarray:
        """Ids ``[n]`` (int32) of a text; a symbol that the vocabulary lacks becomes the unknown
        one.
        """
        return _KINDS[self.kind].encode_fn(text, self.symbols)

    def decode(self, ids: np.ndarray) -> str:
        """Text of ids ``[n]``. Padding is left out; the unknown symbol and bytes that are not UTF-8
        read U+FFFD, the unknown word ``<unk>``.

        Raises:
            ValueError: for ids of another shape or type, or outside the vocabulary.
        """
        ids = np.asarray(ids)
        if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
            raise ValueError(f"ids must be integers [n], got {ids.dtype} of shape {ids.shape}")
        outside = (ids < 0) | (ids >= self.size)
        if outside.any():
            raise ValueError(f"ids must lie between 0 and {self.size - 1}, got {ids[outside][0]}")
        return _KINDS[self.kind].decode_fn(ids[ids != _PADDING].astype(np.int64), self.symbols)

    def to_mapping(self) -> dict[str, Any]:
        """The vocabulary as JSON can hold it."""
        return {"kind": self.kind, "symbols": list(self.symbols)}

    @classmethod
    def from_mapping(cls, mapping: Mapping[str, Any]) -> "Vocabulary":
        """Inverse of :meth:`to_mapping`; raises ValueError for anything else."""
        if not isinstance(mapping, Mapping) or set(mapping) != {"kind", "symbols"}:
            raise ValueError("a vocabulary must be a mapping with the keys kind and symbols")
        if not isinstance(mapping["kind"], str) or not isinstance(mapping["symbols"], list):
            raise ValueError("kind must be a string and symbols a list")
        return cls(mapping["kind"], tuple(mapping["symbols"]))

    def save(self, path: str | os.PathLike) -> None:
        """Write the vocabulary as JSON; a file that cannot be written is a UserError."""
        atomic_write(path, json.dumps(self.to_mapping()) + "\n")


def load(path: str | os.PathLike) -> Vocabulary:
    """Read what :meth:`Vocabulary.save` wrote.

    Raises:
        UserError: naming the file, when it is missing or damaged.
    """
    with read_errors(path):
        content = Path(path).read_text(encoding="utf-8")
    try:
        return Vocabulary.from_mapping(json.loads(content))
    except ValueError as error:
        raise UserError(
            f"{os.fspath(path)} is no vocabulary: {one_line(error)}; train again"
        ) from error


def build(kind: str, text: str, *, max_words: int | None = None) -> Vocabulary:
    """The vocabulary of a text.

    Args:
        kind: ``byte``, ``character`` or ``word``.
        text: the training text.
        max_words: how many of the most frequent words get an id of their own; all by default. The
            other kinds are always complete.

    Raises:
        ValueError: for an unknown kind or ``max_words < 1``.
    """
    if kind not in _KINDS:
        raise ValueError(f"kind must be one of {', '.join(_KINDS)}, got {kind!r}")
    if max_words is not None and max_words < 1:
        raise ValueError(f"max_words must be at least 1, got {max_words}")
    symbols = _KINDS[kind].collect_fn(text)
    return Vocabulary(kind, tuple(symbols[:max_words] if kind == "word" else symbols))


class _Kind(NamedTuple):
    """What makes a kind of vocabulary: the symbols of a text in order, which strings are symbols,
    and the two directions.
    """

    collect_fn: Callable[[str], list[str]]
    legal_fn: Callable[[str], bool]
    encode_fn: Callable[[str, tuple[str, ...]], np.ndarray]
    decode_fn: Callable[[np.ndarray, tuple[str, ...]], str]


def _encode_bytes(text: str, symbols: tuple[str, ...]) -> np.ndarray:
    # A shell argument that is not UTF-8 reaches Python with its bytes escaped as surrogates: this
    # restores them.
    return (
        np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8).astype(np.int32) + _FIRST
    )


def _decode_bytes(ids: np.ndarray, symbols: tuple[str, ...]) -> str:
    # 0xff occurs nowhere in UTF-8, so each unknown one decodes to one replacement character.
    return (
        np.where(ids == _UNKNOWN, 0xFF, ids - _FIRST)
        .astype(np.uint8)
        .tobytes()
        .decode("utf-8", "replace")
    )


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), "<u4")


def _encode_characters(text: str, symbols: tuple[str, ...]) -> np.ndarray:
    table = np.full(_NUM_CODE_POINTS, _UNKNOWN, np.int32)
    table[_code_points("".join(symbols))] = np.arange(_FIRST, _FIRST + len(symbols))
    return table[_code_points(text)]


def _decode_characters(ids: np.ndarray, symbols: tuple[str, ...]) -> str:
    points = _code_points("".join(("\ufffd", *symbols)))
    return points[ids - _UNKNOWN].tobytes().decode("utf-32-le", "surrogatepass")


def _collect_words(text: str) -> list[str]:
    counts = collections.Counter(_WORD.findall(text))
    counts.pop(_UNKNOWN_WORD, None)
    return sorted(counts, key=lambda word: (-counts[word], word))


def _encode_words(text: str, symbols: tuple[str, ...]) -> np.ndarray:
    ids = {word: i for i, word in enumerate(symbols, _FIRST)}
    return np.array([ids.get(word, _UNKNOWN) for word in _WORD.findall(text)], np.int32)


def _decode_words(ids: np.ndarray, symbols: tuple[str, ...]) -> str:
    names = (_UNKNOWN_WORD, *symbols)
    return re.sub(" ?\n ?", "\n", " ".join([names[i - _UNKNOWN] for i in ids]))


_KINDS = {
    "byte": _Kind(lambda text: list(_BYTES), _BYTES.__contains__, _encode_bytes, _decode_bytes),
    "character": _Kind(
        lambda text: sorted(set(text)),
        lambda symbol: len(symbol) == 1,
        _encode_characters,
        _decode_characters,
    ),
    "word": _Kind(
        _collect_words,
        lambda symbol: symbol != _UNKNOWN_WORD and _WORD.fullmatch(symbol) is not None,
        _encode_words,
        _decode_words,
    ),
}

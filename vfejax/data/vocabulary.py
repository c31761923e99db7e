"""Vocabularies of bytes, characters and words: what a token is, and the way from text to ids.

Ids have one layout for every kind: 0 is padding, 1 the unknown symbol, then the symbols in order.

- ``byte``: the 256 bytes of UTF-8; nothing is ever unknown.
- ``character``: the code points of the training text, by number.
- ``word``: what white space separates, and every line break as a word of its own, as the WikiText
  perplexities are counted (their ``<eos>``). The most frequent word comes first; words of equal
  frequency are ordered by code points. White space other than line breaks is not kept. A literal
  ``<unk>`` is the unknown word itself.
"""

import collections
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from vfejax.data.spelling import adaptive_nats, spelled_nats

__all__ = ["KINDS", "Vocabulary", "build"]

KINDS = ("byte", "character", "word")

_PADDING, _UNKNOWN, _FIRST = 0, 1, 2
_BYTES = tuple(f"{byte:02x}" for byte in range(256))
_WORD = re.compile(r"\n|\S+")
# White space that decoding would not write; its group is empty for the single space between words.
_GAP = re.compile(r"(?<=\S) (?=\S)|([^\S\n]+)")
_UNKNOWN_WORD = "<unk>"
_NUM_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Vocabulary:
    """What a token is: a :class:`~vfejax.data.tokenizers.Tokenizer` of bytes, characters or words.

    Attributes:
        kind: ``byte``, ``character`` or ``word``.
        symbols: symbol i has id ``i + 2``; bytes are written as two hexadecimal digits.

    Raises:
        ValueError: for an unknown kind, or symbols that are not distinct symbols of that kind.

    >>> letters = build("character", "banana")
    >>> letters.encode("nab").tolist(), letters.decode(letters.encode("naxb"))
    ([4, 2, 3], 'na\ufffdb')
    """

    kind: str
    symbols: tuple[str, ...]

    padding_id: ClassVar[int] = _PADDING
    unknown_id: ClassVar[int] = _UNKNOWN

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
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

    @property
    def num_known(self) -> int:
        """Number of ids that stand for something: all."""
        return self.size

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
        known = check_ids(ids, self.size)
        return _KINDS[self.kind].decode_fn(known[known != _PADDING], self.symbols)

    def extend(self, text: str, ids: np.ndarray) -> str:
        """The text with what ids ``[n]`` say after it; a space goes between two words."""
        return _KINDS[self.kind].extend_fn(text, check_ids(ids, self.size), self)

    def unencodable(self, text: str) -> str | None:
        """The first symbol of a text that no id stands for; None when there is none. An unknown
        word has an id, for it reads ``<unk>``.
        """
        unknown = np.flatnonzero(self.encode(text) == _UNKNOWN)
        return text[int(unknown[0])] if len(unknown) and self.kind == "character" else None

    def spelling_nats(self, text: str, ids: np.ndarray | None = None) -> float:
        """Nats of a code for what the ids of a text leave unsaid; ``ids`` is not needed here.

        Unknown symbols are spelled by their bytes. For words, so is all white space that decoding
        would not write; whether a gap is the expected one, and whether an unknown word is a literal
        ``<unk>``, is coded for each. All codes are those of :mod:`vfejax.data.spelling`.
        """
        return _KINDS[self.kind].spelling_fn(text, self.symbols)

    def to_json(self) -> dict[str, Any]:
        """The vocabulary as JSON can hold it."""
        return {"kind": self.kind, "symbols": list(self.symbols)}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "Vocabulary":
        """Inverse of :meth:`to_json`; raises ValueError for anything else."""
        if not isinstance(mapping, Mapping) or set(mapping) != {"kind", "symbols"}:
            raise ValueError("a vocabulary must be a mapping with the keys kind and symbols")
        if not isinstance(mapping["kind"], str) or not isinstance(mapping["symbols"], list):
            raise ValueError("kind must be a string and symbols a list")
        return cls(mapping["kind"], tuple(mapping["symbols"]))


def check_ids(ids: np.ndarray, size: int) -> np.ndarray:
    """The ids as int64 ``[n]``; ValueError for another shape or type, or an id outside [0,
    size).
    """
    ids = np.asarray(ids)
    if ids.ndim != 1 or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"ids must be integers [n], got {ids.dtype} of shape {ids.shape}")
    outside = (ids < 0) | (ids >= size)
    if outside.any():
        raise ValueError(f"ids must lie between 0 and {size - 1}, got {ids[outside][0]}")
    return ids.astype(np.int64)


def build(kind: str, text: str, *, max_words: int | None = None) -> Vocabulary:
    """The vocabulary of a text.

    Args:
        kind: ``byte``, ``character`` or ``word``.
        text: the training text.
        max_words: how many of the most frequent words get an id of their own; all by default. The
            other kinds are always complete.

    Returns:
        The vocabulary.

    Raises:
        ValueError: for an unknown kind or ``max_words < 1``.

    >>> build("word", "to be or not to be", max_words=2).symbols
    ('be', 'to')
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
    if max_words is not None and max_words < 1:
        raise ValueError(f"max_words must be at least 1, got {max_words}")
    symbols = _KINDS[kind].collect_fn(text)
    return Vocabulary(kind, tuple(symbols[:max_words] if kind == "word" else symbols))


class _Kind(NamedTuple):
    """What makes a kind of vocabulary: the symbols of a text in order, which strings are symbols,
    the two directions, how a text goes on, and the nats of what ids leave unsaid.
    """

    collect_fn: Callable[[str], list[str]]
    legal_fn: Callable[[str], bool]
    encode_fn: Callable[[str, tuple[str, ...]], np.ndarray]
    decode_fn: Callable[[np.ndarray, tuple[str, ...]], str]
    extend_fn: Callable[[str, np.ndarray, Vocabulary], str]
    spelling_fn: Callable[[str, tuple[str, ...]], float]


def _utf8(text: str) -> bytes:
    # A shell argument that is not UTF-8 reaches Python with its bytes escaped as surrogates: this
    # restores them. Other lone surrogates are no bytes of anything, and are written as they are.
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return text.encode("utf-8", "surrogatepass")


def _encode_bytes(text: str, symbols: tuple[str, ...]) -> np.ndarray:
    return np.frombuffer(_utf8(text), np.uint8).astype(np.int32) + _FIRST


def _bytes_of(ids: np.ndarray) -> bytes:
    # 0xff occurs nowhere in UTF-8, so each unknown one decodes to one replacement character.
    return np.where(ids == _UNKNOWN, 0xFF, ids - _FIRST).astype(np.uint8).tobytes()


def _decode_bytes(ids: np.ndarray, symbols: tuple[str, ...]) -> str:
    return _bytes_of(ids).decode("utf-8", "replace")


def _extend_bytes(text: str, ids: np.ndarray, vocabulary: Vocabulary) -> str:
    # Decoded together: a model may finish the character whose first bytes the text ends with.
    new = _bytes_of(ids[ids != _PADDING])
    whole = (_utf8(text) + new).decode("utf-8", "surrogateescape")
    # Given bytes come back as they were, whatever they are; new ones that are no UTF-8 are marked.
    pairs = enumerate(zip(whole, text, strict=False))
    kept = next((i for i, (ours, given) in pairs if ours != given), min(len(whole), len(text)))
    marked = whole[kept:].encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return whole[:kept] + marked


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


def _extend_words(text: str, ids: np.ndarray, vocabulary: Vocabulary) -> str:
    new = vocabulary.decode(ids)
    gap = "" if not text or text[-1].isspace() or new[:1] in ("", "\n") else " "
    return text + gap + new


def _spell_characters(text: str, symbols: tuple[str, ...]) -> float:
    known = set(symbols)
    if known.issuperset(text):
        return 0.0
    return spelled_nats((character for character in text if character not in known), ends=False)


def _spell_words(text: str, symbols: tuple[str, ...]) -> float:
    known = set(symbols)
    words = _WORD.findall(text)
    unknown = [word for word in words if word not in known]
    spelled = [word for word in unknown if word != _UNKNOWN_WORD]
    gaps = [gap for gap in _GAP.findall(text) if gap]
    # A gap precedes every word, and one follows the last.
    choices = [[len(unknown) - len(spelled), len(spelled)], [len(words) + 1 - len(gaps), len(gaps)]]
    return sum(map(adaptive_nats, choices)) + sum(
        spelled_nats(strings, ends=True) for strings in (spelled, gaps)
    )


_KINDS = {
    "byte": _Kind(
        lambda text: list(_BYTES),
        _BYTES.__contains__,
        _encode_bytes,
        _decode_bytes,
        _extend_bytes,
        lambda text, symbols: 0.0,
    ),
    "character": _Kind(
        lambda text: sorted(set(text)),
        lambda symbol: len(symbol) == 1,
        _encode_characters,
        _decode_characters,
        lambda text, ids, vocabulary: text + vocabulary.decode(ids),
        _spell_characters,
    ),
    "word": _Kind(
        _collect_words,
        lambda symbol: symbol != _UNKNOWN_WORD and _WORD.fullmatch(symbol) is not None,
        _encode_words,
        _decode_words,
        _extend_words,
        _spell_words,
    ),
}

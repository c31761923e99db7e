"""Tokenizers of the Hugging Face ``tokenizers`` library: byte-pair encodings and their kin.

The file that this library writes (``tokenizer.json``) is kept whole inside a run, so that a run
needs no other file. The library itself is an optional part of an installation; it is imported when
such a tokenizer is built.
"""

import json
import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import Any

import numpy as np

from vfejax.data.files import one_line
from vfejax.data.vocabulary import check_ids
from vfejax.errors import UserError

__all__ = ["KIND", "SubwordTokenizer"]

KIND = "tokenizers"
_PADDING, _SHIFT = 0, 1
_PIECE = 1 << 20  # characters, at least, that the library is given at once
_LINE = re.compile(r"(?<=\n)\S")
_SURROGATE = re.compile("[\ud800-\udfff]")


class SubwordTokenizer:
    """A tokenizer from its JSON; a :class:`~vfejax.data.tokenizers.Tokenizer`.

    Its ids are shifted by one, since id 0 is padding and such a file need not have any. Padding and
    truncation that the file asks for, and special tokens around a text, are left out: a text is a
    stream here.

    Args:
        content: the parsed ``tokenizer.json``.

    Raises:
        ValueError: for content that the library does not take, or a tokenizer without tokens.
        UserError: when the library is not installed.
    """

    padding_id = _PADDING

    def __init__(self, content: Mapping[str, Any]):
        if not isinstance(content, Mapping):
            raise ValueError("a tokenizer must be a mapping")
        self._content = dict(content)
        self._tokenizer = _library().Tokenizer
        try:
            self._tokenizer = self._tokenizer.from_str(json.dumps(self._content))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"tokenizers cannot read it ({one_line(error)})") from error
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        if not self._tokenizer.get_vocab_size():
            raise ValueError("the tokenizer has no tokens; train it first")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SubwordTokenizer) and self._content == other._content

    __hash__ = None  # type: ignore[assignment]

    @cached_property
    def size(self) -> int:
        """Number of ids: one more than the largest, gaps in the numbering included."""
        return 1 + _SHIFT + max(self._tokenizer.get_vocab().values())

    @property
    def num_known(self) -> int:
        """Number of ids that stand for something: all, but for gaps in the numbering."""
        return self.size

    @cached_property
    def unknown_id(self) -> int | None:
        """The id of what the tokenizer cannot say; None for one that spells everything."""
        model = self._content.get("model", {})
        name = model.get("unk_token")
        if name is None and isinstance(model.get("unk_id"), int):  # a unigram model
            return model["unk_id"] + _SHIFT
        index = None if name is None else self._tokenizer.token_to_id(name)
        return None if index is None else index + _SHIFT

    def encode(self, text: str) -> np.ndarray:
        """Ids ``[n]`` (int32) of a text. Bytes of a shell argument that are not UTF-8 become
        U+FFFD.

        The library needs a few hundred bytes for each token it is writing, so a long text is given
        to it in pieces of a megabyte and more, each from the beginning of a line.
        """
        pieces = [
            np.asarray(self._tokenizer.encode(piece, add_special_tokens=False).ids, np.int32)
            for piece in _pieces(_plain(text))
        ]
        return np.concatenate([np.empty(0, np.int32), *pieces]) + np.int32(_SHIFT)

    def decode(self, ids: np.ndarray) -> str:
        """Text of ids ``[n]``, without padding.

        Raises:
            ValueError: for ids of another shape or type, or outside the vocabulary.
        """
        known = check_ids(ids, self.size)
        plain = known[known != _PADDING] - _SHIFT
        return self._tokenizer.decode(plain.tolist(), skip_special_tokens=False)

    def extend(self, text: str, ids: np.ndarray) -> str:
        """The text with what ids ``[n]`` say after it, decoded in its context."""
        given = self.encode(text)
        before = self.decode(given)
        whole = self.decode(np.concatenate([given, check_ids(ids, self.size)]))
        return text + (whole[len(before) :] if whole.startswith(before) else self.decode(ids))

    def unencodable(self, text: str) -> str | None:
        """The first piece of a text that no id stands for; None when there is none."""
        if self.unknown_id is None:
            return None
        found = self._tokenizer.encode(_plain(text), add_special_tokens=False)
        for index, (start, stop) in zip(found.ids, found.offsets, strict=True):
            if index + _SHIFT == self.unknown_id:
                return text[start:stop]
        return None

    def spelling_nats(self, text: str, ids: np.ndarray | None = None) -> float | None:
        """0 when decoding returns the very text; None when it does not, for then it is not known
        what the ids leave unsaid.

        Args:
            text: any text.
            ids: its ids, ``[n]``, if they are there already.
        """
        return 0.0 if self.decode(self.encode(text) if ids is None else ids) == text else None

    def to_json(self) -> dict[str, Any]:
        """The tokenizer as JSON can hold it."""
        return {"kind": KIND, "tokenizer": self._content}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "SubwordTokenizer":
        """Inverse of :meth:`to_json`; raises ValueError for anything else."""
        if not isinstance(mapping, Mapping) or set(mapping) != {"kind", "tokenizer"}:
            raise ValueError("a stored tokenizer must have the keys kind and tokenizer")
        return cls(mapping["tokenizer"])


def _pieces(text: str) -> Iterator[str]:
    """The text in pieces that begin with a character that is no white space, at the beginning of a
    line: tokens do not reach across there.
    """
    start = 0
    while cut := _LINE.search(text, start + _PIECE):
        yield text[start : cut.start()]
        start = cut.start()
    if start < len(text):
        yield text[start:]


def _plain(text: str) -> str:
    return _SURROGATE.sub("\ufffd", text)


def _library() -> Any:
    try:
        import tokenizers
    except ImportError as error:
        raise UserError(
            "a tokenizer file needs the library tokenizers; "
            "install it with pip install 'vfejax[tokenizers]'"
        ) from error
    return tokenizers

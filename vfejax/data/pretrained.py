"""The tokenizer of a pretrained model: ids are those that its weights were trained with.

Other tokenizers of this library number their ids from a padding id on. Here the ids are those of
the tokenizer's own file, or the bytes of UTF-8 from 0 to 255, and there are as many as the model
has rows for; those beyond the tokenizer stand for nothing and are never drawn.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from vfejax.data import subwords, vocabulary
from vfejax.data.subwords import SubwordTokenizer
from vfejax.data.vocabulary import Vocabulary, check_ids

__all__ = ["KIND", "PretrainedTokenizer", "of_bytes"]

KIND = "pretrained"
_READERS: dict[str, Callable[[Mapping[str, Any]], Vocabulary | SubwordTokenizer]] = {
    "byte": Vocabulary.from_json,
    subwords.KIND: SubwordTokenizer.from_json,
}
_RESERVED = {"byte": 2, subwords.KIND: 1}  # ids before the first that a text encodes to
_NEVER_IN_UTF8 = 0xFF


class PretrainedTokenizer:
    """A tokenizer counted from its own first id; a :class:`~vfejax.data.tokenizers.Tokenizer`.

    Padding is an id beyond the tokenizer. A model without such a row pads with a byte that UTF-8
    does not have, or with the last of the tokenizer's special tokens.

    Args:
        inner: bytes, or the tokenizer of a file.
        size: rows that the model has for tokens.

    Raises:
        ValueError: for a model with fewer rows than the tokenizer has ids, and for one without a
            row for padding.

    >>> tokenizer = of_bytes(300)
    >>> tokenizer.encode("ab").tolist(), tokenizer.decode(np.array([97, 299, 98]))
    ([97, 98], 'ab')
    >>> tokenizer.padding_id, tokenizer.num_known
    (256, 256)
    """

    def __init__(self, inner: Vocabulary | SubwordTokenizer, size: int):
        self._inner, self.size = inner, size
        self._first = _RESERVED[inner.to_json()["kind"]]
        self.num_known = inner.size - self._first
        if size < self.num_known:
            raise ValueError(
                f"the tokenizer has {self.num_known} ids and the model rows for {size}"
            )
        self.padding_id = self._padding()

    def _padding(self) -> int:
        if self.num_known < self.size:
            return self.num_known
        content = self._inner.to_json()
        if content["kind"] == "byte":
            return _NEVER_IN_UTF8
        added = content["tokenizer"].get("added_tokens") or []
        special = [token["id"] for token in added if token.get("special")]
        if not special:
            raise ValueError(
                f"the tokenizer uses all {self.size} rows of the model and has no special token "
                "that can stand for padding"
            )
        return max(special)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PretrainedTokenizer) and self.to_json() == other.to_json()

    __hash__ = None  # type: ignore[assignment]

    @property
    def unknown_id(self) -> int | None:
        """The id of what the tokenizer cannot say; None for one that spells everything."""
        index = self._inner.unknown_id
        return None if index is None or index < self._first else index - self._first

    def _inside(self, ids: np.ndarray) -> np.ndarray:
        """Ids that stand for something, as the inner tokenizer counts them."""
        known = check_ids(ids, self.size)
        return known[(known < self.num_known) & (known != self.padding_id)] + self._first

    def encode(self, text: str) -> np.ndarray:
        """Ids ``[n]`` (int32) of a text; what is no UTF-8 becomes U+FFFD."""
        plain = text.encode("utf-8", "replace").decode() if not text.isascii() else text
        return self._inner.encode(plain) - np.int32(self._first)

    def decode(self, ids: np.ndarray) -> str:
        """Text of ids ``[n]``, without padding and ids that stand for nothing.

        Raises:
            ValueError: for ids of another shape or type, or outside the model.
        """
        return self._inner.decode(self._inside(ids))

    def extend(self, text: str, ids: np.ndarray) -> str:
        """The text with what ids ``[n]`` say after it."""
        return self._inner.extend(text, self._inside(ids))

    def unencodable(self, text: str) -> str | None:
        """The first piece of a text that no id stands for; None when there is none."""
        return self._inner.unencodable(text)

    def spelling_nats(self, text: str, ids: np.ndarray | None = None) -> float | None:
        """Nats of a code for what the ids of a text leave unsaid; None when they are not known.

        Args:
            text: any text.
            ids: its ids, ``[n]``, if they are there already.
        """
        return self._inner.spelling_nats(text, None if ids is None else self._inside(ids))

    def to_json(self) -> dict[str, Any]:
        """The tokenizer as JSON can hold it."""
        return {"kind": KIND, "size": self.size, "inner": self._inner.to_json()}

    @classmethod
    def from_json(cls, mapping: Mapping[str, Any]) -> "PretrainedTokenizer":
        """Inverse of :meth:`to_json`; raises ValueError for anything else."""
        if not isinstance(mapping, Mapping) or set(mapping) != {"kind", "size", "inner"}:
            raise ValueError("a pretrained tokenizer must have the keys kind, size and inner")
        inner, size = mapping["inner"], mapping["size"]
        kind = inner.get("kind") if isinstance(inner, Mapping) else None
        if kind not in _READERS or type(size) is not int:
            raise ValueError(f"inner must be of kind {' or '.join(_READERS)}, and size an integer")
        return cls(_READERS[kind](inner), size)


def of_bytes(size: int) -> PretrainedTokenizer:
    """The bytes of UTF-8 as ids 0 to 255, for a model with ``size`` rows; ValueError for fewer than
    256.
    """
    return PretrainedTokenizer(vocabulary.build("byte", ""), size)
